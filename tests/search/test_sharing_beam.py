"""Beam search that counts unique text: which proposals it takes."""

import asyncio
import math

import pytest

from agentrm_jax.search.beam import beam
from agentrm_jax.search.result import Candidate
from agentrm_jax.search.sharing_beam import by_score_and_text, sharing_beam
from agentrm_jax.testing.inline import InlineEnvironments
from agentrm_jax.testing.scripted import (
    ScriptedEnvironments,
    ScriptedRewardModel,
    constant_reward,
    listing_policy,
    random_reward,
    turn,
    uniform_policy,
    walk,
)
from agentrm_jax.testing.scripted import word_of as word
from agentrm_jax.testing.toy_env import SPEC, make_task
from agentrm_jax.types import Outcome, State, UserError

TASK = make_task(4)
ROOT = State(TASK, "goal", outcome=Outcome("a prompt that all of them share, and that nobody pays for"))


def run(envs, reward_model, policy=None, method=sharing_beam, **options):
    return asyncio.run(method(TASK, policy or listing_policy("ab"), envs, reward_model, **options))


def test_without_weight_it_is_beam_search():
    for seed in range(10):
        ours, plain = (
            run(InlineEnvironments(SPEC), random_reward(seed), uniform_policy("abc"), method, seed=seed, **options)
            for method, options in ((sharing_beam, {"unique_weight": 0.0}), (beam, {}))
        )
        assert [(c.score, word(c.state)) for c in ours.candidates] == [
            (c.score, word(c.state)) for c in plain.candidates
        ]
        assert (ours.chosen, ours.counts) == (plain.chosen, plain.counts)


def test_each_one_is_taken_by_its_score_less_the_text_that_only_it_would_add():
    """Two pasts of 80 characters, each with two turns of 10: 200 in all."""
    past = {name: walk(ROOT, "x" * 30, "y" * 50) for name in "ab"}

    def candidates(**values):
        return [Candidate(past[name[0]].propose(turn(name)), score) for name, score in values.items()]

    assert all(len(c.state.action.text) == 10 for c in candidates(a1=0, b2=0))
    # After a1 another past costs 90 / 200 of the weight, another turn 10 / 200: 0.4 of the weight between them.
    near = candidates(a1=0.9, b1=0.69, a2=0.5, b2=0.1)
    assert by_score_and_text(near, 0.0) == [0, 1, 2, 3]
    assert by_score_and_text(near, 0.4) == [0, 1, 2, 3]  # 0.69 - 0.18 > 0.5 - 0.02
    assert by_score_and_text(near, 0.5) == [0, 2, 1, 3]  # 0.69 - 0.225 < 0.5 - 0.025
    # Once its past is kept anyway, b2 is as cheap as any.
    assert by_score_and_text(candidates(a1=0.9, b1=0.85, a2=0.3, b2=0.5), 0.5) == [0, 1, 3, 2]


def test_ties_go_to_the_better_score_and_missing_scores_are_last():
    scores = [math.nan, 0.2, 0.5, 0.5]
    assert by_score_and_text([Candidate(ROOT.propose(turn("a")), s) for s in scores], 10.0) == [2, 3, 1, 0]
    assert by_score_and_text([], 1.0) == []


def test_with_much_weight_the_trajectories_that_are_kept_part_late():
    values = {"a": 0.9, "b": 0.8, "aa": 0.9, "ab": 0.1, "ba": 0.8, "bb": 0.8}
    reward = ScriptedRewardModel(lambda state: values[word(state)])
    for weight, kept in ((0.0, {"aa", "ba"}), (9.0, {"aa", "ab"})):
        envs = ScriptedEnvironments(ends=["aa", "ab", "ba", "bb"])
        result = run(envs, reward, width=2, branch=2, unique_weight=weight)
        assert {word(c.state) for c in result.candidates} == kept


def test_the_next_in_the_same_order_takes_the_place_of_what_cannot_be_executed():
    values = {"a": 0.9, "b": 0.8, "aa": 0.9, "ab": 0.1, "ba": 0.8, "bb": 0.7}
    envs = ScriptedEnvironments(ends=["aa", "ab", "ba", "bb"], broken=["ab"])
    reward = ScriptedRewardModel(lambda state: values[word(state)])
    result = run(envs, reward, width=2, branch=2, unique_weight=9.0)
    assert {word(c.state) for c in result.candidates} == {"aa", "ba"}
    assert result.counts["faults"] == 1


def test_bad_options_are_refused():
    with pytest.raises(UserError, match="median"):
        run(InlineEnvironments(SPEC), constant_reward(), aggregate="median")
