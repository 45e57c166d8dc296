"""Every environment that is installed can be searched: best-of-n and beam through the pool, with a policy and scores that know nothing.

AGENTRM_SEARCH_EPISODES=200 makes it 200 tasks per environment and method instead of a few.
"""

import asyncio
import os

import pytest

from agentrm_jax.envs.pool import EnvironmentPool
from agentrm_jax.envs.react import command_reader
from agentrm_jax.envs.spec import find, names
from agentrm_jax.search import beam, best_of_n, run_tasks
from agentrm_jax.testing.demonstrated import LIGHT, demonstrations, is_installed, wandering_policy
from agentrm_jax.testing.scripted import random_reward

EPISODES = int(os.environ.get("AGENTRM_SEARCH_EPISODES", "2"))
MAX_STEPS = 6 if EPISODES < 20 else 1000
WITH_EXPERT = [name for name in names() if find(name).expert is not None]


@pytest.fixture(scope="module", params=WITH_EXPERT)
def demonstrated(request):
    """Tasks of one environment, with commands to choose from."""
    if not is_installed(request.param):
        pytest.skip(f"the engine of {request.param} is not installed")
    return demonstrations(request.param, EPISODES, max_steps=MAX_STEPS)


def search(demonstrated, method):
    """What became of every task, and the pool's statistics."""
    name = demonstrated[0].task.env
    ends = []

    async def go():
        async with EnvironmentPool({name: LIGHT.get(name, {})}, workers=2, step_timeout=60.0) as pool:
            tasks = [d.task for d in demonstrated]
            await run_tasks(tasks, lambda task: method(task, pool), concurrency=4, on_done=ends.append)
            return pool.stats

    stats = asyncio.run(go())
    return sorted(ends, key=lambda end: end.task.id), stats


def check(demonstrated, ends, stats):
    assert [end.fault for end in ends] == [None] * len(demonstrated)
    assert (stats.failed, stats.divergences, stats.restarts) == (0, 0, 0)
    for end in ends:
        for candidate in end.result.candidates:
            *_, last = path = candidate.state.path()
            assert last.done or last.depth == last.task.max_steps
            assert all(state.outcome.observation for state in path)


def test_best_of_n(demonstrated):
    policy, scorer = wandering_policy(demonstrated), random_reward()
    ends, stats = search(demonstrated, lambda task, pool: best_of_n(task, policy, pool, scorer, n=3))
    check(demonstrated, ends, stats)
    assert all(len(end.result.candidates) == 3 for end in ends)


def test_beam(demonstrated):
    spec = find(demonstrated[0].task.env)
    command = command_reader({spec.name: spec})
    policy, scorer = wandering_policy(demonstrated), random_reward()
    ends, stats = search(
        demonstrated, lambda task, pool: beam(task, policy, pool, scorer, width=2, branch=2, command=command)
    )
    check(demonstrated, ends, stats)
    assert all(1 <= len(end.result.candidates) <= 2 for end in ends)
