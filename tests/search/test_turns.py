"""Seeds, commands and merging."""

import asyncio
import math

import pytest

from agentrm_jax.search.turns import command_of, derive, distinct, is_live, scored, turn_seed
from agentrm_jax.testing.scripted import ScriptedRewardModel, turn
from agentrm_jax.testing.toy_env import make_task
from agentrm_jax.types import Action, Outcome, State

ROOT = State(make_task(), "goal", outcome=Outcome("start"))


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("Thought: I could use Action: go away.\nAction: go to bed 1", "go to bed 1"),
        ("Action:   go\tto  bed 1  ", "go to bed 1"),
        ("Action: one\nAction: two", "one"),
        ("Action: one\nObservation: x\nThought: y\nAction: two", "one"),
        ("<think>\nAction: one\n</think>\nAction:\n```\ntwo\n```", "two"),
        ("**Action:** go", "go"),
        ("Action: go\nObservation: you are there", "go"),
        ("Action: SELECT a\nFROM b", "SELECT a FROM b"),
        ("no marker here", "no marker here"),
    ],
)
def test_command_of(text, command):
    assert command_of(ROOT.propose(Action(text))) == command


def test_distinct_keeps_the_first_of_equal_commands_whatever_was_thought():
    proposals = [ROOT.propose(turn(c, thought)) for c, thought in [("a", "x"), ("b", "x"), ("a", "y")]]
    assert distinct(proposals, command_of) == proposals[:2]


def test_seeds_are_pinned_and_fit_into_31_bits():
    assert derive(0, "a", 1) == derive(0, "a", 1) == 1664263060
    assert all(0 <= derive(s, i) < 2**31 for s in (0, 2**70, -1) for i in range(50))


def test_turn_seeds_differ_between_tasks_samples_and_depths():
    other = State(make_task(prefix="x"), "goal")
    seeds = {
        turn_seed(ROOT, 0, 0),
        turn_seed(ROOT, 0, 1),
        turn_seed(ROOT, 1, 0),
        turn_seed(other, 0, 0),
        turn_seed(ROOT.propose(turn("a")), 0, 0),
    }
    assert len(seeds) == 5


def test_an_episode_is_live_until_it_is_done_or_out_of_steps():
    task = make_task(max_steps=1)
    start = State(task, "goal", outcome=Outcome("start"))
    assert is_live(start)
    assert not is_live(State(task, "goal", outcome=Outcome("end", done=True)))
    assert not is_live(start.propose(turn("a")))


def test_none_becomes_nan_and_a_wrong_number_of_scores_is_an_error():
    states = [ROOT.propose(turn("a")), ROOT.propose(turn("b"))]
    scores = asyncio.run(scored(ScriptedRewardModel(lambda state: None), states))
    assert len(scores) == 2
    assert all(math.isnan(s) for s in scores)

    class Short(ScriptedRewardModel):
        async def score(self, states):
            return [0.0]

    with pytest.raises(RuntimeError, match="1 scores for 2 states"):
        asyncio.run(scored(Short(lambda state: 0), states))
