"""Every environment under fault injection: whatever breaks, no episode is lost and every answer is the undisturbed one.

A handful of faults per environment; `python -m benchmarks.environment_faults` does the same with a thousand.
"""

import asyncio
import itertools
from collections import Counter

import pytest

from agentrm_jax.envs.faults import fault_at, faulty
from agentrm_jax.envs.pool import EnvironmentPool
from agentrm_jax.envs.spec import find, names
from agentrm_jax.search import rollout
from agentrm_jax.testing.demonstrated import LIGHT, demonstrations, is_installed, wandering_policy

RATES = {"hang": 0.04, "crash": 0.06, "error": 0.06, "garbage": 0.06}
SAMPLES = 3
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


def faults(ends, seed):
    """What will break, place by place: a step breaks when it is first reached."""
    places = set()
    for end in ends:
        commands = [s.outcome.parsed for s in end.path()[1:]]
        places |= {(end.task.key, *commands[: i + 1]) for i in range(len(commands))}
    return Counter(kind for place in places if (kind := fault_at(RATES, seed, place)))


def few_of_each(ends):
    """A fault seed with which these episodes meet a single hang and one to three of every other kind."""
    for seed in itertools.count():
        found = faults(ends, seed)
        if found["hang"] == 1 and all(1 <= found[kind] <= 3 for kind in RATES):
            return seed, found
    raise AssertionError


@pytest.mark.parametrize("name", WITH_EXPERT)
def test_no_episode_is_lost_or_changed_by_faults(name, tmp_path):
    if not is_installed(name):
        pytest.skip(f"the engine of {name} is not installed")
    demonstrated = demonstrations(name, 2, max_steps=8)
    assert len(demonstrated) == 2
    undisturbed, stats = run(name, demonstrated, workers=1)
    assert (stats.faults, stats.restarts) == (0, 0)
    seed, expected = few_of_each(undisturbed)
    spec = faulty(find(name), **RATES, slow_start=0.1, seed=seed, once_in=str(tmp_path))
    disturbed, stats = run(name, demonstrated, workers=2, step_timeout=2.0, specs={name: spec})
    assert outcomes(disturbed) == outcomes(undisturbed)
    assert stats.failed == 0
    assert len(list(tmp_path.iterdir())) == expected.total()
    # a busy machine may make an innocent step look hung, which must do no harm either
    assert stats.timeouts >= expected["hang"]
    assert (stats.crashes, stats.faults) == (expected["crash"], expected["error"] + expected["garbage"])
