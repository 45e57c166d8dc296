"""From one record a task to `results.json`: scores with intervals, baseline rows, curves over N, budget.

Layout of a result (all JSON; scores in [0, 1]):

    method, policy, reward_model, measure, weights
    tasks     {environment: cell}, overall: cell
              cell = {n, score, success, ci95: [lo, hi], success_ci95, progress, steps, failed, difference}
    rows      {greedy | random | shortest | longest | ended | majority | oracle: {tasks, overall, scores}}
              each cell as above without progress, steps, failed; without `overall` in a row that has not all environments
    n_curve   [{n, best_of_n, oracle, random, pass}], each but n an {score, ci95}; n_curves the same by environment
    budget    {policy_tokens, reward_tokens, env_steps, seconds, ...}
    records   [{task, env, score, reward, progress, success, steps, failed}], which lets any two results be compared in pairs

`difference` is `{to, score, ci95}`: the paired difference to the greedy row on the tasks both have.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from agentrm_jax.evaluation import rules, statistics
from agentrm_jax.evaluation.comparison import table
from agentrm_jax.evaluation.rules import Rule, Sample
from agentrm_jax.types import JSON, UserError

__all__ = ["Measure", "Sample", "TaskRecord", "build", "curve_sizes", "table"]

Measure = Literal["reward", "progress"]
BUDGET = ("policy_tokens", "reward_tokens", "env_steps", "seconds")


@dataclasses.dataclass(frozen=True, slots=True)
class TaskRecord:
    """What a method achieved on one task.

    Attributes:
      task: `Task.key`.
      env: environment name, the part of `task` before its first slash.
      reward, progress, success: of the episode the method settled on (`Outcome`).
      steps: turns of that episode.
      samples: every episode it chose from, for the rows and curves of a reranking method; None elsewhere.
      failed: environment or policy broke down for good. Such a task stays in every mean, as a score of 0.
    """

    task: str
    env: str
    reward: float
    progress: float
    success: bool
    steps: int
    samples: Sequence[Sample] | None = None
    failed: bool = False


@dataclasses.dataclass(frozen=True)
class _How:
    """Settings every estimate of one result shares."""

    measure: Measure
    weights: Mapping[str, float] | None
    resamples: int
    seed: int
    environments: Sequence[str]


def build(
    records: Sequence[TaskRecord],
    *,
    method: str,
    policy: str,
    budget: Mapping[str, float],
    reward_model: str | None = None,
    baselines: Mapping[str, Sequence[TaskRecord]] | None = None,
    measure: Measure = "reward",
    weights: Mapping[str, float] | None = None,
    ns: Sequence[int] | None = None,
    independent: int | None = None,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
    **extra: JSON,
) -> dict[str, JSON]:
    """The content of `results.json` for one method; see the module's docstring for its layout.

    Args:
      records: one a task.
      budget: `policy_tokens`, `reward_tokens`, `env_steps`, `seconds`, and whatever else was counted.
      baselines: other methods' records on the same tasks; one named `greedy` becomes what differences refer to.
      measure: what `score` is: the episode's outcome reward, or its progress rate.
      weights: environment to weight in `overall` (`statistics.PAPER_WEIGHTS`); by default the plain mean over tasks.
      ns: sizes of the curve; by default `curve_sizes` of the fewest samples any task has.
      independent: how many of a task's samples (the first ones) were drawn from the policy whatever the scores; None is all, 0 is
        none. Curves over n are made of independent samples only.
      resamples, seed: of the bootstrap.
      extra: further JSON entries (`config`, `versions`, ...).

    Raises:
      UserError: no records, two records of one task, or an environment without weight.
      ValueError: the budget lacks an entry.
    """
    if missing := [name for name in BUDGET if name not in budget]:
        raise ValueError(f"budget lacks {', '.join(missing)}")
    how = _How(measure, weights, resamples, seed, list(dict.fromkeys(r.env for r in records)))
    _check(records, method)
    rows = {}
    for name, found in (baselines or {}).items():
        _check(found, name)
        rows[name] = _columns(found, how)
    sampled = all(r.samples or r.failed for r in records) and any(r.samples for r in records)
    if sampled and any(len(r.samples or ()) > 1 for r in records):  # else there was nothing to choose from
        rows |= _sample_rows(records, how, independent)
    main = _columns(records, how)
    greedy = main if method == "greedy" else rows.get("greedy")
    result: dict[str, JSON] = {
        "method": method,
        "policy": policy,
        "reward_model": reward_model,
        "measure": measure,
        "weights": dict(weights) if weights is not None else None,
        **_cells(main, greedy if method != "greedy" else None, how),
        "rows": {
            name: _cells(row, greedy if name != "greedy" else None, how) | {"scores": _scores(row)}
            for name, row in rows.items()
        },
        "budget": dict(budget),
        **(_curves(records, how, ns) if sampled and independent is None else {}),
        **extra,
        "records": [
            {
                "task": r.task,
                "env": r.env,
                "score": _score(r, measure),
                **{name: getattr(r, name) for name in ("reward", "progress", "success", "steps", "failed")},
            }
            for r in records
        ],
    }
    _count(result, records)
    return result


def curve_sizes(m: int) -> list[int]:
    """Subset sizes worth plotting for m samples: all of them up to 16, else powers of two and m itself."""
    if m <= 16:
        return list(range(1, m + 1))
    return sorted({1 << i for i in range(m.bit_length()) if 1 << i <= m} | {m})


class _Column(NamedTuple):
    """One task of one row."""

    env: str
    score: float
    success: float


def _check(records: Sequence[TaskRecord], name: str) -> None:
    if not records:
        raise UserError(f"{name} has no tasks to report: select at least one task")
    seen: set[str] = set()
    for record in records:
        if record.task in seen:
            raise UserError(f"{name} has two records of task {record.task}: give every task once")
        seen.add(record.task)


def _score(record: TaskRecord, measure: Measure) -> float:
    return 0.0 if record.failed else float(getattr(record, measure))


def _columns(records: Sequence[TaskRecord], how: _How) -> dict[str, _Column]:
    return {r.task: _Column(r.env, _score(r, how.measure), float(r.success and not r.failed)) for r in records}


def _gains(record: TaskRecord, how: _How) -> list[float]:
    return [float(getattr(s, how.measure)) for s in record.samples or ()]


def _sample_rows(records: Sequence[TaskRecord], how: _How, independent: int | None) -> dict[str, dict[str, _Column]]:
    """What rules that need no reward model make of the same samples (`rules.rules`), and the best sample, `oracle`.

    `majority` has the environments only whose samples gave answers. If the scores said how many samples were drawn, `random` is over those
    that were drawn whatever the scores, and there is no other rule.
    """
    found = dict(rules.rules([r.samples or () for r in records]))
    if independent:
        found = {"random": lambda samples: samples[:independent]}
    voting = {r.env for r in records if any(s.answer is not None for s in r.samples or ())}
    rows = {
        name: {r.task: _choice(r, rule, how) for r in records if name != "majority" or r.env in voting}
        for name, rule in found.items()
    }
    oracle = {}
    for r in records:
        gains, wins = _gains(r, how), [float(s.success) for s in r.samples or ()]
        oracle[r.task] = _Column(r.env, max(gains, default=0.0), max(wins, default=0.0))
    return rows | {"oracle": oracle}


def _choice(record: TaskRecord, rule: Rule, how: _How) -> _Column:
    """A task under a rule: the mean over what it leaves to choose from; 0 without samples."""
    left = rule(record.samples) if record.samples else ()
    gains, wins = [float(getattr(s, how.measure)) for s in left], [float(s.success) for s in left]
    return _Column(record.env, float(np.mean(gains or [0])), float(np.mean(wins or [0])))


def _scores(row: Mapping[str, _Column]) -> dict[str, float]:
    return {task: column.score for task, column in row.items()}


def _cells(row: Mapping[str, _Column], baseline: Mapping[str, _Column] | None, how: _How) -> dict[str, JSON]:
    """`{"tasks": {environment: cell}, "overall": cell}` of one row."""
    environments = list(dict.fromkeys(column.env for column in row.values()))
    parts = {env: {task: column for task, column in row.items() if column.env == env} for env in environments}
    cells: dict[str, JSON] = {"tasks": {env: _cell(part, baseline, how, None) for env, part in parts.items()}}
    return cells | (
        {"overall": _cell(row, baseline, how, how.weights)} if set(environments) >= set(how.environments) else {}
    )


def _cell(
    row: Mapping[str, _Column],
    baseline: Mapping[str, _Column] | None,
    how: _How,
    weights: Mapping[str, float] | None,
) -> dict[str, JSON]:
    values = np.array([[column.score, column.success] for column in row.values()])
    score, success = statistics.mean_intervals(
        values, [c.env for c in row.values()], weights, resamples=how.resamples, seed=how.seed
    )
    cell: dict[str, JSON] = {
        "n": len(row),
        "score": score.mean,
        "success": success.mean,
        "ci95": [score.lo, score.hi],
        "success_ci95": [success.lo, success.hi],
    }
    common = [task for task in row if baseline is not None and task in baseline]
    if baseline is not None and common:
        difference = statistics.paired_difference(
            [row[task].score for task in common],
            [baseline[task].score for task in common],
            [row[task].env for task in common],
            weights,
            resamples=how.resamples,
            seed=how.seed,
        )
        cell["difference"] = {"to": "greedy", "score": difference.mean, "ci95": [difference.lo, difference.hi]}
    return cell


def _count(result: dict[str, JSON], records: Sequence[TaskRecord]) -> None:
    """Adds progress, steps and failed to the cells of the method itself."""
    cells = [("", result["overall"]), *result["tasks"].items()]
    for env, cell in cells:
        members = [r for r in records if env in ("", r.env)]
        cell["progress"] = math.fsum(0.0 if r.failed else r.progress for r in members) / len(members)
        cell["steps"] = sum(r.steps for r in members) / len(members)
        cell["failed"] = sum(r.failed for r in members)


def _curves(records: Sequence[TaskRecord], how: _How, ns: Sequence[int] | None) -> dict[str, JSON]:
    """Expected score of best-of-n, oracle and random choice over n, from subsets of the samples there are."""
    fewest = min(len(r.samples) for r in records if r.samples)
    sizes = [n for n in ns if n <= fewest] if ns is not None else curve_sizes(fewest)
    if not sizes:
        raise UserError(f"no curve size is at most {fewest}, the fewest samples of a task: lower ns or sample more")
    values = np.zeros((len(records), 4, len(sizes)))
    for index, record in enumerate(records):
        if record.samples:
            gains, wins = _gains(record, how), sum(s.success for s in record.samples)
            values[index, 0] = statistics.best_of_n([s.score for s in record.samples], gains, sizes)
            values[index, 1] = statistics.oracle_best_of_n(gains, sizes)
            values[index, 2] = np.mean(gains)
            values[index, 3] = [statistics.pass_at_k(wins, len(gains), n) for n in sizes]
    environments = np.array([r.env for r in records])
    curves = {"n_curve": _curve(values, environments.tolist(), sizes, how, how.weights)}
    by_env = {
        env: _curve(values[environments == env], [env] * int((environments == env).sum()), sizes, how, None)
        for env in dict.fromkeys(environments.tolist())
    }
    return curves | ({"n_curves": by_env} if len(by_env) > 1 else {})


def _curve(
    values: np.ndarray, strata: Sequence[str], sizes: Sequence[int], how: _How, weights: Mapping[str, float] | None
) -> list[dict[str, JSON]]:
    found = statistics.mean_intervals(
        values.reshape(len(values), -1), strata, weights, resamples=how.resamples, seed=how.seed
    )
    points = [{"score": e.mean, "ci95": [e.lo, e.hi]} for e in found]
    k = len(sizes)
    return [
        {
            "n": n,
            "best_of_n": points[i],
            "oracle": points[k + i],
            "random": points[2 * k + i],
            "pass": points[3 * k + i],
        }
        for i, n in enumerate(sizes)
    ]
