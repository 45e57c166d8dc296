"""Results as a Markdown table, and the place between two marks of a page where it belongs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from agentrm_jax.evaluation import comparison, statistics
from agentrm_jax.evaluation.comparison import Row
from agentrm_jax.files import write_atomically
from agentrm_jax.types import JSON, UserError

# What rows are called where a reader has not read the manual.
WORDS = {
    "random": "mean of the samples",
    "shortest": "*no model:* shortest sample",
    "longest": "*no model:* longest sample",
    "ended": "*no model:* first sample that ended",
    "majority": "*no model:* what most samples answered",
    "oracle": "oracle of the samples",
}


def table(
    *results: Mapping[str, JSON],
    baseline: str | None = None,
    words: Mapping[str, str] = WORDS,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> str:
    """A row a method, a column an environment: score × 100, its 95 % interval, the paired difference to the baseline row with its own.

    A score is bold where that interval lies above 0.

    Raises:
      UserError: the results are about different task panels, or there is no such baseline.
    """
    found = comparison.rows(results)
    reference, columns = comparison.baseline_of(found, baseline), comparison.columns(found)
    lines = []
    for row in found:
        cells = [_cell(row, reference, column, resamples, seed) for column in columns]
        lines.append([words.get(row.name, row.name), *cells])
    return grid(["method", *columns], lines)


def grid(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Cells as a Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def _cell(row: Row, baseline: Row | None, column: str, resamples: int, seed: int) -> str:
    cell = row.cells.get(column)
    if cell is None:
        return ""
    gain = comparison.difference(row, baseline, column, resamples=resamples, seed=seed) if baseline else None
    score = f"{100 * cell['score']:.1f}"
    text = f"**{score}**" if gain and gain.lo > 0 else score
    text += f" ({100 * cell['ci95'][0]:.1f}, {100 * cell['ci95'][1]:.1f})"
    if gain:
        text += f" [{_signed(gain.mean)}: {_signed(gain.lo)} to {_signed(gain.hi)}]"
    return text


def differences(
    results: Sequence[Mapping[str, JSON]], row: str, others: Sequence[str], *, resamples: int = statistics.RESAMPLES
) -> str:
    """Paired differences of one row to others, as a Markdown table: what it adds to each, by environment."""
    found = {r.name: r for r in comparison.rows(results)}
    columns = comparison.columns(list(found.values()))
    lines = []
    for name in others:
        if name in found and row in found:
            gains = [comparison.difference(found[row], found[name], column, resamples=resamples) for column in columns]
            shown = [f"{_signed(g.mean)} ({_signed(g.lo)} to {_signed(g.hi)})" if g else "" for g in gains]
            lines.append([WORDS.get(name, name), *shown])
    return grid([f"{row} minus", *columns], lines)


def prefixes(result: Mapping[str, JSON], *, points: int = 6) -> str:
    """What the scores of a result knew before episodes were over (`prefixes.measure`), at `points` steps from the first to the last.

    The steps are spread evenly, whatever they show. Empty if the result says nothing of it.
    """
    found = result.get("prefixes") or {}
    head = [
        "environment",
        "after step",
        "tasks",
        "mean of those that go on",
        "best score there",
        "gain",
        "order kept",
        "AUC of success",
    ]
    lines = []
    for env, measured in found.items():
        steps = measured["by_step"]
        places = {round(i * (len(steps) - 1) / max(points - 1, 1)) for i in range(points)} if steps else ()
        for p in (steps[place] for place in sorted(places)):
            gain = p["gain"]
            sure = "**" if gain["ci95"][0] > 0 else ""
            lines.append(
                [
                    env,
                    str(p["step"]),
                    str(p["tasks"]),
                    f"{100 * p['random']:.1f}",
                    f"{100 * p['chosen']:.1f}",
                    f"{sure}{_signed(gain['score'])}{sure} ({_signed(gain['ci95'][0])} to {_signed(gain['ci95'][1])})",
                    "" if p["concordance"] is None else f"{100 * p['concordance']:.0f} %",
                    "" if p["auc"] is None else f"{p['auc']:.2f}",
                ]
            )
    return grid(head, lines) if lines else ""


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def put(path: Path, mark: str, text: str) -> None:
    """Replaces what stands between `<!-- MARK: begin -->` and `<!-- MARK: end -->` of a page.

    Raises:
      UserError: the page has no such marks.
    """
    page = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise UserError(f"{path} has no lines {begin} and {end}, between which the table belongs; add them")
    write_atomically(path, f"{before}{begin}\n{text.strip()}\n{end}{after}")
