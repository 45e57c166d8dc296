"""Every environment under fault injection: whatever breaks, no episode is lost and every answer is the undisturbed one.

A handful of faults per environment; AGENTRM_SLOW_TESTS=1 includes those that take minutes.
`python -m benchmarks.environment_faults` does the same with a thousand.
"""

import asyncio
import os
from collections import Counter

import pytest

from agentrm_jax.envs.catalogue import find, names
from agentrm_jax.envs.pool.faults import fault_at, faulty
from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.search import rollout
from agentrm_jax.testing.demonstrated import LIGHT, by_name, demonstrations, is_installed, wandering_policy

KINDS = ("hang", "crash", "error", "garbage")
SAMPLES = 3
SLOW = {"sciworld"}  # starts a Java process for every episode in flight, and again after every fault
WITH_EXPERT = [name for name in names() if find(name).expert is not None]


async def play(pool, demonstrated):
    """Wandering episodes of all tasks at once, and the expert's own as sample 0 without temperature."""
    policy = wandering_policy(demonstrated)
    return await asyncio.gather(
        *(
            rollout(d.task, policy, pool, temperature=float(sample > 0), sample=sample)
            for d in demonstrated
            for sample in range(SAMPLES)
        )
    )


def run(name, demonstrated, **arguments):
    async def go():
        async with EnvironmentPool({name: LIGHT.get(name, {})}, **arguments) as pool:
            return await play(pool, demonstrated), pool.stats

    return asyncio.run(go())


def outcomes(ends):
    return [[s.outcome for s in end.path()] for end in ends]


def steps_of(ends):
    """Every different step, by what `fault_at` knows it by: it breaks when it is first taken."""
    steps = set()
    for end in ends:
        commands = [s.outcome.parsed for s in end.path()[1:]]
        steps |= {(end.task.key, *commands[: i + 1]) for i in range(len(commands))}
    return steps


def few_of_each(steps):
    """Rates and seed with which these steps meet a single hang and one to three of every other kind."""
    rates = dict.fromkeys(KINDS, min(0.2, 1.5 / len(steps)))
    for seed in range(10_000):
        found = Counter(kind for step in steps if (kind := fault_at(rates, seed, step)))
        if found["hang"] == 1 and all(1 <= found[kind] <= 3 for kind in KINDS):
            return rates, seed, found
    raise AssertionError(f"{len(steps)} steps are too few")


@pytest.mark.parametrize("name", WITH_EXPERT)
def test_no_episode_is_lost_or_changed_by_faults(name, tmp_path):
    if name in SLOW and not os.environ.get("AGENTRM_SLOW_TESTS"):
        pytest.skip(f"{name} takes minutes; set AGENTRM_SLOW_TESTS=1")
    if not is_installed(name):
        pytest.skip(f"the engine of {name} is not installed")
    demonstrated = sorted(demonstrations(name, 5, max_steps=8), key=lambda d: len(d.commands))[-2:]
    undisturbed, stats = run(name, demonstrated, workers=1)
    assert (stats.faults, stats.restarts) == (0, 0)
    rates, seed, expected = few_of_each(steps_of(undisturbed))
    spec = faulty(by_name(name), **rates, slow_start=0.1, seed=seed, once_in=str(tmp_path))
    disturbed, stats = run(name, demonstrated, workers=2, step_timeout=2.0, retries=5, specs={name: spec})
    assert outcomes(disturbed) == outcomes(undisturbed)
    assert stats.failed == 0
    assert len(list(tmp_path.iterdir())) == expected.total()
    assert stats.timeouts >= expected["hang"]
    if (
        stats.timeouts == expected["hang"]
    ):  # a busy machine can make an innocent step look hung, which must do no harm either
        assert (stats.crashes, stats.faults) == (expected["crash"], expected["error"] + expected["garbage"])
