"""How good a reward model is: as a regressor, as a ranker within a task, and as a chooser among samples.

Arrays are parallel and finite, one entry a state (or a trajectory); `groups` holds the task each entry belongs to. A
metric that is not defined on its input (no pair, one class only, a constant) is NaN.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.stats import rankdata as ranks

from agentrm_jax.evaluation import statistics
from agentrm_jax.types import JSON

Array = NDArray[np.float64]

_BLOCK = 512  # rows of a pair matrix held at once
_EPSILON = 1e-9  # so that 0.9 - 0.6 is not "more than 0.3"


def mse(predictions: ArrayLike, targets: ArrayLike) -> float:
    """Mean squared error of predictions [n] against targets [n]."""
    errors = np.asarray(predictions, np.float64) - np.asarray(targets, np.float64)
    return float(np.mean(errors**2)) if errors.size else math.nan


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Linear correlation of x [n] and y [n]; NaN if either is constant."""
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return math.nan if _constant(xs) or _constant(ys) else float(stats.pearsonr(xs, ys).statistic)


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Rank correlation of x [n] and y [n] with mean ranks for ties; NaN if either is constant."""
    return pearson(ranks(x), ranks(y))


def kendall(x: ArrayLike, y: ArrayLike) -> float:
    """Kendall's tau-b of x [n] and y [n] (corrected for ties); NaN if either is constant."""
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return math.nan if _constant(xs) or _constant(ys) else float(stats.kendalltau(xs, ys).statistic)


def within_groups(
    metric: Callable[[Array, Array], float], x: ArrayLike, y: ArrayLike, groups: Sequence[object]
) -> tuple[float, int]:
    """Mean of `metric` over the groups on which it is defined, and their number."""
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    found = [metric(xs[members], ys[members]) for members in members_of(groups)]
    defined = [value for value in found if not math.isnan(value)]
    return (float(np.mean(defined)) if defined else math.nan), len(defined)


def pairwise_accuracy(
    predictions: ArrayLike,
    targets: ArrayLike,
    groups: Sequence[object] | None = None,
    *,
    min_difference: float = 0.3,
) -> tuple[float, int]:
    """Share of pairs that the predictions put in the targets' order, and the number of pairs.

    Pairs lie within one group and differ by more than `min_difference` in target (Table 9 of the paper: 0.3); a tie in
    prediction counts one half. `groups` are tasks, or parent states for sibling pairs (then usually with
    `min_difference=0`); None pairs everything with everything.
    """
    p, t = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    right, pairs = 0.0, 0
    for members in members_of(groups if groups is not None else [0] * len(p)):
        for sp, st in _pair_signs(p[members], t[members], min_difference):
            counted = st != 0
            right += float(((sp * st)[counted] + 1).sum()) / 2
            pairs += int(counted.sum())
    return (right / pairs if pairs else math.nan), pairs


def auc(scores: ArrayLike, success: ArrayLike) -> float:
    """Area under the ROC curve: chance that a success [n] outscores a failure, ties counting one half."""
    s, won = np.asarray(scores, np.float64), np.asarray(success, bool)
    if won.all() or not won.any():
        return math.nan
    wins = stats.mannwhitneyu(s[won], s[~won], method="asymptotic").statistic
    return float(wins / (won.sum() * (~won).sum()))


def scorer_noise(predictions: ArrayLike, targets: ArrayLike, siblings: Sequence[object]) -> float:
    """sigma: standard deviation of the errors p - t of siblings around their group's mean error, pooled over groups of two or more.

    What all siblings have in common does not change which of them is chosen, so it is no noise. Targets that rest on few returns
    are noisy themselves, and that is counted here too: sigma is at most this.
    """
    errors = np.asarray(predictions, np.float64) - np.asarray(targets, np.float64)
    groups = [errors[members] for members in members_of(siblings) if len(members) > 1]
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    return math.sqrt(squares / freedom) if freedom else math.nan


