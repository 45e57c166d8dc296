"""Same seeds, same results: whatever runs beside a task, and however long its answers take."""

import asyncio
import random

import pytest

from agentrm_jax.search import (
    adaptive,
    beam,
    best_of_n,
    dvts,
    explore,
    guided_mcts,
    lookahead,
    particle,
    refine,
    run_tasks,
    sharing_beam,
)
from agentrm_jax.testing.inline import InlineEnvironments
from agentrm_jax.testing.scripted import random_reward, uniform_policy
from agentrm_jax.testing.toy_env import SPEC, tasks
from agentrm_jax.types import SearchTree

TASKS = tasks("test", {})[:8]


class Jitter:
    """Answers after a random number of turns of the event loop."""

    def __init__(self, inner, seed):
        self.inner, self.random = inner, random.Random(seed)

    def __getattr__(self, name):
        method = getattr(self.inner, name)

        async def late(*args, **kwargs):
            for _ in range(self.random.randrange(5)):
                await asyncio.sleep(0)
            return await method(*args, **kwargs)

        return late


METHODS = {
    "best_of_n": lambda t, p, e, r: best_of_n(t, p, e, r, n=4, aggregate="mean"),
    "adaptive": lambda t, p, e, r: adaptive(t, p, e, r, n=6, wave=2, threshold=0.8, aggregate="mean"),
    "beam": lambda t, p, e, r: beam(t, p, e, r, width=3, branch=3),
    "dvts": lambda t, p, e, r: dvts(t, p, e, r, trees=2, width=2, branch=2),
    "sharing_beam": lambda t, p, e, r: sharing_beam(t, p, e, r, width=3, branch=3),
    "particle": lambda t, p, e, r: particle(t, p, e, r, particles=4, resampling="multinomial"),
    "refine": lambda t, p, e, r: refine(t, p, e, r, attempts=3),
    "guided_mcts": lambda t, p, e, r: guided_mcts(t, p, e, r, iterations=3, k=2, depth=1, n=2, rollout_temperature=1.0),
    "lookahead": lambda t, p, e, r: lookahead(t, p, e, r, samples=3, depth=1),
    "mcts": lambda t, p, e, r: explore(t, p, e, iterations=8, k=3),
}


def record(result):
    if isinstance(result, SearchTree):
        return result
    return result.chosen, result.counts, [(c.score, [s.action for s in c.state.path()]) for c in result.candidates]


def run(name, concurrency, timing):
    envs, policy, model = (
        Jitter(inner, timing) for inner in (InlineEnvironments(SPEC), uniform_policy("abc"), random_reward())
    )
    ends = {}

    def on_done(done):
        ends[done.task.key] = record(done.result)

    asyncio.run(
        run_tasks(TASKS, lambda t: METHODS[name](t, policy, envs, model), concurrency=concurrency, on_done=on_done)
    )
    return ends


@pytest.mark.parametrize("name", METHODS)
def test_results_do_not_depend_on_concurrency_or_timing(name):
    alone = run(name, 1, 0)
    assert len(alone) == len(TASKS)
    assert run(name, 3, 1) == alone
    assert run(name, 8, 2) == alone
