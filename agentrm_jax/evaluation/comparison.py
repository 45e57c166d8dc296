"""Puts several `results.json` side by side: named rows, paired differences to a baseline row, a plain-text table."""

import dataclasses
from collections.abc import Mapping, Sequence

from agentrm_jax.evaluation import panels, statistics
from agentrm_jax.types import JSON, UserError

OVERALL = "overall"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a comparison.

    Attributes:
      name: unique among the rows.
      source: index of the result it comes from.
      kind: `method`, or `reference` for what a result carries beside its own (greedy, random, shortest, oracle, ...).
      cells: environment, and `overall`, to a cell of `results`.
      scores: task key to score, empty if the result does not hold them.
      weights: of the environments in `overall`; None is the plain mean over tasks.
      runs: scores of each of several runs whose mean the row is (`repeats.mean_of`); empty for one run.
    """

    name: str
    source: int
    kind: str
    cells: Mapping[str, Mapping[str, JSON]]
    scores: Mapping[str, float]
    weights: Mapping[str, float] | None = None
    runs: Sequence[Mapping[str, float]] = ()


def rows(results: Sequence[Mapping[str, JSON]]) -> list[Row]:
    """Rows of several results: greedy and the rules without a model first, the methods in order, other references (oracle) last.

    A reference with the scores of an earlier row of that name is shown once; otherwise it is named after its method.

    Raises:
      UserError: the results are about different task panels.
    """
    methods = _methods(results)
    panels.check({row.name: results[row.source] for row in methods})
    taken = {row.name: row for row in methods}
    references: list[Row] = []
    for source, (result, method) in enumerate(zip(results, methods, strict=True)):
        for name, row in result.get("rows", {}).items():
            scores = row.get("scores", {})
            known = [r for r in [*methods, *references] if r.name == name or r.name.startswith(f"{name} (")]
            if any(scores and dict(r.scores) == scores for r in known):
                continue
            unique = name if name not in taken else f"{name} ({method.name})"
            cells = {**row["tasks"], **({OVERALL: row["overall"]} if "overall" in row else {})}
            taken[unique] = Row(unique, source, "reference", cells, scores, result.get("weights"))
            references.append(taken[unique])
    place = {"greedy": 0, "random": 1, "shortest": 1, "longest": 1, "ended": 1, "majority": 1}
    first = {id(row): place.get(row.name.split(" (")[0], 3 if row.kind == "reference" else 2) for row in taken.values()}
    return sorted([*methods, *references], key=lambda row: first[id(row)])


def baseline_of(found: Sequence[Row], name: str | None = None) -> Row | None:
    """The row differences refer to: the one named, else `greedy`, else None.

    Raises:
      UserError: there is no row of that name.
    """
    by_name = {row.name: row for row in found}
    if name is not None and name not in by_name:
        raise UserError(f"no row named {name!r} to compare with: choose one of {', '.join(by_name)}")
    return by_name.get(name or "greedy")


def difference(
    row: Row, baseline: Row, column: str, *, resamples: int = statistics.RESAMPLES, seed: int = 0
) -> statistics.Estimate | None:
    """Paired difference of two rows in one column, over the tasks both have; None without common tasks."""
    common = [
        task
        for task in row.scores
        if task in baseline.scores and (column == OVERALL or task.split("/", 1)[0] == column)
    ]
    if not common or row is baseline:
        return None
    mine, other = list(row.runs) or [row.scores], list(baseline.runs) or [baseline.scores]
    if len(mine) != len(other):  # a single run is paired with each of several
        mine, other = (runs * max(len(mine), len(other)) if len(runs) == 1 else runs for runs in (mine, other))
    return statistics.mean_over_runs(
        [[a[task] - b[task] for a, b in zip(mine, other, strict=False)] for task in common],
        [task.split("/", 1)[0] for task in common],
        row.weights if column == OVERALL else None,
        resamples=resamples,
        seed=seed,
    )


def columns(found: Sequence[Row]) -> list[str]:
    """Environments of all rows in order of appearance, then `overall` if there are several."""
    environments = list(dict.fromkeys(name for row in found for name in row.cells if name != OVERALL))
    return environments if len(environments) == 1 else [*environments, OVERALL]


def table(
    *results: Mapping[str, JSON],
    baseline: str | None = None,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> str:
    """Aligned plain text: a line a method, a column an environment, scores times 100 with their 95 % intervals.

    Where two rows have common tasks, a second line gives the paired difference to the baseline row (`greedy` unless
    named otherwise); `*` marks an interval without 0.
    """
    if not results:
        raise UserError("no results to compare: give at least one results.json")
    found = rows(results)
    reference = baseline_of(found, baseline)
    names = columns(found)
    lines: list[list[str]] = [["", *names], ["", *(_sizes(found, name) for name in names)]]
    for row in found:
        lines.append([row.name, *(_cell_text(row.cells.get(name)) for name in names)])
        if reference is not None:
            gains = [difference(row, reference, name, resamples=resamples, seed=seed) for name in names]
            if any(gain is not None for gain in gains):
                lines.append([f"  vs {reference.name}", *(_gain_text(gain) for gain in gains)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(names) + 1)]
    body = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    note = "Scores x 100; [lo, hi]: 95 % bootstrap interval over tasks"
    note += "; vs: paired difference, * if its interval lies off 0." if reference is not None else "."
    return "\n".join([*body, "", note, ""])


def _methods(results: Sequence[Mapping[str, JSON]]) -> list[Row]:
    """One row a result, named by its method, and by reward model, policy or number where that is not unique."""
    candidates = [
        [
            str(r["method"]),
            f"{r['method']} [{r.get('reward_model') or 'no reward model'}]",
            f"{r['method']} [{r.get('reward_model') or 'no reward model'}, {r.get('policy')}]",
            f"{r['method']} #{i + 1}",
        ]
        for i, r in enumerate(results)
    ]
    found = []
    for source, (result, names) in enumerate(zip(results, candidates, strict=True)):
        name = next(n for k, n in enumerate(names) if sum(other[k] == n for other in candidates) == 1)
        scores = {record["task"]: record["score"] for record in result.get("records", [])}
        cells = {**result["tasks"], OVERALL: result["overall"]}
        found.append(Row(name, source, "method", cells, scores, result.get("weights"), result.get("runs", ())))
    return found


def _sizes(found: Sequence[Row], column: str) -> str:
    sizes = sorted({row.cells[column]["n"] for row in found if column in row.cells})
    return "n=" + "..".join(str(size) for size in dict.fromkeys([sizes[0], sizes[-1]]))


def _cell_text(cell: Mapping[str, JSON] | None) -> str:
    if cell is None:
        return "-"
    return f"{100 * cell['score']:5.1f} [{100 * cell['ci95'][0]:5.1f}, {100 * cell['ci95'][1]:5.1f}]"


def _gain_text(gain: statistics.Estimate | None) -> str:
    if gain is None:
        return ""
    mark = "*" if gain.lo > 0 or gain.hi < 0 else ""
    return f"{100 * gain.mean:+5.1f} [{100 * gain.lo:+5.1f}, {100 * gain.hi:+5.1f}]{mark}"
