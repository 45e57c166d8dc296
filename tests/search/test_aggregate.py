"""Aggregation of step scores and ranking of candidates."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrm_jax.search.aggregate import aggregate, missing, rank
from agentrm_jax.types import UserError

NAN = math.nan


@pytest.mark.parametrize(
    ("how", "score"), [("last", 0.2), ("min", 0.2), ("mean", 0.5), ("sum", 1.5), ("prod", 0.08), ("max", 0.8)]
)
def test_each_aggregator(how, score):
    assert aggregate([0.5, 0.8, 0.2], how) == pytest.approx(score)


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=6))
def test_a_product_is_one_of_probabilities(scores):
    found = aggregate(scores, "prod")
    assert 0 <= found <= min(1.0, *(max(s, 0.0) for s in scores))
    assert aggregate([*scores, 1.7], "prod") == found  # as good as certain
    assert aggregate([*scores, -0.1], "prod") == 0.0


def test_two_bad_steps_make_no_good_trajectory():
    paths = [(-0.9, -0.9), (0.6, 0.7)]
    assert rank([aggregate(path, "prod") for path in paths]) == [1, 0]


def test_sum_of_single_rewards_is_the_last_of_the_accumulated_ones():
    assert aggregate([0.1, -0.3, 0.4], "sum") == pytest.approx(aggregate([0.1, -0.2, 0.2], "last"))


def test_a_missing_score_that_is_needed_makes_the_aggregate_missing():
    assert math.isnan(aggregate([None, 0.3], "mean"))
    assert math.isnan(aggregate([0.3, NAN], "max"))
    assert math.isnan(aggregate([], "sum"))


def test_last_does_not_need_the_others():
    assert aggregate([NAN, None, 0.3], "last") == 0.3


def test_unknown_name_is_the_users_to_mend():
    with pytest.raises(UserError, match=r"median.*last, min"):
        aggregate([0.1], "median")


@pytest.mark.parametrize(
    ("scores", "order"),
    [
        ([0.1, 0.9, 0.5], [1, 2, 0]),
        ([0.5, 0.5, 0.5], [0, 1, 2]),
        ([NAN, -5.0, None], [1, 0, 2]),
        ([NAN, -math.inf], [1, 0]),
        ([None, NAN], [0, 1]),
        ([0.0, math.inf, 1e30], [1, 2, 0]),
    ],
)
def test_rank_golden(scores, order):
    assert rank(scores) == order


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=True)), max_size=8))
def test_rank_is_a_stable_permutation_with_missing_scores_last(scores):
    order = rank(scores)
    assert sorted(order) == list(range(len(scores)))
    known = order[: len(scores) - missing(scores)]
    for i, j in itertools.pairwise(known):
        assert scores[i] > scores[j] or (scores[i] == scores[j] and i < j)
    assert all(scores[i] is None or math.isnan(scores[i]) for i in order[len(known) :])
