"""How a reward model does on labelled data: pairs, steps, outcomes and samples, each beside the rules that need no model.

Every number has an interval over tasks, which are drawn anew as wholes. A score that is missing (NaN) is never right: it wins no
pair, judges no step, and is chosen last; it has no part in an AUC, whose count says so.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from agentrm_jax.data.labels import Labels
from agentrm_jax.evaluation import metrics, statistics
from agentrm_jax.types import JSON, Message

Array = NDArray[np.float64]

RULES = ("random", "shortest", "longest", "always good")
GOOD = 0.5  # a step whose label is higher is a good one
_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a reward model says of one conversation.

    Attributes:
      steps: of every trained turn, NaN where there is none.
      value: of the whole conversation, NaN if there is none.
    """

    steps: tuple[float, ...]
    value: float


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a table: a scorer, what is measured, how much it is, its interval, and over how many units."""

    scorer: str
    metric: str
    value: float
    lo: float
    hi: float
    count: int
    unit: str

    def to_json(self) -> dict[str, JSON]:
        return dataclasses.asdict(self)


def evaluate(
    rows: Sequence[Labels], scores: Sequence[Sequence[Scores]], *, model: str, success: float = 1.0
) -> list[Row]:
    """All measurements that the rows' labels allow, of the model and of the rules beside it.

    Args:
      rows: labelled rows.
      scores: of every conversation of every row.
      model: the name of the model's lines.
      success: the reward from which a conversation counts as solved.
    """
    cases = [_Case(row, tuple(s)) for row, s in zip(rows, scores, strict=True)]
    scorers: dict[str, Callable[[_Case], Sequence[float]]] = {
        model: lambda case: [s.value for s in case.scores],
        "random": lambda case: [0.0] * len(case.scores),  # all alike: ties are broken by chance
        "shortest": lambda case: [-float(n) for n in case.lengths],
        "longest": lambda case: [float(n) for n in case.lengths],
    }
    found: list[Row] = []
    for name, scorer in scorers.items():
        found += _pairs(name, cases, scorer)
    found += _steps(model, cases)
    for name, scorer in scorers.items():
        found += _outcomes(name, cases, scorer, success)
    for name, scorer in scorers.items():
        found += _choices(name, cases, scorer)
    found += _oracle(cases)
    found += _calibrated(model, cases, success)
    return found


def to_go(
    rows: Sequence[Labels], scores: Sequence[Sequence[Scores]], *, success: float = 1.0
) -> dict[int, tuple[float, int]]:
    """AUC of success by steps to go: of the score after the step that is so many before the last one, and of how many conversations."""
    table: dict[int, tuple[float, int]] = {}
    said = [
        (s.steps, c.reward)
        for row, found in zip(rows, scores, strict=True)
        for c, s in zip(row.conversations, found, strict=True)
        if c.reward is not None
    ]
    for left in (0, 1, 2, 4, 8, 16):
        there = [(steps[-1 - left], reward >= success) for steps, reward in said if len(steps) > left]
        there = [(score, won) for score, won in there if not math.isnan(score)]
        area = metrics.auc(*zip(*there, strict=True)) if there else math.nan
        if not math.isnan(area):
            table[left] = (area, len(there))
    return table


@dataclasses.dataclass(frozen=True, eq=False)
class _Case:
    row: Labels
    scores: tuple[Scores, ...]

    @property
    def lengths(self) -> list[int]:
        return [sum(map(_length, c.messages)) for c in self.row.conversations]


def _length(message: Message) -> int:
    """Characters of a message, with those of its calls."""
    return len(message.content) + (len(json.dumps(dict(message.more), default=str)) if message.more else 0)


# --- Pairs -----------------------------------------------------------------------------------------------------------


def _pairs(name: str, cases: Sequence[_Case], scorer: Callable[[_Case], Sequence[float]]) -> list[Row]:
    """Share of pairs whose better side scores higher; a tie is half right."""
    right, tasks = [], []
    for case in cases:
        values = scorer(case) if case.row.pairs else ()
        for pair in case.row.pairs:
            better, worse = values[pair.chosen], values[pair.rejected]
            right.append(0.0 if math.isnan(better + worse) else (np.sign(better - worse) + 1) / 2)
            tasks.append(case.row.task)
    return [_share(name, "pair accuracy", right, tasks, "pairs")] if right else []


# --- Steps -----------------------------------------------------------------------------------------------------------


def _steps(model: str, cases: Sequence[_Case]) -> list[Row]:
    """Steps told apart, and the first bad one found; thresholds are chosen on the other half of the tasks."""
    said = [
        (case.row.task, s.steps, c.steps)
        for case in cases
        for c, s in zip(case.row.conversations, case.scores, strict=True)
        if any(label is not None for label in c.steps)
    ]
    if not said:
        return []
    tasks = [task for task, _, _ in said]
    labels = [[label is not None and label > GOOD for label in of] for _, _, of in said]
    known = [[label is not None for label in of] for _, _, of in said]
    scored = [
        [steps[i] if i < len(steps) else math.nan for i in range(len(of))] for _, steps, of in said
    ]  # a conversation that could not be read has no scores
    flat = [
        (s, good, task)
        for task, score, label, is_known in zip(tasks, scored, labels, known, strict=True)
        for s, good, here in zip(score, label, is_known, strict=True)
        if here
    ]
    found = [_share("always good", "step accuracy", [float(g) for _, g, _ in flat], [t for *_, t in flat], "steps")]
    found.append(_share("random", "step accuracy", [0.5] * len(flat), [t for *_, t in flat], "steps"))
    cut = _crossed(tasks, lambda half: _best_cut([(s, g) for s, g, t in flat if t in half]))
    judged = [float(not math.isnan(s) and (s >= cut[t]) == g) for s, g, t in flat]
    found.insert(0, _share(model, "step accuracy", judged, [t for *_, t in flat], "steps"))
    there = [(s, g, t) for s, g, t in flat if not math.isnan(s)]
    found.append(
        _area(model, "step AUC", [s for s, *_ in there], [g for _, g, _ in there], [t for *_, t in there], "steps")
    )
    firsts = [_first([not g for g in label], is_known) for label, is_known in zip(labels, known, strict=True)]
    cut = _crossed(tasks, lambda half: _best_first(*_only(half, tasks, scored, known, firsts)))
    hits = [
        float(_first_below(score, is_known, cut[task]) == first)
        for task, score, is_known, first in zip(tasks, scored, known, firsts, strict=True)
    ]
    by = {model: hits, "always good": [float(first is None) for first in firsts]}
    by["random"] = [1 / (1 + sum(is_known)) for is_known in known]  # each labelled step or none, alike
    return found + [row for name, hit in by.items() for row in _first_errors(name, hit, firsts, tasks)]


def _first_errors(name: str, hits: Sequence[float], firsts: Sequence[int | None], tasks: Sequence[str]) -> list[Row]:
    """The share of conversations with an error whose first one is found, of those without one that have none, and their F1."""
    wrong = np.array([first is not None for first in firsts])
    got = np.array(hits)
    found = [
        _share(
            name,
            f"first error, {what}",
            got[here].tolist(),
            [t for t, h in zip(tasks, here, strict=True) if h],
            "conversations",
        )
        for what, here in (("with one", wrong), ("without", ~wrong))
        if here.any()
    ]
    if len(found) < 2:
        return found
    groups = metrics.members_of(tasks)

    def f1(drawn: NDArray[np.intp]) -> float:
        a, b = (got[drawn][of[drawn]] for of in (wrong, ~wrong))
        if not a.size or not b.size:
            return math.nan
        return 0.0 if a.mean() + b.mean() == 0 else float(2 * a.mean() * b.mean() / (a.mean() + b.mean()))

    return [*found, _resampled(name, "first error, F1", f1, groups, len(hits), "conversations")]


def _first(bad: Sequence[bool], known: Sequence[bool]) -> int | None:
    return next((i for i, (b, k) in enumerate(zip(bad, known, strict=True)) if k and b), None)


def _first_below(scores: Sequence[float], known: Sequence[bool], cut: float) -> int | None:
    """The first labelled step with a score below a threshold; -1, which is never right, where a score is missing."""
    at = [i for i, here in enumerate(known) if here]
    if any(math.isnan(scores[i]) for i in at):
        return -1
    return next((i for i in at if scores[i] < cut), None)


def _crossed(tasks: Sequence[str], choose: Callable[[set[str]], float]) -> Mapping[str, float]:
    """A number for each task, chosen on the half of the tasks that it is not in; of a single task, on itself."""
    names = sorted(set(tasks))
    halves = [set(names[i::2]) for i in (0, 1)]
    if not halves[1]:
        return dict.fromkeys(names, choose(halves[0]))
    cuts = [choose(half) for half in halves]
    return {name: cuts[1 - i] for i, half in enumerate(halves) for name in half}


def _best_cut(steps: Sequence[tuple[float, bool]]) -> float:
    """The threshold at which most steps are told apart."""
    order = sorted((s, g) for s, g in steps if not math.isnan(s))
    if not order:
        return 0.0
    values = np.array([s for s, _ in order])
    good = np.array([g for _, g in order])
    below = np.concatenate([[0], np.cumsum(~good)])  # bad ones among the k lowest
    above = good.sum() - np.concatenate([[0], np.cumsum(good)])
    edges = np.concatenate([[True], values[1:] > values[:-1], [True]])
    k = int(np.argmax(np.where(edges, below + above, -1)))
    return _between(values, k)


def _best_first(scored: list[list[float]], known: list[list[bool]], firsts: list[int | None]) -> float:
    """The threshold at which the F1 of first errors is highest, of at most 64 that are looked at."""
    values = np.unique([s for score in scored for s in score if not math.isnan(s)])
    if not len(values):
        return 0.0
    cuts = [_between(values, k) for k in np.unique(np.linspace(0, len(values), 64).astype(int))]
    wrong = np.array([first is not None for first in firsts])

    def f1(cut: float) -> float:
        hit = np.array([_first_below(s, k, cut) == f for s, k, f in zip(scored, known, firsts, strict=True)])
        shares = [hit[of].mean() for of in (wrong, ~wrong) if of.any()]
        return len(shares) / sum(1 / max(share, 1e-9) for share in shares)

    return max(cuts, key=f1)


def _between(values: Array, k: int) -> float:
    """A threshold that the k lowest of sorted values are below."""
    if k == 0:
        return -math.inf
    return math.inf if k == len(values) else float((values[k - 1] + values[k]) / 2)


def _only(half: set[str], tasks: Sequence[str], *columns: list) -> list[list]:
    return [[x for x, task in zip(column, tasks, strict=True) if task in half] for column in columns]


# --- Outcomes, and choices among samples -------------------------------------------------------------------------------


def _outcomes(
    name: str, cases: Sequence[_Case], scorer: Callable[[_Case], Sequence[float]], success: float
) -> list[Row]:
    """Chance that a solved conversation scores higher than one that is not, over all tasks."""
    found = [
        (score, c.reward >= success, case.row.task)
        for case in cases
        for c, score in zip(case.row.conversations, scorer(case), strict=True)
        if c.reward is not None and not math.isnan(score)
    ]
    if not found:
        return []
    scores, won, tasks = (list(column) for column in zip(*found, strict=True))
    row = _area(name, "AUC of success", scores, won, tasks, "conversations")
    return [] if math.isnan(row.value) else [row]


def _choices(name: str, cases: Sequence[_Case], scorer: Callable[[_Case], Sequence[float]]) -> list[Row]:
    """Mean reward of the sample of each task that is chosen, and how much less that is than the best one's."""
    samples = _samples(cases, scorer)
    if not samples:
        return []
    chosen = [float(statistics.best_of_n(s, r, [len(r)])[0]) for s, r in samples.values()]
    lost = [float(max(r)) - got for got, (_, r) in zip(chosen, samples.values(), strict=True)]
    return [
        _share(name, "best of n", chosen, list(samples), "tasks"),
        _share(name, "best of n, regret", lost, list(samples), "tasks"),
    ]


