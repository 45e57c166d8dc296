"""What environments need of replies: the command that search merges by, thoughts by pattern, worked examples."""

import dataclasses

import pytest

from agentrm_jax.envs.pool.episode import Episode
from agentrm_jax.envs.react import command_reader, reason, worked
from agentrm_jax.testing import toy_env
from agentrm_jax.types import Action, EngineStep, Message, Outcome, Start, State

TURNS = (
    "Thought: a\nAction: one\nObservation: x\nThought: b\nAction: two",
    "<think>\nAction: one\n</think>\nThought: a. Action: two",
    "Action:\n```text\none\ntwo\n```",
    "- Action 1: `one`<|im_end|>",
    "Action: one\ntwo",
)


class Listener:
    """An engine that notes the command it is given."""

    def reset(self, task):
        return Start("goal", "start")

    def step(self, command):
        self.heard = command
        return EngineStep("ok", 0.0, 0.0, False, True)

    def close(self):
        pass


@pytest.mark.parametrize("multiline", [False, True])
@pytest.mark.parametrize("turn", TURNS, ids=repr)
def test_search_merges_by_the_command_that_the_environment_is_given(turn, multiline):
    spec = dataclasses.replace(toy_env.SPEC, multiline=multiline)
    task = toy_env.make_task()
    engine = Listener()
    episode = Episode(engine, spec)
    episode.reset(task)
    outcome = episode.step(turn)
    state = State(task, "goal", outcome=Outcome("start")).propose(Action(turn))
    assert engine.heard == outcome.parsed == command_reader({task.env: spec})(state)


def test_a_turn_without_a_command_stands_for_itself():
    state = State(toy_env.make_task(), "goal", outcome=Outcome("start")).propose(Action("I do not know"))
    assert command_reader({state.task.env: toy_env.SPEC})(state) == "I do not know"


def test_the_first_pattern_that_matches_the_whole_command_gives_the_thought():
    reasons = [("go (.*)", "to {0}"), ("go north", "never")]
    assert reason("go north", reasons) == "To north"
    assert reason("do not go north", reasons) == ""


def test_a_worked_example_reads_as_the_policy_meets_its_task():
    assert worked("g", "o", [("t", "c", "s")]) == (
        Message("user", "Your task: g\n\no"),
        Message("assistant", "Thought: t\nAction: c"),
        Message("user", "Observation: s"),
    )
