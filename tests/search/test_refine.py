"""Refine: what an attempt is told, what it is not, and that it is plain sampling otherwise."""

import asyncio
import math

import pytest

from agentrm_jax.search import Meter, best_of_n, refine
from agentrm_jax.search.refine import CHARACTERS, COMMANDS, note
from agentrm_jax.search.result import Candidate
from agentrm_jax.testing.inline import InlineEnvironments
from agentrm_jax.testing.scripted import (
    ScriptedEnvironments,
    ScriptedPolicy,
    ScriptedRewardModel,
    commands_of,
    constant_reward,
    random_reward,
    uniform_policy,
    walk,
)
from agentrm_jax.testing.toy_env import SPEC, make_task
from agentrm_jax.types import Outcome, State, TaskFailure, UserError

TASK = make_task(3)


def run(model, policy=None, envs=None, method=refine, **settings):
    policy, envs = policy or uniform_policy("abc"), envs or InlineEnvironments(SPEC)
    return asyncio.run(method(TASK, policy, envs, model, **settings))


def spell(*words):
    """A policy that writes one word an attempt, and the prompts it read."""
    read = []

    def choose(state, n, temperature, seed):
        if state.parent is None:
            read.append(state.outcome.observation)
        return [words[len(read) - 1][state.depth]]

    return ScriptedPolicy(choose), read


def worth(values):
    """A reward model that knows words; of their beginnings it expects one half."""
    return ScriptedRewardModel(lambda state: values.get("".join(commands_of(state)), 0.5))


def test_each_attempt_is_told_of_the_best_one_before_it():
    policy, read = spell("abc", "bca", "ccc")
    result = run(worth({"abc": 0.4, "bca": 0.1, "ccc": 0.2}), policy)
    assert [c.score for c in result.candidates] == [0.4, 0.1, 0.2]
    assert (result.chosen, result.counts["told"]) == (0, 2)
    first, second, third = read
    assert "tried" not in first
    assert second == third, "the second attempt was worse than the first, so the third is told of the first again"
    assert second == first + (
        "\n\nYou have tried this task before. These were your actions, and in brackets what a judge expected of the task after each, "
        "between 0 and 1:\n1. a (0.50)\n2. b (0.50)\n3. c (0.40)\nThe judge gave this attempt 0.40. Action 3 lowered it most. "
        "The task starts again now. Do it better."
    )


def test_the_reward_model_and_the_record_know_nothing_of_the_note():
    policy, _ = spell("abc", "bca")
    seen = []
    model = ScriptedRewardModel(lambda state: seen.append(state.path()[0].outcome.observation) or 0.5)
    result = run(model, policy, attempts=2)
    assert set(seen) == {result.candidates[0].state.path()[0].outcome.observation}
    assert all("tried" not in s.outcome.observation for c in result.candidates for s in c.state.path())
    assert [commands_of(c.state) for c in result.candidates] == [list("abc"), list("bca")]


def test_with_a_policy_that_does_not_listen_it_is_best_of_n():
    for seed in range(20):
        mine, other = (
            run(random_reward(), attempts=4, seed=seed),
            run(random_reward(), method=best_of_n, n=4, seed=seed),
        )
        assert [(commands_of(c.state), c.score) for c in mine.candidates] == [
            (commands_of(c.state), c.score) for c in other.candidates
        ]
        assert mine.chosen == other.chosen


def test_what_it_costs():
    meter = Meter()
    run(meter.reward_model(constant_reward()), meter.policy(uniform_policy("abc")), attempts=3)
    assert (meter.total().policy_turns, meter.total().reward_states) == (9, 9)


def test_lost_attempts_are_counted_and_the_next_is_told_of_the_others():
    policy, read = spell("a", "b", "c")
    result = run(constant_reward(0.5), policy, ScriptedEnvironments(ends=["a", "c"], broken=["b"]))
    assert [c.sample for c in result.candidates] == [0, 2]
    assert result.counts["faults"] == 1
    assert "1. a (0.50)" in read[2]
    with pytest.raises(TaskFailure, match="all 2 samples"):
        run(constant_reward(), spell("a", "a")[0], ScriptedEnvironments(ends=[], broken=["a"]), attempts=2)


def test_a_missing_score_is_told_as_unknown_and_never_wins():
    policy, read = spell("abc", "bca", "ccc")
    result = run(worth({"abc": math.nan, "bca": 0.1, "ccc": math.nan}), policy)
    assert result.chosen == 1
    assert "3. c (unknown)\nThe judge gave this attempt unknown. The task" in read[1]


def test_long_attempts_are_told_in_part():
    state = State(TASK, "goal", outcome=Outcome("start"))
    for i in range(COMMANDS + 2):
        state = walk(state, "Action: " + "x" * (CHARACTERS + 1 if i == 0 else 1), "seen")
    lines = note(Candidate(state, 0.5, (0.5,) * (COMMANDS + 2))).splitlines()
    assert lines[1] == f"1. {'x' * CHARACTERS}... (0.50)"
    assert lines[COMMANDS : COMMANDS + 2] == [f"{COMMANDS}. x (0.50)", "and 2 more"]


def test_bad_options_are_refused():
    with pytest.raises(UserError, match="at least 1 attempt, got 0"):
        run(constant_reward(), attempts=0)
    with pytest.raises(UserError, match="median"):
        run(constant_reward(), aggregate="median")
