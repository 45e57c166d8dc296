"""Step-level beam search, and lookahead, which is its narrow sibling."""

import asyncio
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrm_jax.search.beam import beam
from agentrm_jax.search.greedy import rollout
from agentrm_jax.search.lookahead import lookahead
from agentrm_jax.testing.inline import InlineEnvironments
from agentrm_jax.testing.scripted import ScriptedEnvironments as Words
from agentrm_jax.testing.scripted import (
    ScriptedPolicy,
    ScriptedRewardModel,
    constant_reward,
    listing_policy,
    optimum_reward,
    random_reward,
    uniform_policy,
)
from agentrm_jax.testing.scripted import word_of as word
from agentrm_jax.testing.scripted import word_reward_model as scores
from agentrm_jax.testing.toy_env import SPEC, make_task, optimum, word_reward
from agentrm_jax.types import Outcome, State, TooLong, UserError

TASK = make_task(4)


def search(envs, reward_model, policy=None, task=TASK, **options):
    return asyncio.run(beam(task, policy or listing_policy("abc"), envs, reward_model, **options))


def test_beam_of_one_and_one_is_sampling_whatever_the_reward_model_says():
    policy = uniform_policy("abc")
    for seed in range(10):
        sampled = asyncio.run(rollout(TASK, policy, InlineEnvironments(SPEC), temperature=0.7, seed=seed))
        found = search(InlineEnvironments(SPEC), random_reward(seed), policy, width=1, branch=1, seed=seed)
        assert [s.action for s in found.state.path()] == [s.action for s in sampled.path()]
        assert found.finished


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("prefix", ["", "x", "7"])
def test_with_exact_values_and_all_actions_the_optimum_is_found(width, prefix):
    task = make_task(4, prefix)
    result = search(InlineEnvironments(SPEC), optimum_reward(), task=task, width=width, branch=3)
    assert result.state.outcome.reward == optimum(task)[1]


def test_only_kept_proposals_are_executed():
    envs = InlineEnvironments(SPEC)
    result = search(envs, optimum_reward(), width=2, branch=3)
    assert envs.steps == 2 * 4
    assert len(result.candidates) == 2
    eager = InlineEnvironments(SPEC)
    same = search(eager, optimum_reward(), width=2, branch=3, execute_first=True)
    assert eager.steps == 3 + 2 * 3 * 3
    assert [word(c.state) for c in same.candidates] == [word(c.state) for c in result.candidates]


def test_executed_first_the_reward_model_sees_the_outcome():
    sighted = ScriptedRewardModel(lambda state: word_reward(TASK, word(state)) if state.outcome else math.nan)
    result = search(InlineEnvironments(SPEC), sighted, width=27, branch=3, execute_first=True)
    assert result.state.outcome.reward == max(c.state.outcome.reward for c in result.candidates) > 0
    assert result.counts["unscored"] == 0


def test_equal_commands_after_one_state_take_one_slot():
    policy = ScriptedPolicy(lambda state, n, temperature, seed: (["a"] * (n - 1) + ["b"])[-n:])
    reward = scores({"a": 1.0, "b": 0.5, "aa": 0.4, "ab": 0.4, "ba": 0.4, "bb": 0.4})
    envs = Words(ends=["aa", "ab", "ba", "bb"])
    result = search(envs, reward, policy, width=2, branch=2)
    assert envs.executed[:2] == ["a", "b"]
    assert result.counts["duplicates"] == 2
    crowded = Words(ends=["aa", "ab"])
    search(crowded, reward, policy, width=2, branch=2, merge_duplicates=False)
    assert crowded.executed[:2] == ["a", "a"]


def test_equal_commands_after_different_states_are_different():
    envs = Words(ends=["aa", "ba"])
    result = search(
        envs, constant_reward(), ScriptedPolicy(lambda s, n, t, seed: "ab" if n == 2 else "a"), width=2, branch=1
    )
    assert sorted(word(c.state) for c in result.candidates) == ["aa", "ba"]


