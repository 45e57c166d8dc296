"""Every environment that is installed can be searched by every method through the pool, with a policy and scores that know nothing.

AGENTRM_SEARCH_EPISODES=200 makes it that many episodes per environment and method instead of a few, of every kind of task.
"""

import asyncio
import functools
import os

import pytest

from agentrm_jax.envs.catalogue import find, names
from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.envs.react import command_reader
from agentrm_jax.search import beam, best_of_n, methods, run_tasks
from agentrm_jax.testing.demonstrated import LIGHT, demonstrations, is_installed, wandering_policy
from agentrm_jax.testing.scripted import random_reward

EPISODES = int(os.environ.get("AGENTRM_SEARCH_EPISODES", "2"))
LONG = EPISODES >= 20
MAX_STEPS = 30 if LONG else 6
OPTIONS = {"sciworld": {"variations": 2}} if LONG else LIGHT
WITH_EXPERT = [name for name in names() if find(name).expert is not None]


@pytest.fixture(scope="module", params=WITH_EXPERT)
def demonstrated(request):
    """Tasks of one environment, with commands to choose from."""
    name = request.param
    if not is_installed(name):
        pytest.skip(f"the engine of {name} is not installed")
    return demonstrations(name, EPISODES, options=OPTIONS.get(name, {}), max_steps=MAX_STEPS, workers=2 if LONG else 1)


def search(demonstrated, method):
    """What became of every task, as often as it takes to make EPISODES of them; and the pool's statistics."""
    name = demonstrated[0].task.env
    ends = []

    async def go():
        async with EnvironmentPool({name: OPTIONS.get(name, {})}, workers=2, step_timeout=60.0) as pool:
            tasks = [d.task for d in demonstrated]
            for seed in range(-(-EPISODES // len(tasks))):
                await run_tasks(tasks, functools.partial(method, pool, seed), concurrency=4, on_done=ends.append)
            return pool.stats

    stats = asyncio.run(go())
    return ends, stats


def check(ends, stats):
    assert [end.fault for end in ends] == [None] * len(ends)
    assert (stats.failed, stats.divergences, stats.restarts) == (0, 0, 0)
    candidates = [candidate for end in ends for candidate in end.result.candidates]
    assert len(candidates) >= EPISODES
    for candidate in candidates:
        *_, last = path = candidate.state.path()
        assert last.done or last.depth == last.task.max_steps
        assert all(state.outcome.observation for state in path)


def test_best_of_n(demonstrated):
    policy, scorer = wandering_policy(demonstrated), random_reward()
    ends, stats = search(demonstrated, lambda pool, seed, task: best_of_n(task, policy, pool, scorer, n=3, seed=seed))
    check(ends, stats)
    assert all(len(end.result.candidates) == 3 for end in ends)


def test_beam(demonstrated):
    spec = find(demonstrated[0].task.env)
    command = command_reader({spec.name: spec})
    policy, scorer = wandering_policy(demonstrated), random_reward()

    def method(pool, seed, task):
        return beam(task, policy, pool, scorer, width=2, branch=2, seed=seed, command=command)

    ends, stats = search(demonstrated, method)
    check(ends, stats)
    assert all(1 <= len(end.result.candidates) <= 2 for end in ends)


SMALL = {
    "lookahead": {"samples": 2},
    "adaptive": {"n": 3, "wave": 2},
    "dvts": {"trees": 2, "branch": 2},
    "sharing_beam": {"width": 2, "branch": 2},
    "particle": {"particles": 3},
    "refine": {"attempts": 2},
    "guided_mcts": {"iterations": 2, "k": 2, "n": 2, "depth": 1, "rollout_temperature": 1.0},
}


def test_every_other_method_has_settings_here():
    assert {name for name, method in methods.METHODS.items() if method.reward_model} == {"best_of_n", "beam", *SMALL}


@pytest.mark.parametrize("name", SMALL)
def test_other_methods(demonstrated, name):
    spec = find(demonstrated[0].task.env)
    policy, scorer = wandering_policy(demonstrated), random_reward()

    def method(pool, seed, task):
        run = methods.find(name).bind(SMALL[name], seed=seed, command=command_reader({spec.name: spec}))
        return run(task, policy, pool, scorer)

    check(*search(demonstrated, method))
