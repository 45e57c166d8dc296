"""What an episode adds to an engine: parsing, the step budget, monotone progress, success, going back."""

import dataclasses

import pytest

from agentrm_jax.envs.pool.episode import COMMAND_LIMIT, OBSERVATION_LIMIT, Episode, GarbageError, observation_limit
from agentrm_jax.testing import toy_env
from agentrm_jax.text import clean
from agentrm_jax.types import EngineStep, Outcome, Start, UserError


class Script:
    """An engine that answers from a list, whatever it is told."""

    def __init__(self, *answers):
        self.answers = answers
        self.commands = []

    def reset(self, task):
        self.commands = []
        return Start("goal", "start")

    def step(self, command):
        self.commands.append(command)
        return self.answers[len(self.commands) - 1]

    def snapshot(self):
        return list(self.commands)

    def restore(self, snapshot):
        self.commands = list(snapshot)

    def close(self):
        pass


def episode(*answers, max_steps=10, **changes):
    e = Episode(Script(*answers), dataclasses.replace(toy_env.SPEC, **changes))
    e.reset(toy_env.make_task(max_steps=max_steps))
    return e


def toy(task):
    e = Episode(toy_env.ToyEnv({}), toy_env.SPEC)
    return e, e.reset(task)


def play(e, word):
    return [e.step(f"Thought: hm\nAction: {letter}") for letter in word]


def test_a_whole_episode():
    e, start = toy(toy_env.make_task())
    assert start.observation == 'The word is "".'
    *_, last = play(e, "bbb")
    assert last == Outcome('Observation: The word is "bbb".', 0.965, 1.0, True, True, True, "b")


def test_an_ended_episode_takes_no_further_turn():
    e, _ = toy(toy_env.make_task())
    play(e, "aaa")
    with pytest.raises(ValueError, match="over"):
        e.step("Action: a")


def test_done_is_not_success():
    e, _ = toy(toy_env.make_task())
    last = play(e, "aaa")[-1]
    assert (last.done, last.success, last.reward) == (True, False, 0.077)


def test_success_needs_no_done_and_counts_from_the_threshold_on():
    e = episode(EngineStep("x", 0.69, 0), EngineStep("x", 0.7, 0), success_threshold=0.7)
    assert [(o.success, o.done) for o in play(e, "ab")] == [(False, False), (True, False)]


def test_a_turn_without_action_costs_a_step_and_leaves_the_engine_alone():
    e = episode(EngineStep("x", 0.5, 0.5), max_steps=3)
    first, wasted = e.step("Action: a"), e.step("I would rather talk.")
    assert e.environment.commands == ["a"]
    assert wasted == Outcome("Observation: " + toy_env.SPEC.invalid_format, 0.5, 0.5, False, False, False, None)
    assert first.valid
    assert e.step("still no").done


def test_a_command_the_engine_refuses_costs_a_step_too():
    e = episode(EngineStep("no", 0, 0, False, False), max_steps=1)
    outcome = e.step("Action: fly")
    assert (outcome.valid, outcome.parsed, outcome.done) == (False, "fly", True)


@pytest.mark.parametrize(("rule", "reward"), [("keep", 0.95), ("zero", 0.0)])
def test_reward_of_an_episode_that_ran_out_of_steps(rule, reward):
    e = episode(EngineStep("x", 0.95, 1), EngineStep("x", 0.95, 1), max_steps=2, exhausted_reward=rule)
    first, last = play(e, "aa")
    assert first.reward == 0.95
    assert (last.reward, last.done, last.success) == (reward, True, reward > 0.9)


def test_an_episode_that_ends_on_its_last_step_did_not_run_out():
    e = episode(EngineStep("x", 0.95, 1, over=True), max_steps=1, exhausted_reward="zero")
    assert e.step("Action: a").reward == 0.95


def test_progress_never_falls_and_reward_may():
    e = episode(EngineStep("x", 0.5, 0.6), EngineStep("x", 0.2, 0.1))
    assert [(o.reward, o.progress) for o in play(e, "ab")] == [(0.5, 0.6), (0.2, 0.6)]


def test_multiline_commands_reach_the_engine_whole():
    e = episode(EngineStep("x", 0, 0), multiline=True)
    e.step("Action:\n```sql\nSELECT a\nFROM b\n```")
    assert e.environment.commands == ["SELECT a\nFROM b"]


def test_restoring_puts_engine_and_counters_back_any_number_of_times():
    e, _ = toy(toy_env.make_task(max_steps=3))
    e.step("no action")
    there = e.snapshot()
    futures = []
    for word in ("ab", "ba", "ab"):
        e.restore(there)
        futures.append(play(e, word))
    assert futures[0] == futures[2] != futures[1]
    assert [o.done for o in futures[0]] == [False, True]  # the wasted turn still counts


def test_a_snapshot_fits_another_episode_of_the_environment():
    one, _ = toy(toy_env.make_task())
    two, _ = toy(toy_env.make_task(5, "x"))
    play(one, "ab")
    two.restore(one.snapshot())
    assert play(two, "c") == play(one, "c")


@pytest.mark.parametrize(
    "answer",
    [
        None,
        EngineStep(None, 0, 0),
        EngineStep("x", float("nan"), 0),
        EngineStep("x", 2, 0),
        EngineStep("x", 0, -1),
        EngineStep("x", "much", 0),
    ],
    ids=repr,
)
def test_answers_that_make_no_sense_are_refused(answer):
    with pytest.raises(GarbageError):
        episode(answer).step("Action: a")


def test_the_engine_and_the_policy_see_clean_text_only():
    e = episode(EngineStep("a \x00 door\r\n\ud83d", 0, 0))
    outcome = e.step("Thought: \ud83d\nAction: open\x00 \udfffdoor\x1b")
    assert e.environment.commands == ["open\ufffd \ufffddoor\ufffd"]
    assert outcome.parsed == "open\ufffd \ufffddoor\ufffd"
    assert outcome.observation == "Observation: a \ufffd door\n\ufffd"


def test_goal_and_first_observation_are_clean_and_bounded():
    class Loud(Script):
        def reset(self, task):
            return Start("win \x07", "x" * 30_000)

    start = Episode(Loud(), toy_env.SPEC).reset(toy_env.make_task())
    assert start.goal == "win \ufffd"
    assert start.observation == clean("x" * 30_000, OBSERVATION_LIMIT)


def test_a_long_observation_keeps_head_and_tail():
    e = episode(EngineStep("BEGIN" + "x" * 50_000 + "END", 0, 0))
    seen = e.step("Action: a").observation
    assert len(seen) == OBSERVATION_LIMIT
    assert seen.startswith("Observation: BEGINx")
    assert seen.endswith("xEND")
    assert "characters left out ...]" in seen


def test_the_limit_of_observations_is_an_option():
    assert observation_limit({}) == OBSERVATION_LIMIT
    assert observation_limit({"observation_limit": "300"}) == 300
    for wrong in (99, -1, "long", True):
        with pytest.raises(UserError, match="observation_limit must be"):
            observation_limit({"observation_limit": wrong})


def test_a_command_that_is_too_long_costs_a_step_and_leaves_the_engine_alone():
    e = episode(EngineStep("x", 0.5, 0.5), max_steps=2)
    e.step("Action: a")
    outcome = e.step("Action: " + "b" * (COMMAND_LIMIT + 1))
    assert e.environment.commands == ["a"]
    assert (outcome.valid, outcome.parsed, outcome.reward, outcome.done) == (False, None, 0.5, True)
    assert len(outcome.observation) < 200
