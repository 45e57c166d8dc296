"""Uncertainty over tasks, and exact expectations over subsets of samples. Plain numpy.

The unit of resampling is the task, never the sample or the step: samples of one task are not independent.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agentrm_jax.types import UserError

Array = NDArray[np.float64]

# Weights of the paper's "Overall" column (number of test tasks, Table 8). ToolOperation is 20 and not the 40 printed
# there: with 20 the average reproduces 23 of the 24 complete rows of Tables 1, 4 and 5 to within 0.1, with 40 it is
# off by 0.1 to 0.9.
PAPER_WEIGHTS: Mapping[str, float] = {
    "webshop": 200,
    "alfworld": 134,
    "sciworld": 90,
    "babyai": 112,
    "jericho": 20,
    "pddl": 60,
    "maze": 25,
    "tool_query": 60,
    "tool_operation": 20,
}

RESAMPLES = 10_000
_CHUNK = 1 << 22  # drawn indices held at once


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its percentile bootstrap interval [lo, hi]."""

    mean: float
    lo: float
    hi: float


def bootstrap_means(values: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """Means of tasks drawn with replacement: values [t, k] (t >= 1) to means [resamples, k].

    All k columns share the drawn tasks, so differences between columns are paired.
    """
    columns = np.asarray(values, np.float64)
    n_tasks = columns.shape[0]
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, columns.shape[1]))
    chunk = max(1, _CHUNK // n_tasks)
    for first in range(0, resamples, chunk):
        rows = min(chunk, resamples - first)
        drawn = rng.integers(n_tasks, size=(rows, n_tasks)) + np.arange(rows)[:, None] * n_tasks
        counts = np.bincount(drawn.ravel(), minlength=rows * n_tasks).reshape(rows, n_tasks)
        means[first : first + rows] = counts @ columns / n_tasks
    return means


def mean_intervals(
    values: ArrayLike,
    strata: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> list[Estimate]:
    """Weighted mean of every column of values [t, k] over tasks, with a percentile interval.

    With `strata` (the environment of each task) tasks are resampled within their stratum, because how many tasks an
    environment has is part of the benchmark and not random. `weights` maps a stratum to its weight in the mean; without
    it a stratum weighs as many as it has tasks, which is the plain mean over tasks. A single task gives an interval of
    no width.

    Raises:
      ValueError: there are no tasks.
      UserError: a stratum has no weight.
    """
    columns = np.asarray(values, np.float64)
    if columns.shape[0] == 0:
        raise ValueError("no tasks to average over")
    mean, means = _resampled(columns, strata, weights, resamples, seed)
    tail = 50 * (1 - level)
    lows, highs = np.percentile(means, [tail, 100 - tail], axis=0)
    return [Estimate(float(m), float(lo), float(hi)) for m, lo, hi in zip(mean, lows, highs, strict=True)]


def mean_interval(
    values: ArrayLike,
    strata: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """`mean_intervals` for one column, values [t]."""
    column = np.asarray(values, np.float64)[:, None]
    return mean_intervals(column, strata, weights, resamples=resamples, seed=seed, level=level)[0]


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    strata: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Mean of a - b over the same tasks, a and b [t] in the same task order, with its paired bootstrap interval."""
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return mean_interval(difference, strata, weights, resamples=resamples, seed=seed, level=level)


def mean_over_runs(
    values: ArrayLike,
    strata: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Mean of values [t, r] over tasks t and runs r (of training, say), with an interval that knows both kinds of chance.

    Tasks are resampled as in `mean_intervals`, the same ones for all runs, and runs are drawn with replacement on top. With few runs such
    an interval is somewhat too narrow for what runs add: their spread should be shown beside it. One run gives `mean_interval`.

    Raises:
      UserError: a stratum has no weight.
    """
    columns = np.asarray(values, np.float64)
    mean, means = _resampled(columns, strata, weights, resamples, seed)
    runs, names = columns.shape[1], 1 if strata is None else len(set(strata))
    drawn = np.random.default_rng(seed + names).integers(runs, size=(resamples, runs))
    tail = 50 * (1 - level)
    low, high = np.percentile(np.take_along_axis(means, drawn, axis=1).mean(axis=1), [tail, 100 - tail])
    return Estimate(float(mean.mean()), float(low), float(high))


def overall(scores: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Weighted mean of scores per environment; weights are renormalised over the environments present.

    Raises:
      UserError: an environment has no weight.
    """
    shares = _shares(dict.fromkeys(scores, 1), weights)
    return sum(shares[name] * score for name, score in scores.items())


def best_of_n_weights(m: int, n: int) -> Array:
    """Chance [m] that the i-th ranked of m samples is the best of a random subset of n: C(m-i, n-1) / C(m, n)."""
    if not 1 <= n <= m:
        raise ValueError(f"a subset of {n} cannot be drawn from {m} samples")
    total = math.comb(m, n)
    return np.array([math.comb(m - i, n - 1) / total for i in range(1, m + 1)])


def best_of_n(scores: ArrayLike, rewards: ArrayLike, ns: Sequence[int]) -> Array:
    """Expected reward of the best-scored sample of a random subset of size n, for every n: [m], [m] to [len(ns)].

    The expectation runs over all C(m, n) subsets. Samples of equal score are taken to be in random order, so each rank
    of a tie carries the mean reward of the tie (a search itself takes the lowest index). NaN scores rank last, as
    -inf. n=1 is the mean reward; n=m the reward of the best-scored sample.
    """
    kept = np.asarray(scores, np.float64)
    kept = np.where(np.isnan(kept), -np.inf, kept)
    gains = np.asarray(rewards, np.float64)
    _, tie, sizes = np.unique(-kept, return_inverse=True, return_counts=True)
    ranked = np.repeat(np.bincount(tie, weights=gains) / sizes, sizes)
    return np.array([best_of_n_weights(len(ranked), n) @ ranked for n in ns])


def oracle_best_of_n(rewards: ArrayLike, ns: Sequence[int]) -> Array:
    """Expected highest reward of a random subset of size n, for every n: rewards [m] to [len(ns)]."""
    return best_of_n(rewards, rewards, ns)


def pass_at_k(successes: int, m: int, k: int) -> float:
    """Chance that a random subset of k of m samples holds at least one of the `successes`: 1 - C(m-c, k) / C(m, k)."""
    if not (0 <= successes <= m and 1 <= k <= m):
        raise ValueError(f"pass@{k} is not defined for {successes} successes among {m} samples")
    return 1 - math.comb(m - successes, k) / math.comb(m, k)


def _resampled(
    columns: Array, strata: Sequence[str] | None, weights: Mapping[str, float] | None, resamples: int, seed: int
) -> tuple[Array, Array]:
    """Weighted means [k] of columns [t, k], and those [resamples, k] of tasks that are drawn anew within their strata."""
    labels = np.asarray(strata if strata is not None else [""] * columns.shape[0])
    names = [str(name) for name in np.unique(labels)]
    shares = _shares({name: int((labels == name).sum()) for name in names}, weights)
    mean = np.zeros(columns.shape[1])
    means = np.zeros((resamples, columns.shape[1]))
    for index, name in enumerate(names):
        members = columns[labels == name]
        mean += shares[name] * members.mean(0)
        means += shares[name] * bootstrap_means(members, resamples=resamples, seed=seed + index)
    return mean, means


def _shares(sizes: Mapping[str, int], weights: Mapping[str, float] | None) -> dict[str, float]:
    if weights is not None and (missing := sorted(set(sizes) - set(weights))):
        raise UserError(f"no weight for {', '.join(missing)}: add it to the weights, or leave weights out")
    chosen = {name: float(weights[name] if weights is not None else size) for name, size in sizes.items()}
    total = sum(chosen.values())
    return {name: weight / total for name, weight in chosen.items()}