def sibling_gap(targets: ArrayLike, siblings: Sequence[object]) -> float:
    """delta: how much better the best sibling is than the others on average, over the groups in which not all are equal."""
    t = np.asarray(targets, np.float64)
    groups = [t[members] for members in members_of(siblings)]
    gaps = [(len(g) * g.max() - g.sum()) / (len(g) - 1) for g in groups if len(g) > 1 and float(np.ptp(g)) > _EPSILON]
    return float(np.mean(gaps)) if gaps else math.nan


def useful_width(gap: float, noise: float) -> float:
    """The largest number of candidates among which choosing by score still finds better ones: exp(delta^2 / (2 sigma^2)), at least 1.

    The highest of k noises of standard deviation sigma lies about sigma sqrt(2 ln k) above their mean. Once that exceeds the gap
    delta by which a good candidate is better, the highest score is likelier that of a bad one. This is the growth with
    (delta / sigma)^2 of arXiv 2603.15377 ("More Test-Time Compute Can Hurt"); the constant is that of Gaussian noise. It is
    infinite for a scorer without noise.
    """
    if math.isnan(gap) or math.isnan(noise):
        return math.nan
    exponent = 0.5 * (gap / noise) ** 2 if noise > 0 else math.inf
    return math.exp(exponent) if exponent < 700 else math.inf


@dataclasses.dataclass(frozen=True, slots=True)
class Bin:
    """Predictions in [lo, hi): how many, their mean, and the mean of their targets."""

    lo: float
    hi: float
    count: int
    prediction: float
    target: float


def calibration(predictions: ArrayLike, targets: ArrayLike, *, bins: int = 10) -> list[Bin]:
    """Reliability of predictions [n] against targets [n] in equal bins of [0, 1]; empty bins are left out.

    Predictions outside [0, 1] (a linear head may give them) belong to the first or last bin.
    """
    p, t = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    place = np.clip((p * bins).astype(int), 0, bins - 1)
    return [
        Bin(b / bins, (b + 1) / bins, int(here.sum()), float(p[here].mean()), float(t[here].mean()))
        for b in range(bins)
        if (here := place == b).any()
    ]


def expected_calibration_error(table: Sequence[Bin]) -> float:
    """Count-weighted mean of |mean prediction - mean target| over bins."""
    total = sum(b.count for b in table)
    return sum(b.count * abs(b.prediction - b.target) for b in table) / total if total else math.nan


def best_of_n_regret(scores: ArrayLike, rewards: ArrayLike, groups: Sequence[object]) -> float:
    """Mean over tasks of (highest reward - reward of the best-scored sample).

    Ties go to the lowest index and NaN scores rank last, as in the search itself.
    """
    s, r = np.asarray(scores, np.float64), np.asarray(rewards, np.float64)
    s = np.where(np.isnan(s), -np.inf, s)
    lost = [float(r[members].max() - r[members][np.argmax(s[members])]) for members in members_of(groups)]
    return float(np.mean(lost)) if lost else math.nan


def aggregators_table(
    scores: Mapping[str, ArrayLike],
    rewards: ArrayLike,
    groups: Sequence[object],
    *,
    lengths: ArrayLike | None = None,
) -> list[dict[str, JSON]]:
    """One row per way to turn step scores into a trajectory score, over the same samples.

    Args:
      scores: name of the aggregator (last, min, mean, ...) to trajectory scores [n].
      rewards: of the trajectories [n].
      groups: their tasks.
      lengths: their steps [n]; adds the rows `longest` and `shortest`, which any useful score must beat, and every
        score's rank correlation with length.

    Returns: `{"name", "score", "regret", "spearman", "length"}` a row: expected reward of the best-scored sample
      (ties in random order), regret, and mean within-task rank correlations with reward and with length.
    """
    candidates = {name: np.asarray(value, np.float64) for name, value in scores.items()}
    if lengths is not None:
        steps = np.asarray(lengths, np.float64)
        candidates |= {"longest": steps, "shortest": -steps}
    gains = np.asarray(rewards, np.float64)
    return [
        {
            "name": name,
            "score": float(
                np.mean([statistics.best_of_n(s[g], gains[g], [len(g)])[0] for g in members_of(groups)]),
            ),
            "regret": best_of_n_regret(s, gains, groups),
            "spearman": within_groups(spearman, s, gains, groups)[0],
            "length": within_groups(spearman, s, steps, groups)[0] if lengths is not None else math.nan,
        }
        for name, s in candidates.items()
    ]