def _oracle(cases: Sequence[_Case]) -> list[Row]:
    samples = _samples(cases, lambda case: [0.0] * len(case.scores))
    best = [float(max(r)) for _, r in samples.values()]
    return [_share("oracle", "best of n", best, list(samples), "tasks")] if best else []


def _samples(
    cases: Sequence[_Case], scorer: Callable[[_Case], Sequence[float]]
) -> dict[str, tuple[list[float], list[float]]]:
    """Scores and rewards of the samples of every task with more than one."""
    groups: dict[str, tuple[list[float], list[float]]] = {}
    for case in cases:
        for c, score in zip(case.row.conversations, scorer(case), strict=True):
            if c.reward is not None:
                scores, rewards = groups.setdefault(case.row.task, ([], []))
                scores.append(score)
                rewards.append(c.reward)
    return {task: both for task, both in groups.items() if len(both[0]) > 1}


def _calibrated(model: str, cases: Sequence[_Case], success: float) -> list[Row]:
    """Errors of scores as chances of success, where nearly all of them may be chances."""
    found = [
        (s.value, float(c.reward >= success), case.row.task)
        for case in cases
        for c, s in zip(case.row.conversations, case.scores, strict=True)
        if c.reward is not None and not math.isnan(s.value)
    ]
    scores = np.array([s for s, *_ in found])
    if not found or np.mean((scores >= -0.2) & (scores <= 1.2)) < 0.99:
        return []
    won, tasks = np.array([w for _, w, _ in found]), [t for *_, t in found]
    ece = metrics.expected_calibration_error(metrics.calibration(scores, won))
    return [
        _share(model, "squared error (Brier)", ((scores - won) ** 2).tolist(), tasks, "conversations"),
        Row(model, "calibration error", ece, math.nan, math.nan, len(found), "conversations"),
    ]


