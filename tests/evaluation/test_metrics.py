import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrm_jax.evaluation import metrics

coarse = st.integers(0, 3).map(float)
pairs = st.lists(st.tuples(coarse, coarse), min_size=2, max_size=12)


def test_mse():
    assert metrics.mse([0.0, 1.0], [0.5, 1.0]) == pytest.approx(0.125)


def test_pearson_by_hand():
    # dx = (-1, 0, 1), dy = (-2, 1, 1): 3 / sqrt(2 * 6)
    assert metrics.pearson([1, 2, 3], [1, 4, 4]) == pytest.approx(3 / math.sqrt(12))
    assert math.isnan(metrics.pearson([0.1, 0.1, 0.1], [1, 2, 3]))
    assert math.isnan(metrics.pearson([], []))


def test_ranks_share_ties():
    assert metrics.ranks([10, 20, 20, 5]).tolist() == [2, 3.5, 3.5, 1]


def test_spearman_by_hand():
    # Without ties 1 - 6 sum d^2 / (n (n^2 - 1)) with d = (0, 1, -1, 0).
    assert metrics.spearman([1, 2, 3, 4], [1, 3, 2, 9]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    # With ties: Pearson of the ranks (1, 2.5, 2.5, 4) and (1, 2, 3, 4).
    assert metrics.spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_kendall_by_hand():
    # 6 pairs, 5 agree and 1 does not.
    assert metrics.kendall([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(4 / 6)
    # tau-b: one pair tied in x, 5 agree: 5 / sqrt(5 * 6).
    assert metrics.kendall([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(5 / math.sqrt(30))
    assert math.isnan(metrics.kendall([1, 1], [1, 2]))


@settings(deadline=None)
@given(pairs)
def test_kendall_is_the_sum_over_pairs(samples):
    sign = lambda v: (v > 0) - (v < 0)  # noqa: E731
    compared = [(sign(a[0] - b[0]), sign(a[1] - b[1])) for a, b in itertools.combinations(samples, 2)]
    agree, nx, ny = (
        sum(f(c) for c in compared) for f in (lambda c: c[0] * c[1], lambda c: c[0] ** 2, lambda c: c[1] ** 2)
    )
    got = metrics.kendall(*zip(*samples, strict=True))
    if nx and ny:
        assert got == pytest.approx(agree / math.sqrt(nx * ny))
    else:
        assert math.isnan(got)


def test_pairs_are_counted_across_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    p, t = rng.uniform(size=40), rng.uniform(size=40)
    whole = metrics.pairwise_accuracy(p, t), metrics.kendall(p, t)
    monkeypatch.setattr(metrics, "_BLOCK", 7)
    assert (metrics.pairwise_accuracy(p, t), metrics.kendall(p, t)) == whole


def test_pairwise_accuracy_counts_clear_pairs_within_a_task():
    predictions = [0.1, 0.9, 0.5, 0.5, 0.2]
    targets = [0.0, 1.0, 0.3, 0.9, 0.0]
    # Task a: (0, 1) right; 0.3 against 0.0 is not more than 0.3; (1, 2) right. Task b: (3, 4) right.
    assert metrics.pairwise_accuracy(predictions, targets, ["a", "a", "a", "b", "b"]) == (1.0, 3)
    # Across tasks a tie in prediction (2, 3) counts one half; (0, 4) has no order.
    accuracy, number = metrics.pairwise_accuracy(predictions, targets)
    assert number == 6
    assert accuracy == pytest.approx((5 + 0.5) / 6)


def test_a_difference_of_the_threshold_is_not_more_than_it():
    assert metrics.pairwise_accuracy([0, 1], [0.6, 0.9])[1] == 0
    assert metrics.pairwise_accuracy([0, 1], [0.6, 0.9], min_difference=0) == (1.0, 1)


def test_auc_by_hand():
    # Successes score 0.9, 0.4; failures 0.4, 0.1: three wins of four and one tie less half.
    assert metrics.auc([0.9, 0.4, 0.4, 0.1], [True, True, False, False]) == pytest.approx(3.5 / 4)
    assert math.isnan(metrics.auc([0.1, 0.2], [True, True]))
    assert metrics.auc([0.5, 0.5, 0.5], [True, False, False]) == 0.5


def test_calibration_bins_and_error():
    bins = metrics.calibration([0.05, 0.15, 0.95, 1.3], [0.0, 1.0, 1.0, 1.0], bins=2)
    assert [(b.count, b.prediction, b.target) for b in bins] == [(2, 0.1, 0.5), (2, 1.125, 1.0)]
    assert metrics.expected_calibration_error(bins) == pytest.approx(0.5 * 0.4 + 0.5 * 0.125)
    assert len(metrics.calibration([-0.2, 0.99], [0, 1])) == 2


def test_regret_follows_the_search_in_ties_and_nan():
    # Task a: the tie goes to the first sample, which gives up 0.4; task b: NaN never wins, nothing is given up.
    scores, rewards = [1.0, 1.0, math.nan, 0.0], [0.5, 0.9, 0.2, 0.7]
    assert metrics.best_of_n_regret(scores, rewards, ["a", "a", "b", "b"]) == pytest.approx(0.2)


def test_aggregators_are_compared_on_the_same_samples():
    rewards, groups = [0.0, 1.0, 0.2, 0.6], ["a", "a", "b", "b"]
    rows = metrics.aggregators_table({"last": rewards, "mean": [1, 0, 0, 0]}, rewards, groups, lengths=[3, 5, 9, 2])
    by_name = {row["name"]: row for row in rows}
    assert list(by_name) == ["last", "mean", "longest", "shortest"]
    assert by_name["last"]["score"] == pytest.approx(0.8)
    assert by_name["last"]["regret"] == pytest.approx(0)
    assert by_name["last"]["spearman"] == pytest.approx(1)
    assert by_name["last"]["length"] == pytest.approx(0)  # +1 in one task, -1 in the other
    assert by_name["mean"]["score"] == pytest.approx((0 + 0.4) / 2)  # a tie is a coin toss
    assert by_name["longest"]["score"] == pytest.approx((1 + 0.2) / 2)


def test_a_perfect_reward_model_has_perfect_metrics():
    value = np.tile([0.05, 0.45, 0.95], 4)
    tasks = np.repeat(list("abcd"), 3).tolist()
    found = metrics.reward_model_metrics(
        value, value, tasks, siblings=tasks, success=value > 0.9, lengths=[3, 2, 1] * 4
    )
    expected = {
        "states": 12, "mse": 0, "mse_ratio": 0, "pearson": 1, "spearman_within_task": 1, "kendall_within_task": 1, "pairwise_accuracy": 1,
        "pairs": 12, "sibling_accuracy": 1, "sibling_pairs": 12, "success_auc": 1, "ece": 0, "length_correlation": -1,
        "scorer_noise": 0, "sibling_gap": 0.7, "useful_width": None,
    }  # fmt: skip
    assert found["metrics"] == pytest.approx(expected)
    assert sum(b["count"] for b in found["calibration"]) == 12


def test_the_error_of_the_mean_is_the_variance():
    targets = [0.0, 0.2, 1.0]
    found = metrics.reward_model_metrics([0.4] * 3, targets, ["a"] * 3)["metrics"]
    assert found["mse_ratio"] == pytest.approx(1)
    assert found["mse"] == pytest.approx(np.var(targets))


def test_only_ended_episodes_count_as_successes_and_failures():
    success = [math.nan, 0.0, 1.0, math.nan]
    found = metrics.reward_model_metrics([0.9, 0.2, 0.1, 0.0], [0.0] * 4, ["a"] * 4, success=success)
    assert found["metrics"]["success_auc"] == 0


def test_undefined_metrics_are_null_in_json():
    found = metrics.reward_model_metrics([0.5, 0.5], [0.2, 0.2], ["a", "b"], success=[True, True])
    assert found["metrics"]["pearson"] is None
    assert found["metrics"]["success_auc"] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found


# --- How wide a search may choose by a score --------------------------------------------------------------------------


def test_noise_is_what_siblings_do_not_share():
    targets, groups = [0.2, 0.8, 0.5, 0.5, 0.1], ["a", "a", "b", "b", "c"]
    shifted = np.array(targets) + np.array([7, 7, -3, -3, 100])
    assert metrics.scorer_noise(shifted, targets, groups) == pytest.approx(0)
    noisy = shifted + np.array([0.1, -0.1, 0.2, -0.2, 5])
    assert metrics.scorer_noise(noisy, targets, groups) == pytest.approx(math.sqrt((2 * 0.01 + 2 * 0.04) / 2))
    assert math.isnan(metrics.scorer_noise([1.0], [0.0], ["a"]))


def test_the_gap_is_that_of_the_best_sibling_to_the_others_where_they_differ():
    targets, groups = [0.2, 0.8, 0.6, 0.5, 0.5, 0.9], ["a", "a", "a", "b", "b", "c"]
    assert metrics.sibling_gap(targets, groups) == pytest.approx(0.8 - 0.4)
    assert math.isnan(metrics.sibling_gap([0.5, 0.5], ["a", "a"]))


def test_the_useful_width_grows_with_the_square_of_gap_over_noise():
    assert metrics.useful_width(0.4, 0.2) == pytest.approx(math.e**2)
    assert metrics.useful_width(0.0, 0.2) == 1
    assert metrics.useful_width(0.4, 0.0) == math.inf
    assert math.isnan(metrics.useful_width(math.nan, 0.1))
    found = metrics.reward_model_metrics([0.1, 0.9], [0.0, 1.0], ["t", "t"], siblings=["s", "s"])["metrics"]
    assert found["useful_width"] == pytest.approx(metrics.useful_width(found["sibling_gap"], found["scorer_noise"]))
    assert (
        metrics.reward_model_metrics([0.0, 1.0], [0.0, 1.0], ["t", "t"], siblings=["s", "s"])["metrics"]["useful_width"]
        is None
    )


def test_beyond_the_useful_width_a_noisy_score_mostly_picks_a_bad_candidate():
    """One good candidate among k - 1 bad ones, scores with Gaussian noise: below the width it is usually found, far above it is not."""
    rng = np.random.default_rng(0)
    gap, noise = 1.0, 0.5
    width = metrics.useful_width(gap, noise)

    def found(k: int) -> float:
        bad = noise * rng.standard_normal((4000, k - 1)).max(axis=1)
        return float(np.mean(gap + noise * rng.standard_normal(4000) > bad))

    assert found(int(width)) > 0.5 > found(int(30 * width))
