import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrm_jax.evaluation import statistics
from agentrm_jax.types import UserError

few = st.integers(1, 6)
coarse = st.sampled_from([0.0, 0.25, 0.5, 1.0])  # few values, so that ties are common


def brute_force(scores: list[float], rewards: list[float], n: int) -> float:
    """Mean over all subsets of the mean reward of the subset's best-scored members."""
    kept = [-math.inf if math.isnan(s) else s for s in scores]
    total = []
    for subset in itertools.combinations(range(len(kept)), n):
        top = max(kept[i] for i in subset)
        total.append(np.mean([rewards[i] for i in subset if kept[i] == top]))
    return float(np.mean(total))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.one_of(coarse, st.just(math.nan)), coarse), min_size=1, max_size=7))
def test_best_of_n_is_the_mean_over_all_subsets(samples):
    scores, rewards = map(list, zip(*samples, strict=True))
    ns = range(1, len(samples) + 1)
    expected = [brute_force(scores, rewards, n) for n in ns]
    np.testing.assert_allclose(statistics.best_of_n(scores, rewards, ns), expected, atol=1e-12)


def test_best_of_n_golden_value():
    # Rewards in the order the reward model ranks them; N=2 of M=4.
    got = statistics.best_of_n([4, 3, 2, 1], [0.2, 0.9, 0.5, 0.1], [2])
    np.testing.assert_allclose(got, [0.4833333333], atol=1e-10)


def test_best_of_one_is_the_mean_and_of_all_is_the_top_ranked():
    scores, rewards = [0.1, 0.9, 0.4], [1.0, 0.2, 0.6]
    np.testing.assert_allclose(statistics.best_of_n(scores, rewards, [1, 3]), [0.6, 0.2])


def test_best_of_n_survives_many_samples():
    rewards = np.linspace(0, 1, 2000)
    np.testing.assert_allclose(statistics.best_of_n(rewards, rewards, [1, 2000]), [0.5, 1.0])


@settings(deadline=None)
@given(st.lists(coarse, min_size=1, max_size=8))
def test_oracle_does_not_fall_with_n_and_bounds_any_score(rewards):
    ns = range(1, len(rewards) + 1)
    oracle = statistics.oracle_best_of_n(rewards, ns)
    assert (np.diff(oracle) >= -1e-12).all()
    assert (oracle >= statistics.best_of_n(rewards[::-1], rewards, ns) - 1e-12).all()


@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_pass_at_k_is_the_share_of_subsets_with_a_success(won):
    for k in range(1, len(won) + 1):
        expected = np.mean([any(subset) for subset in itertools.combinations(won, k)])
        assert statistics.pass_at_k(sum(won), len(won), k) == pytest.approx(expected)


@pytest.mark.parametrize("n", [0, 5])
def test_a_subset_larger_than_the_samples_is_refused(n):
    with pytest.raises(ValueError, match="cannot be drawn from 4"):
        statistics.best_of_n([1, 2, 3, 4], [1, 2, 3, 4], [n])


def test_interval_is_reproducible_and_holds_the_mean():
    values = np.random.default_rng(0).uniform(size=40)
    a, b = (statistics.mean_interval(values, resamples=500, seed=3) for _ in range(2))
    assert a == b
    assert a.lo < a.mean < a.hi
    assert a.mean == pytest.approx(values.mean())
    assert a != statistics.mean_interval(values, resamples=500, seed=4)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    experiments = rng.exponential(size=(60, 400))  # 400 experiments of 60 tasks; the true mean is 1
    # Tasks are resampled once for all columns; each column is still an experiment of its own.
    found = statistics.mean_intervals(experiments, resamples=1000, seed=0)
    assert 0.88 < np.mean([e.lo <= 1 <= e.hi for e in found]) < 0.98


def test_interval_has_the_width_of_the_standard_error():
    values = np.random.default_rng(2).normal(size=400)
    found = statistics.mean_interval(values, resamples=4000)
    assert (found.hi - found.lo) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.08)


def test_pairing_removes_what_the_tasks_have_in_common():
    rng = np.random.default_rng(3)
    difficulty = rng.normal(size=80)
    a, b = difficulty + 0.1 + rng.normal(0, 0.05, 80), difficulty + rng.normal(0, 0.05, 80)
    paired = statistics.paired_difference(a, b, resamples=1000)
    alone = statistics.mean_interval(a, resamples=1000)
    assert paired.lo > 0
    assert paired.hi - paired.lo < 0.2 * (alone.hi - alone.lo)
    assert paired.mean == pytest.approx((a - b).mean())


def test_strata_are_resampled_within_themselves():
    # Every environment is constant, so nothing is left to chance although they differ.
    found = statistics.mean_interval([0.0, 0.0, 1.0, 1.0, 1.0], ["a", "a", "b", "b", "b"], resamples=200)
    assert (found.mean, found.lo, found.hi) == pytest.approx((0.6, 0.6, 0.6))


def test_weights_replace_task_counts():
    found = statistics.mean_interval([0.0, 0.0, 1.0], ["a", "a", "b"], {"a": 1, "b": 3, "c": 9}, resamples=50)
    assert found.mean == pytest.approx(0.75)


def test_chunked_resampling_draws_what_one_piece_draws(monkeypatch):
    values = np.random.default_rng(0).uniform(size=(7, 2))
    whole = statistics.bootstrap_means(values, resamples=50, seed=5)
    monkeypatch.setattr(statistics, "_CHUNK", 20)
    np.testing.assert_allclose(statistics.bootstrap_means(values, resamples=50, seed=5), whole)


def test_no_tasks_and_missing_weights_are_refused():
    with pytest.raises(ValueError, match="no tasks"):
        statistics.mean_interval([])
    with pytest.raises(UserError, match="no weight for b"):
        statistics.overall({"a": 1.0, "b": 1.0}, {"a": 1})


COLUMNS = list(statistics.PAPER_WEIGHTS)


@pytest.mark.parametrize(
    ("row", "printed"),
    [
        ([57.8, 51.1, 48.5, 52.1, 22.5, 37.7, 52.0, 76.1, 41.6], 52.7),  # greedy
        ([62.4, 67.7, 50.1, 70.6, 30.0, 33.3, 80.0, 82.1, 43.9], 61.5),  # best of 5, explicit
        ([60.5, 61.8, 35.4, 58.2, 23.3, 26.0, 68.0, 81.2, 38.8], 54.7),  # best of 5, implicit
        ([55.6, 59.0, 29.3, 58.3, 20.3, 22.9, 72.0, 83.1, 41.9], 52.1),  # best of 5, judge
        ([64.4, 72.4, 51.7, 71.2, 29.1, 41.4, 72.0, 79.3, 40.6], 63.3),  # beam 5x5, explicit
        ([57.7, 79.9, 76.9, 64.1, 34.0, 69.8, 76.0, 61.8, 37.6], 65.9),  # gpt-4o
    ],
)
def test_paper_weights_reproduce_the_overall_column_of_table_1(row, printed):
    scores = dict(zip(COLUMNS, row, strict=True))
    assert statistics.overall(scores, statistics.PAPER_WEIGHTS) == pytest.approx(printed, abs=0.1)
