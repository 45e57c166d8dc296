"""The results of `agentrm_jax.evaluate` for people: Markdown, LaTeX and one HTML page of the same tables."""

import html
import math
from collections.abc import Mapping, Sequence

from agentrm_jax.evaluation.markdown import grid
from agentrm_jax.evaluation.published import Figure
from agentrm_jax.evaluation.reward_data import Row

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b;background:#fff}"
    "table{border-collapse:collapse;margin:1rem 0}th,td{border-bottom:1px solid #ddd;padding:.3rem .8rem;text-align:left}"
    "td.n{text-align:right;font-variant-numeric:tabular-nums}caption{text-align:left;font-weight:600}code{font-size:.9em}"
)


def cell(row: Row | None) -> str:
    """`64.2 [58.1, 70.0]`, in percent; squared and calibration errors too."""
    if row is None or math.isnan(row.value):
        return "-"
    value = f"{100 * row.value:.1f}"
    return value if math.isnan(row.lo) else f"{value} [{100 * row.lo:.1f}, {100 * row.hi:.1f}]"


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of one split's table: a line a metric, a column a scorer, and how many units each metric has."""
    scorers = list(dict.fromkeys(row.scorer for row in rows))
    lines = []
    for metric in dict.fromkeys(row.metric for row in rows):
        of = {row.scorer: row for row in rows if row.metric == metric}
        one = next(iter(of.values()))
        lines.append([metric, f"{one.count} {one.unit}", *(cell(of.get(name)) for name in scorers)])
    return ["%", "of", *scorers], lines


def markdown(splits: Mapping[str, Sequence[Row]], notes: Sequence[str], figures: Sequence[Figure]) -> str:
    """All tables as Markdown."""
    out = []
    for split, rows in splits.items():
        out += [f"### {split}", "", _grid(*cells(rows)), ""]
    if figures:
        out += ["### Published by others", "", _grid(*_published(figures)), ""]
    return "\n".join(out + [f"* {note}" for note in notes]) + "\n"


def latex(splits: Mapping[str, Sequence[Row]]) -> str:
    """All tables as LaTeX (package booktabs)."""
    out = []
    for split, rows in splits.items():
        head, lines = cells(rows)
        out += [f"% {split}", f"\\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}", "\\toprule"]
        out += [_tex(head), "\\midrule", *map(_tex, lines), "\\bottomrule", "\\end{tabular}", ""]
    return "\n".join(out)


def page(title: str, splits: Mapping[str, Sequence[Row]], notes: Sequence[str], figures: Sequence[Figure]) -> str:
    """All tables as one HTML page that loads nothing."""
    e = html.escape
    out = []
    for split, rows in splits.items():
        head, lines = cells(rows)
        out.append(_html(split, head, lines))
    if figures:
        out.append(_html("Published by others", *_published(figures)))
    listed = "".join(f"<li>{e(note)}</li>" for note in notes)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{e(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<h1>{e(title)}</h1>{''.join(out)}<ul>{listed}</ul></html>\n"
    )


def _html(caption: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    e = html.escape
    top = "".join(f'<th scope="col">{e(h)}</th>' for h in head)
    body = "".join(
        "<tr>" + "".join(f"<td{' class=n' if i > 1 else ''}>{e(c)}</td>" for i, c in enumerate(line)) + "</tr>"
        for line in lines
    )
    return f"<table><caption>{e(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _grid(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; what cells say cannot end them."""
    safe = [[text.replace("|", "/") for text in line] for line in (head, *lines)]
    return grid(safe[0], safe[1:])


def _published(figures: Sequence[Figure]) -> tuple[list[str], list[list[str]]]:
    lines = [[f.scorer, f.metric, f"{f.percent:.1f}", f.source] for f in figures]
    return ["scorer", "metric", "%", "source"], lines


_TEX = str.maketrans(
    {c: f"\\{c}" for c in "%&#_${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


def _tex(cells: Sequence[str]) -> str:
    return " & ".join(c.translate(_TEX) for c in cells) + r" \\"
