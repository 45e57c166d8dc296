"""Choices that need no reward model, by hand."""

import dataclasses

import pytest

from agentrm_jax.evaluation import results, rules
from agentrm_jax.evaluation.rules import Sample
from tests.evaluation.test_results import RECORDS, build


def bought(reward, answer, steps=5):
    return Sample(0.5, reward, reward == 1, reward, steps, answer is not None, answer)


def test_majority_takes_what_most_samples_answered():
    samples = [bought(0.2, "B01 red"), bought(1.0, "B02 blue"), bought(0.25, "B01 red"), bought(0.9, None)]
    assert rules.majority(samples) == [samples[0], samples[2]]


def test_votes_that_are_even_leave_all_of_them_and_a_sample_without_an_answer_has_none():
    samples = [bought(0.2, "a"), bought(1.0, "b"), bought(0.0, None), bought(0.0, None)]
    assert rules.majority(samples) == samples[:2]
    assert rules.majority(samples[2:]) == samples[2:]


def test_which_rules_there_are_depends_on_what_samples_say():
    assert list(rules.rules([[Sample(0.1, 1.0, True)]])) == ["random"]
    assert list(rules.rules([[bought(1.0, None)]])) == ["random", "shortest", "longest", "ended"]
    assert list(rules.rules([[bought(1.0, "a")]])) == ["random", "shortest", "longest", "ended", "majority"]


def test_majority_is_a_row_of_the_environments_that_have_answers():
    voted = [bought(0.2, "a"), bought(0.2, "a"), bought(1.0, "b")]
    silent = [bought(0.5, None), bought(0.7, None)]
    records = [dataclasses.replace(RECORDS[0], samples=voted), dataclasses.replace(RECORDS[2], samples=silent)]
    rows = build(records)["rows"]
    assert rows["majority"]["scores"] == pytest.approx({"maze/1": 0.2})
    assert set(rows["majority"]["tasks"]) == {"maze"}
    assert "overall" not in rows["majority"]
    assert "majority" in results.table(build(records))


def test_samples_that_scores_let_be_drawn_are_in_no_row_but_the_oracle():
    """Adaptive best-of-n stopped at its second sample because the score was good: the mean of both says too much of the policy."""
    early = [bought(0.0, "a"), bought(1.0, "b")]
    late = [bought(0.5, "a"), bought(0.3, "b"), bought(0.1, "b")]
    records = [dataclasses.replace(RECORDS[0], samples=early), dataclasses.replace(RECORDS[1], samples=late)]
    found = build(records, method="adaptive", independent=1)
    assert list(found["rows"]) == ["random", "oracle"]
    assert found["rows"]["random"]["scores"] == {"maze/1": 0.0, "maze/2": 0.5}
    assert found["rows"]["oracle"]["scores"] == {"maze/1": 1.0, "maze/2": 0.5}
    assert "n_curve" not in found


def test_the_ends_of_a_search_have_no_curve():
    found = build(method="beam", independent=0)
    assert "n_curve" not in found
    assert {"random", "oracle"} <= set(found["rows"])
