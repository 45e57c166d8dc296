"""Writes one HTML file that shows a whole comparison and needs nothing else: no network, no server, no fonts.

Everything the page draws is in one JSON element of it; the script builds the page from text nodes only, so that whatever
an environment or a model wrote is shown and never interpreted.
"""

import html
import importlib.resources
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from agentrm_jax.evaluation import budgets, comparison
from agentrm_jax.evaluation._report_episodes import trajectories_data, trees_data
from agentrm_jax.evaluation._report_summary import (
    blocks_data,
    budget_data,
    curves_data,
    opinions_data,
    summary_data,
    training_data,
)
from agentrm_jax.types import JSON, SearchTree, Trajectory

_STYLE = ("report.css",)
_SCRIPT = ("report_charts.js", "report_summary.js", "report_values.js", "report_trajectories.js", "report_trees.js")


def write(
    path: Path,
    *,
    title: str,
    results: Sequence[Mapping[str, JSON]] = (),
    baseline: str | None = None,
    trajectories: Sequence[Trajectory] = (),
    trees: Sequence[SearchTree] = (),
    training: Mapping[str, Sequence[Mapping[str, JSON]]] | None = None,
    reward_models: Mapping[str, Mapping[str, JSON]] | None = None,
    provenance: Mapping[str, JSON] | None = None,
    max_trajectories: int = 120,
    max_trees: int = 24,
    max_bytes: int = 12_000_000,
) -> Path:
    """Writes the report and returns its path; parts without data are left out.

    Args:
      path: the HTML file; folders are made.
      title: heading, e.g. "best_of_n on babyai".
      results: contents of `results.json`, one a method.
      baseline: row that differences refer to; `greedy` by default.
      trajectories: `meta` may hold `step_scores` (one a step), `score`, `method`, `sample`, `chosen`, `failed`.
      trees: finished explorations.
      training: name of a run to the rows of its `metrics.jsonl`.
      reward_models: name to the result of `metrics.reward_model_metrics`, plus `aggregators` (`metrics.aggregators_table`).
      provenance: `config`, `commands`, `versions`, or anything else worth keeping; JSON.
      max_trajectories, max_trees, max_bytes: what does not fit is left out, and the page says how much.
    """
    found = comparison.rows(results)
    data = {
        "title": title,
        "summary": summary_data(found, comparison.baseline_of(found, baseline) if found else None),
        "curves": curves_data(results, found),
        "budget": budget_data(results, found),
        "equal_budget": budgets.equal(results) if len(results) > 1 else None,
        "prefixes": blocks_data(results, found, "prefixes"),
        "value_curves": blocks_data(results, found, "value_curves"),
        "opinions": opinions_data(results, found),
        "training": training_data(training or {}),
        "reward_models": dict(reward_models or {}),
        "trajectories": trajectories_data(trajectories, max_trajectories, max_bytes // 2),
        "trees": trees_data(trees, max_trees, max_bytes // 2),
        "provenance": dict(provenance or {}),
    }
    plain = comparison.table(*results, baseline=baseline) if results else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(_page(data, plain), encoding="utf-8")
    os.replace(draft, path)
    return path


def script_json(data: JSON) -> str:
    """JSON that can stand inside a script element: pure ASCII, no `<`, `>` or `&`; NaN and infinities become null."""
    text = json.dumps(_finite(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: JSON) -> JSON:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


def _page(data: Mapping[str, JSON], plain: str) -> str:
    room = importlib.resources.files("agentrm_jax.evaluation")
    parts = {
        "title": html.escape(str(data["title"])).encode("ascii", "xmlcharrefreplace").decode(),
        "style": "\n".join((room / name).read_text("utf-8") for name in _STYLE),
        "plain": html.escape(plain).encode("ascii", "xmlcharrefreplace").decode(),
        "data": script_json(data),
        "script": "\n".join((room / name).read_text("utf-8") for name in _SCRIPT),
    }
    pieces = (room / "report.html").read_text("utf-8").split("%%")
    return "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))