def reward_model_metrics(
    predictions: ArrayLike,
    targets: ArrayLike,
    groups: Sequence[object],
    *,
    siblings: Sequence[object] | None = None,
    success: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    min_difference: float = 0.3,
    bins: int = 10,
) -> dict[str, JSON]:
    """Everything a reward model's evaluation reports, ready for JSON (NaN is None).

    Args:
      predictions, targets: values [n] of states.
      groups: the task of each state.
      siblings: parent of each state; adds the accuracy on sibling actions, and `scorer_noise`, `sibling_gap` and the
        `useful_width` that they imply for a search that chooses by score.
      success: [n], whether the episode that ended with the state succeeded, NaN where none ended; adds the AUC.
      lengths: steps [n] up to the state; adds the correlation of score and length.

    Returns: `{"metrics": {name: value}, "calibration": [bin, ...]}`. `mse_ratio` is the error relative to that of predicting
      the mean target for all, which has 1.
    """
    table = calibration(predictions, targets, bins=bins)
    accuracy, pairs = pairwise_accuracy(predictions, targets, groups, min_difference=min_difference)
    variance = float(np.var(np.asarray(targets, np.float64)))
    found: dict[str, float] = {
        "states": len(groups),
        "mse": mse(predictions, targets),
        "mse_ratio": mse(predictions, targets) / variance if variance else math.nan,
        "pearson": pearson(predictions, targets),
        "spearman_within_task": within_groups(spearman, predictions, targets, groups)[0],
        "kendall_within_task": within_groups(kendall, predictions, targets, groups)[0],
        "pairwise_accuracy": accuracy,
        "pairs": pairs,
        "ece": expected_calibration_error(table),
    }
    if siblings is not None:
        among = pairwise_accuracy(predictions, targets, siblings, min_difference=0)
        found["sibling_accuracy"], found["sibling_pairs"] = among
        found["scorer_noise"] = scorer_noise(predictions, targets, siblings)
        found["sibling_gap"] = sibling_gap(targets, siblings)
        found["useful_width"] = useful_width(found["sibling_gap"], found["scorer_noise"])
    if success is not None:
        ended = ~np.isnan(np.asarray(success, np.float64))
        found["success_auc"] = auc(np.asarray(predictions)[ended], np.asarray(success)[ended])
    if lengths is not None:
        found["length_correlation"] = within_groups(spearman, predictions, lengths, groups)[0]
    metrics = {name: value if math.isfinite(value) else None for name, value in found.items()}
    return {"metrics": metrics, "calibration": [dataclasses.asdict(b) for b in table]}


def _constant(x: Array) -> bool:
    """Whether x [n] has no two different entries, so that no correlation with it is defined."""
    return x.size == 0 or float(np.ptp(x)) == 0


def members_of(groups: Sequence[object]) -> list[NDArray[np.intp]]:
    """Indices of each group, groups in order of first appearance."""
    found: dict[object, list[int]] = {}
    for index, group in enumerate(groups):
        found.setdefault(group, []).append(index)
    return [np.array(members, np.intp) for members in found.values()]


def _pair_signs(x: Array, y: Array, min_difference: float = 0.0) -> Iterator[tuple[Array, Array]]:
    """Signs of x_i - x_j and y_i - y_j for i > j, in blocks; a difference in y up to `min_difference` has sign 0."""
    for first in range(0, len(x), _BLOCK):
        rows = np.arange(first, min(first + _BLOCK, len(x)))
        lower = rows[:, None] > np.arange(rows[-1] + 1)[None, :]
        dx = x[rows, None] - x[None, : rows[-1] + 1]
        dy = y[rows, None] - y[None, : rows[-1] + 1]
        tolerance = min_difference + _EPSILON if min_difference else 0.0
        yield np.sign(dx) * lower, np.sign(dy) * (np.abs(dy) > tolerance) * lower
