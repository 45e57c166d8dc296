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
    lines = [["method", *columns], ["---"] * (len(columns) + 1)]
    for row in found:
        cells = [_cell(row, reference, column, resamples, seed) for column in columns]
        lines.append([words.get(row.name, row.name), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
    lines = [[f"{row} minus", *columns], ["---"] * (len(columns) + 1)]
    for name in others:
        if name in found and row in found:
            gains = [comparison.difference(found[row], found[name], column, resamples=resamples) for column in columns]
            shown = [f"{_signed(g.mean)} ({_signed(g.lo)} to {_signed(g.hi)})" if g else "" for g in gains]
            lines.append([WORDS.get(name, name), *shown])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