def test_a_finished_trajectory_keeps_its_slot_against_better_live_ones():
    envs = Words(ends=["a"])
    reward = scores({"a": 0.1, "b": 0.2}, default=0.9)
    result = search(envs, reward, listing_policy("ab"), width=2, branch=2)
    assert "a" in [word(c.state) for c in result.candidates]
    assert len(result.candidates) == 2


def test_the_final_pick_is_the_best_score_among_the_finished():
    envs = Words(ends=["a", "ba"])
    for low, expected in [(0.3, "a"), (0.9, "ba")]:
        result = search(envs, scores({"a": 0.5, "b": 0.6, "ba": low}), listing_policy("ab"), width=2, branch=2)
        assert word(result.state) == expected
        assert [word(c.state) for c in result.candidates] == ["a", "ba"]


def test_at_the_step_limit_an_unfinished_trajectory_does_not_win():
    """Some beam searches pool both at the depth limit, where the unfinished one with the higher score wins."""
    envs = Words(ends=["a"])
    reward = scores({"a": 0.1}, default=0.9)
    result = search(envs, reward, listing_policy("ab"), width=2, branch=2, max_steps=2)
    assert [word(c.state) for c in result.candidates] == ["a", "ba"]
    assert [c.score for c in result.candidates] == [0.1, 0.9]
    assert word(result.state) == "a"
    assert result.finished


def test_if_nothing_is_finished_the_best_unfinished_one_is_given_and_flagged():
    result = search(Words(ends=[]), scores({"ab": 0.9}), listing_policy("ab"), width=2, branch=2, max_steps=2)
    assert word(result.state) == "ab"
    assert not result.finished


def test_missing_scores_never_win():
    reward = scores({"a": math.nan, "b": -3.0, "ba": None, "bb": -4.0})
    envs = Words(ends=["aa", "ab", "ba", "bb"])
    result = search(envs, reward, listing_policy("ab"), width=1, branch=2)
    assert word(result.state) == "bb"
    assert result.counts["unscored"] == 2


def test_ties_go_to_the_lowest_slot_and_sample():
    envs = InlineEnvironments(SPEC)
    assert word(search(envs, constant_reward(), width=3, branch=3).state) == "aaaa"


def test_the_next_best_takes_the_place_of_a_proposal_that_cannot_be_executed():
    envs = Words(ends=["ba", "bb", "ca", "cb"], broken=["a"])
    reward = scores({"a": 0.9, "b": 0.5, "c": 0.7})
    result = search(envs, reward, width=2, branch=3)
    assert envs.executed[:2] == ["c", "b"]
    assert result.counts["faults"] == 1


def test_when_nothing_can_be_executed_the_trajectory_ends_unfinished():
    envs = Words(ends=[], broken=["aa", "ab", "ac"])
    result = search(envs, scores({"a": 1.0}), width=1, branch=3)
    assert word(result.state) == "a"
    assert not result.finished
    assert result.counts["faults"] == 3


def test_ranking_by_an_aggregate_of_the_steps():
    values = {"a": 0.9, "b": 0.1, "aa": 0.3, "ba": 0.4}
    envs = Words(ends=["aa", "ba"])
    policy = ScriptedPolicy(lambda s, n, t, seed: "ab" if n == 2 else "a")
    assert word(search(envs, scores(values), policy, width=2, branch=1).state) == "ba"
    best = search(envs, scores(values), policy, width=2, branch=1, aggregate="mean")
    assert word(best.state) == "aa"
    assert best.candidates[best.chosen].score == pytest.approx(0.6)
    with pytest.raises(UserError, match="median"):
        search(envs, scores(values), aggregate="median")


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_finished_trajectories_are_never_lost(seed, width, branch):
    """Random ends, random scores, some missing: what has finished stays, and wins over everything unfinished."""

    class Recording(Words):
        finished = 0

        async def step(self, state, action):
            new = await super().step(state, action)
            fate = random.Random(f"{seed}{word(new)}").random()
            done = fate < 0.3
            self.finished += done
            return State(new.task, new.goal, state, action, Outcome("", done=done), new.depth)

    def score(state):
        value = random.Random(f"score{seed}{word(state)}").random()
        return value if value > 0.1 else math.nan

    envs = Recording(ends=[])
    task = make_task(4, max_steps=4)
    policy = uniform_policy("abc")
    result = search(envs, ScriptedRewardModel(score), policy, task=task, width=width, branch=branch, seed=seed)
    finished = [c for c in result.candidates if c.state.done]
    assert len(finished) == envs.finished
    assert 1 <= len(result.candidates) <= width
    assert result.finished == bool(finished)
    known = [c.score for c in finished if not math.isnan(c.score)]
    if known:
        assert result.candidates[result.chosen].score == max(known)