# --- Intervals -------------------------------------------------------------------------------------------------------


def _share(name: str, metric: str, values: Sequence[float], tasks: Sequence[Hashable], unit: str) -> Row:
    """The mean of values, whose tasks are drawn anew: a task counts as often as it has values."""
    known = {task: i for i, task in enumerate(dict.fromkeys(tasks))}
    sums = np.zeros((len(known), 2))
    for task, value in zip(tasks, values, strict=True):
        sums[known[task]] += value, 1
    means = statistics.bootstrap_means(sums, resamples=_RESAMPLES)
    lo, hi = np.percentile(means[:, 0] / means[:, 1], [2.5, 97.5])
    return Row(name, metric, float(np.mean(values)), float(lo), float(hi), len(values), unit)


def _area(name: str, metric: str, scores: Sequence[float], won: Sequence[bool], tasks: Sequence[str], unit: str) -> Row:
    s, w = np.array(scores, np.float64), np.array(won, bool)
    return _resampled(
        name, metric, lambda drawn: metrics.auc(s[drawn], w[drawn]), metrics.members_of(tasks), len(s), unit
    )


def _resampled(
    name: str,
    metric: str,
    of: Callable[[NDArray[np.intp]], float],
    groups: Sequence[NDArray[np.intp]],
    count: int,
    unit: str,
) -> Row:
    """A number of all, with the percentiles of what it is on tasks that are drawn anew."""
    if not groups:
        return Row(name, metric, math.nan, math.nan, math.nan, 0, unit)
    rng = np.random.default_rng(0)
    drawn = (rng.integers(len(groups), size=len(groups)) for _ in range(_RESAMPLES // 4))
    values = np.array([of(np.concatenate([groups[i] for i in tasks])) for tasks in drawn])
    values = values[~np.isnan(values)]
    lo, hi = np.percentile(values, [2.5, 97.5]) if values.size else (math.nan, math.nan)
    return Row(name, metric, of(np.concatenate(groups)), float(lo), float(hi), count, unit)
