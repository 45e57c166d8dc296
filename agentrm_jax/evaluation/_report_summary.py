"""What the report's tables and charts show, as JSON."""

import math
from collections.abc import Mapping, Sequence

from agentrm_jax.evaluation import comparison
from agentrm_jax.evaluation.comparison import OVERALL, Row
from agentrm_jax.types import JSON

_POINTS = 400  # of a training curve
_CHARTS = 16  # of one training run
_READERS = ("policy", "reward_model")  # of histories, some of which are too long to be read whole
_X_KEYS = ("step", "_step", "global_step", "iteration")
_FIRST = ("loss", "accuracy", "mse", "spearman", "pairwise", "auc", "ece", "reward", "margin")


def summary_data(found: Sequence[Row], baseline: Row | None) -> JSON:
    """Columns and rows of the summary table, with paired differences to the baseline; None without results."""
    if not found:
        return None
    columns = comparison.columns(found)
    return {
        "columns": columns,
        "baseline": baseline.name if baseline else None,
        "weights": next((dict(row.weights) for row in found if row.weights), None),
        "rows": [
            {
                "name": row.name,
                "kind": row.kind,
                "cells": {name: _cell(row, baseline, name) for name in columns if name in row.cells},
            }
            for row in found
        ],
    }


def _cell(row: Row, baseline: Row | None, column: str) -> JSON:
    kept = ("n", "score", "ci95", "success", "success_ci95", "steps", "failed")
    cell = {key: row.cells[column][key] for key in kept if key in row.cells[column]}
    gain = comparison.difference(row, baseline, column) if baseline is not None else None
    if gain is not None:
        cell["difference"] = {"score": gain.mean, "ci95": [gain.lo, gain.hi]}
    return cell


def curves_data(results: Sequence[Mapping[str, JSON]], found: Sequence[Row]) -> JSON:
    """Curves over the number of samples, by column: name of a line to its points [n, score, lo, hi]."""
    by_column: dict[str, dict[str, list[list[float]]]] = {}
    for result, row in zip(results, _methods(found), strict=True):
        curves = {OVERALL: result.get("n_curve"), **result.get("n_curves", {})}
        for column, curve in curves.items():
            if not curve:
                continue
            lines = by_column.setdefault(column, {})
            lines[row.name] = _line(curve, "best_of_n")
            for reference in ("oracle", "random"):
                line = _line(curve, reference)
                if line not in lines.values():
                    lines[reference if reference not in lines else f"{reference} ({row.name})"] = line
    return by_column


def _methods(found: Sequence[Row]) -> list[Row]:
    """The rows of the results themselves, in the order of the results."""
    return sorted((row for row in found if row.kind == "method"), key=lambda row: row.source)


def _line(curve: Sequence[Mapping[str, JSON]], name: str) -> list[list[float]]:
    return [[p["n"], p[name]["score"], *p[name]["ci95"]] for p in curve if name in p]


def budget_data(results: Sequence[Mapping[str, JSON]], found: Sequence[Row]) -> JSON:
    """What each method spent: rows of name, score, tasks and counts."""
    return [
        {
            "name": row.name,
            "n": result["overall"]["n"],
            "score": result["overall"]["score"],
            "policy": result.get("policy"),
            "reward_model": result.get("reward_model"),
            "spent": {k: v for k, v in result.get("budget", {}).items() if isinstance(v, (int, float))}
            | {
                f"turns left out ({who})": result["dropped_turns"][who] for who in _READERS if "dropped_turns" in result
            },
        }
        for result, row in zip(results, _methods(found), strict=True)
    ]


def blocks_data(results: Sequence[Mapping[str, JSON]], found: Sequence[Row], block: str) -> JSON:
    """One block of every result that has it, by method: `[{"method", "found"}]`."""
    return [
        {"method": row.name, "found": result[block]}
        for result, row in zip(results, _methods(found), strict=True)
        if result.get(block)
    ]


def opinions_data(results: Sequence[Mapping[str, JSON]], found: Sequence[Row]) -> JSON:
    """Judges' position bias and ensembles' disagreement, of the results that have either: `[{"method", "judge"?, "disagreement"?}]`."""
    kinds = ("judge", "disagreement")
    return [
        {"method": row.name, **{kind: result[kind] for kind in kinds if result.get(kind)}}
        for result, row in zip(results, _methods(found), strict=True)
        if any(result.get(kind) for kind in kinds)
    ]


def training_data(runs: Mapping[str, Sequence[Mapping[str, JSON]]]) -> JSON:
    """Charts of training runs: `{"run", "left_out", "charts": [{"name", "x", "lines": {name: [[step, value]]}}]}`.

    Metrics that share their last path component (`train/loss`, `dev/loss`) share a chart. Long curves are thinned.
    """
    return [_run(name, rows) for name, rows in runs.items() if rows]


def _run(name: str, rows: Sequence[Mapping[str, JSON]]) -> JSON:
    x_key = next((key for key in _X_KEYS if any(key in row for row in rows)), None)
    charts: dict[str, dict[str, list[list[float]]]] = {}
    for index, row in enumerate(rows):
        x: JSON = row.get(x_key) if x_key else index
        if not _is_number(x):
            continue
        for key, value in row.items():
            if key not in _X_KEYS and _is_number(value):
                prefix, _, last = key.rpartition("/")
                charts.setdefault(last, {}).setdefault(prefix or last, []).append([x, value])
    kept = {chart: lines for chart, lines in charts.items() if any(len(points) > 1 for points in lines.values())}
    order = sorted(kept, key=lambda chart: next((i for i, word in enumerate(_FIRST) if word in chart), len(_FIRST)))
    return {
        "run": name,
        "left_out": order[_CHARTS:],
        "charts": [
            {"name": chart, "x": x_key or "row", "lines": {k: _thin(v) for k, v in kept[chart].items()}}
            for chart in order[:_CHARTS]
        ],
    }


def _is_number(value: JSON) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _thin(points: Sequence[list[float]]) -> list[list[float]]:
    """At most `_POINTS` points, first and last kept."""
    if len(points) <= _POINTS:
        return list(points)
    return [points[round(i * (len(points) - 1) / (_POINTS - 1))] for i in range(_POINTS)]
