"""Adaptive best-of-n: which samples it draws, and when it stops."""

import asyncio
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrm_jax.search.adaptive import adaptive
from agentrm_jax.search.best_of_n import best_of_n
from agentrm_jax.search.budget import Meter
from agentrm_jax.testing.inline import InlineEnvironments
from agentrm_jax.testing.scripted import (
    ScriptedEnvironments,
    ScriptedPolicy,
    ScriptedRewardModel,
    commands_of,
    constant_reward,
    random_reward,
    uniform_policy,
)
from agentrm_jax.testing.toy_env import SPEC, make_task
from agentrm_jax.types import TaskFailure, UserError

TASK = make_task(4)
POLICY = uniform_policy("abc")


def run(reward_model, method=adaptive, envs=None, policy=POLICY, **options):
    return asyncio.run(method(TASK, policy, envs or InlineEnvironments(SPEC), reward_model, **options))


def record(result):
    return [(c.sample, c.score, [s.action for s in c.state.path()]) for c in result.candidates], result.chosen


def scores(values, default):
    return ScriptedRewardModel(lambda state: values.get("".join(commands_of(state)), default))


def some_missing(seed):
    """Random scores, of which about a third are missing."""
    value = random_reward(seed).value
    return ScriptedRewardModel(lambda state: math.nan if value(state) < 0.3 else value(state))


@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 4), st.floats(0.3, 1.1), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_it_is_best_of_n_with_as_many_samples_as_it_drew(seed, n, wave, threshold, patience):
    model = some_missing(seed)
    result = run(model, n=n, wave=wave, threshold=threshold, patience=patience, seed=seed)
    drawn = result.counts["drawn"]
    assert record(result) == record(run(model, best_of_n, n=drawn, seed=seed))
    assert result.counts["saved"] == n - drawn >= 0


@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 4), st.floats(0.3, 1.1), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_it_stops_after_the_first_wave_that_gives_it_a_reason(seed, n, wave, threshold, patience):
    model = some_missing(seed)
    every = [c.score for c in run(model, best_of_n, n=n, seed=seed).candidates]

    def reason(drawn):
        bests = [max((s for s in every[:m] if s > 0), default=0.0) for m in range(0, drawn + wave, wave)]  # NaN is not
        in_vain = bool(patience) and len(bests) - 1 > patience and bests[-1] == bests[-1 - patience]
        return bests[-1] >= threshold or in_vain

    ends = [*range(wave, n, wave), n]
    expected = next((drawn for drawn in ends if reason(drawn)), n)
    got = run(model, n=n, wave=wave, threshold=threshold, patience=patience, seed=seed)
    assert got.counts["drawn"] == expected


def test_what_is_saved_is_not_drawn():
    meter = Meter()
    policy, model = meter.policy(POLICY), meter.reward_model(constant_reward(0.9))
    result = run(model, policy=policy, n=8, wave=2, threshold=0.9)
    assert (result.counts["drawn"], result.counts["saved"]) == (2, 6)
    assert (meter.total().policy_turns, meter.total().reward_states) == (2 * 4, 2)


def test_without_a_reason_it_draws_all():
    result = run(constant_reward(0.5), n=7, wave=3, threshold=0.6)
    assert (result.counts["drawn"], result.counts["saved"]) == (7, 0)


def test_on_a_hopeless_task_it_gives_up_after_some_waves_in_vain():
    assert run(constant_reward(0.5), n=9, wave=2, patience=2).counts["drawn"] == 6
    assert run(ScriptedRewardModel(lambda state: None), n=9, patience=3).counts["drawn"] == 4


def test_lost_samples_are_counted_and_drawn_no_second_time():
    letters = iter("aabab")  # sample 0 and so on
    policy = ScriptedPolicy(lambda state, n, temperature, seed: [next(letters)])
    envs = ScriptedEnvironments(ends=["b"], broken=["a"])
    result = run(constant_reward(0.0), envs=envs, policy=policy, n=5)
    assert [c.sample for c in result.candidates] == [2, 4]
    assert result.counts["faults"] == 3
    assert result.counts["drawn"] == 5
    with pytest.raises(TaskFailure, match="all 3 samples"):
        run(
            constant_reward(),
            envs=ScriptedEnvironments(ends=[], broken=["a", "b", "c"]),
            n=3,
        )


def test_bad_options_are_refused():
    with pytest.raises(UserError, match="n and wave of at least 1, got 5 and 0"):
        run(constant_reward(), wave=0)
    with pytest.raises(UserError, match="median"):
        run(constant_reward(), aggregate="median")
