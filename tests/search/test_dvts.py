"""Diverse verifier tree search: how the first turns are dealt out, and that subtrees do not compete."""

import asyncio
import math

import pytest

from agentrm_jax.search.beam import beam
from agentrm_jax.search.budget import Meter
from agentrm_jax.search.dvts import dvts
from agentrm_jax.testing.inline import InlineEnvironments
from agentrm_jax.testing.scripted import (
    ScriptedEnvironments,
    constant_reward,
    listing_policy,
    optimum_reward,
    random_reward,
    uniform_policy,
)
from agentrm_jax.testing.scripted import word_of as word
from agentrm_jax.testing.scripted import word_reward_model as scores
from agentrm_jax.testing.toy_env import SPEC, make_task, optimum
from agentrm_jax.types import UserError

TASK = make_task(4)


def run(envs, reward_model, policy=None, method=dvts, task=TASK, **options):
    return asyncio.run(method(task, policy or listing_policy("abc"), envs, reward_model, **options))


def record(result):
    return result.chosen, result.counts, [(c.score, [s.action for s in c.state.path()]) for c in result.candidates]


@pytest.mark.parametrize(("width", "branch"), [(1, 1), (1, 4), (2, 3), (4, 2)])
def test_one_subtree_is_a_beam_search(width, branch):
    policy = uniform_policy("abc")
    for seed in range(10):
        options = {"width": width, "branch": branch, "seed": seed, "aggregate": "mean"}
        ours = run(InlineEnvironments(SPEC), random_reward(seed), policy, trees=1, **options)
        assert record(ours) == record(run(InlineEnvironments(SPEC), random_reward(seed), policy, beam, **options))


@pytest.mark.parametrize(("trees", "width"), [(1, 1), (2, 1), (5, 1), (2, 2)])
@pytest.mark.parametrize("prefix", ["", "x", "7"])
def test_with_exact_values_and_all_actions_the_optimum_is_found(trees, width, prefix):
    task = make_task(4, prefix)
    result = run(InlineEnvironments(SPEC), optimum_reward(), task=task, trees=trees, width=width, branch=3)
    assert result.state.outcome.reward == optimum(task)[1]


@pytest.mark.parametrize("prefix", ["", "x", "7"])
def test_with_exact_values_every_subtree_finds_the_best_below_its_own_beginning(prefix):
    task = make_task(4, prefix)
    result = run(InlineEnvironments(SPEC), optimum_reward(), task=task, trees=3, branch=3)
    assert {word(c.state) for c in result.candidates} == {optimum(task, first)[0] for first in "abc"}


def test_a_subtree_that_is_overrated_takes_its_own_slots_only():
    overrated = {"a": 0.9, "aa": 0.9, "ab": 0.8, "b": 0.5, "ba": 0.6, "bb": 0.1}
    ends = ["aa", "ab", "ba", "bb"]
    options = {"policy": listing_policy("ab"), "branch": 2}
    crowded = run(ScriptedEnvironments(ends), scores(overrated), method=beam, width=2, **options)
    assert {word(c.state) for c in crowded.candidates} == {"aa", "ab"}
    result = run(ScriptedEnvironments(ends), scores(overrated), trees=2, **options)
    assert [word(c.state) for c in result.candidates] == ["aa", "ba"]


def test_the_first_turns_are_dealt_out_in_turns_from_the_best_on():
    """Four first turns for two subtrees of two slots: the best and the third best go together."""
    values = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6, "ax": 0, "cx": 0, "bx": 0, "dx": 0}
    policy = listing_policy("abcd")
    envs = ScriptedEnvironments(ends=[f + x for f in "abcd" for x in "abcd"])
    result = run(envs, scores(values), policy, trees=2, width=2, branch=1)
    firsts = [word(c.state)[0] for c in result.candidates]
    assert firsts == ["a", "c", "b", "d"]


def test_subtrees_without_a_beginning_of_their_own_share_one_and_draw_other_turns():
    proposed = []

    def draw(state, n, temperature, seed):
        proposed.append((word(state), seed))
        return ["a"] * n if state.depth == 0 else uniform_policy("abc").choose(state, n, temperature, seed)

    policy = listing_policy("a")
    policy.choose = draw
    result = run(InlineEnvironments(SPEC), random_reward(1), policy, trees=4, branch=2)
    assert len(result.candidates) == 4
    assert len({seed for at, seed in proposed if at == "a"}) == 4
    assert len({word(c.state) for c in result.candidates}) > 1


def test_a_first_turn_that_ends_the_episode_is_not_dealt_again():
    result = run(ScriptedEnvironments(["a", "bb"]), scores({"a": 0.9}), listing_policy("ab"), trees=5, branch=2)
    words = [word(c.state) for c in result.candidates]
    assert words.count("a") == 1
    assert word(result.state) == "a"


def test_it_draws_as_many_turns_as_the_wide_beam():
    spent = []
    for method, options in ((dvts, {"trees": 3, "width": 2}), (beam, {"width": 6})):
        meter = Meter()
        policy = meter.policy(uniform_policy("abcdefgh"))
        envs = meter.environments(ScriptedEnvironments(ends=[]))
        run(envs, meter.reward_model(random_reward()), policy, method, make_task(4), branch=3, **options)
        cost = meter.total()
        spent.append((cost.policy_turns, cost.env_steps))
    assert spent[0] == spent[1]


def test_the_final_pick_is_the_best_score_among_the_finished_of_all_subtrees():
    envs = ScriptedEnvironments(ends=["aa", "bb"], broken=["ca", "cb", "cc"])
    values = {"a": 0.9, "aa": 0.4, "b": 0.5, "bb": 0.6, "c": 1.0}
    result = run(envs, scores(values), trees=3, branch=3)
    assert {word(c.state): c.state.done for c in result.candidates} == {"c": False, "aa": True, "bb": True}
    assert word(result.state) == "bb"
    assert result.counts["faults"] == 3


def test_when_no_first_turn_can_be_executed_the_start_is_given_back_unfinished():
    result = run(ScriptedEnvironments(ends=[], broken=["a", "b", "c"]), constant_reward(), trees=2, branch=3)
    assert [c.state.depth for c in result.candidates] == [0]
    assert not result.finished
    assert result.counts["faults"] == 3


def test_missing_scores_rank_last():
    values = {"a": math.nan, "b": -3.0, "c": None, "ba": math.nan, "bb": -4.0}
    envs = ScriptedEnvironments(ends=["ba", "bb", "bc"])
    result = run(envs, scores(values, default=math.nan), trees=1, branch=3)
    assert word(result.state) == "bb"
    assert result.counts["unscored"] == 2 + 2


def test_bad_options_are_refused():
    with pytest.raises(UserError, match="trees, width and branch of at least 1, got 0, 1 and 5"):
        run(InlineEnvironments(SPEC), constant_reward(), trees=0)
    with pytest.raises(UserError, match="median"):
        run(InlineEnvironments(SPEC), constant_reward(), aggregate="median")
