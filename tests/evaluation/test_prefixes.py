"""Scores of unfinished states against what became of the episode, by hand."""

import math

import pytest

from agentrm_jax.evaluation import prefixes
from agentrm_jax.evaluation.prefixes import Scored


def episodes(*kinds, tasks=prefixes.LEAST):
    """The same samples (scores, reward) for every task."""
    return [Scored(f"shop/{t}", "shop", scores, reward, reward == 1) for t in range(tasks) for scores, reward in kinds]


def test_the_best_prefix_is_worth_what_its_episode_ended_with():
    found = prefixes.measure(episodes(([0.3, 0.9, 0.8], 1.0), ([0.6, 0.1, 0.2], 0.5), ([0.9], 0.7)), resamples=50)[
        "shop"
    ]
    first, second = found["by_step"]
    assert (first["step"], first["tasks"], first["states"]) == (1, 8, 16), (
        "the episode that ended at step 1 is no prefix"
    )
    assert (first["chosen"], first["random"]) == pytest.approx((0.5, 0.75))
    assert first["gain"] == {"score": pytest.approx(-0.25), "ci95": pytest.approx([-0.25, -0.25])}
    assert (first["auc"], first["concordance"]) == (0.0, 0.0)
    assert (second["chosen"], second["auc"], second["concordance"]) == (1.0, 1.0, 1.0)


def test_equal_scores_are_chance():
    [point] = prefixes.measure(episodes(([0.5, 0.1], 1.0), ([0.5, 0.2], 0.0)), resamples=50)["shop"]["by_step"]
    assert (point["chosen"], point["random"], point["auc"], point["concordance"]) == (0.5, 0.5, 0.5, 0.5)


def test_auc_by_steps_to_go_counts_from_the_end():
    found = prefixes.measure(episodes(([0.1, 0.9, 0.5], 1.0), ([0.4, 0.3], 0.0)), resamples=50)["shop"]["to_go"]
    assert [(p["steps"], p["states"], p["successes"]) for p in found] == [(1, 16, 8)]
    assert found[0]["auc"] == 1.0, "0.9 against 0.4"


def test_what_rests_on_too_little_is_left_out():
    few = episodes(([0.3, 0.9], 1.0), ([0.6, 0.1], 0.5), tasks=prefixes.LEAST - 1)
    assert prefixes.measure(few) == {"shop": {"by_step": [], "to_go": []}}
    assert prefixes.measure([Scored("shop/1", "shop", [0.1, math.nan], 1.0, True)]) is None


def test_curves_of_solved_and_failed_episodes_run_from_first_to_last_step():
    found = prefixes.curves(episodes(([0.0, 1.0], 1.0), ([0.4, 0.2, 0.0], 0.0), ([0.7], 0.0)), points=3)["shop"]
    assert found == {
        "solved": [[0.0, 0.0, 8], [0.5, 0.5, 8], [1.0, 1.0, 8]],
        "failed": [[0.0, pytest.approx(0.4), 8], [0.5, pytest.approx(0.2), 8], [1.0, 0.0, 8]],
    }