def test_lookahead_without_rollouts_is_beam_of_width_one():
    policy = uniform_policy("abc")
    for seed in range(10):
        envs, model = InlineEnvironments(SPEC), random_reward(seed)
        ahead = asyncio.run(lookahead(TASK, policy, envs, model, samples=3, seed=seed))
        found = search(InlineEnvironments(SPEC), model, policy, width=1, branch=3, seed=seed)
        assert ahead.counts == found.counts
        assert ahead.candidates[0].step_scores == found.candidates[0].step_scores
        assert [s.action for s in ahead.state.path()] == [s.action for s in found.state.path()]


def test_lookahead_reads_the_score_after_greedy_turns():
    """The first letter is judged by the word that the greedy policy (always `a`) makes of it."""
    envs = InlineEnvironments(SPEC)
    complete = ScriptedRewardModel(lambda state: word_reward(TASK, word(state)))
    result = asyncio.run(lookahead(TASK, listing_policy("abc"), envs, complete, samples=3, depth=3))
    chosen = ""
    while len(chosen) < 4:
        chosen = max((chosen + x for x in "abc"), key=lambda w: word_reward(TASK, w.ljust(4, "a")))
    assert word(result.state) == chosen
    assert result.finished


def test_lookahead_passes_over_what_cannot_be_executed():
    for depth in (0, 1):
        envs = Words(ends=["ba", "bb"], broken=["a", "bb"])
        reward = scores({"a": 0.9, "b": 0.5, "bb": 0.9, "ba": 0.1})
        result = asyncio.run(lookahead(TASK, listing_policy("ab"), envs, reward, samples=2, depth=depth))
        assert word(result.state) == "ba"
        assert result.counts["faults"] == 2
    envs = Words(ends=[], broken=["aa", "ab"])
    stuck = asyncio.run(lookahead(TASK, listing_policy("ab"), envs, scores({"a": 1.0}), samples=2))
    assert word(stuck.state) == "a"
    assert not stuck.finished


def too_long_after(word_):
    """A policy whose window ends after one word, and which lists a, b elsewhere."""

    def choose(state, n, temperature, seed):
        if word(state) == word_:
            raise TooLong("the prompt and one turn alone are too long")
        return list("ab")[:n]

    return ScriptedPolicy(choose)


def test_a_history_that_grew_too_long_gives_up_its_slot_and_what_has_finished_stays():
    reward = scores({"a": 0.9, "b": 0.8, "ba": 0.5, "bb": 0.4})
    result = search(Words(ends=["ba", "bb"]), reward, too_long_after("a"), width=2, branch=2)
    assert [word(c.state) for c in result.candidates] == ["ba", "bb"]
    assert result.counts["faults"] == 1
    stuck = search(Words(ends=[]), reward, too_long_after("a"), width=1, branch=2)
    assert word(stuck.state) == "a"
    assert not stuck.finished


def test_lookahead_stops_where_a_history_grew_too_long():
    stuck = asyncio.run(lookahead(TASK, too_long_after("a"), Words(ends=[]), scores({"a": 1.0}), samples=2))
    assert word(stuck.state) == "a"
    assert not stuck.finished
    assert stuck.counts["faults"] == 1
