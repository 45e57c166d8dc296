"""Several runs that differ in their seed alone: a folder for each in one workdir, and what they found together."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import ml_collections

from agentrm_jax.data import formats
from agentrm_jax.files import read_json, write_json
from agentrm_jax.run import workdirs
from agentrm_jax.types import JSON

SUMMARY = "seeds.json"


def train(
    config: ml_collections.ConfigDict, workdir: Path, one: Callable[[ml_collections.ConfigDict, Path], None]
) -> None:
    """Trains with `seeds` seeds from `seed` on, each in `workdir/seed-N` by `one`, and writes `seeds.json`: every metric's mean
    and interval over the seeds. What is finished is left alone, so the same command continues.
    """
    import jax

    first = jax.process_index() == 0
    workdirs.compare(config, workdir)
    with workdirs.begun(config, workdir, write=first):
        for seed in range(config.seed, config.seed + config.seeds):
            own = config.copy_and_resolve_references()
            own.seed, own.seeds = seed, 1
            if first:
                print(f"--- seed {seed} ({seed - config.seed + 1} of {config.seeds})", flush=True)
            one(own, folder(workdir, seed))
    if first:
        found = summary([folder(workdir, seed) for seed in range(config.seed, config.seed + config.seeds)])
        write_json(workdir / SUMMARY, found)
        workdirs.finish(workdir, seeds=config.seeds)
        print(f"{config.seeds} seeds: {text(found['metrics'])}; {workdir / SUMMARY}")


def folder(workdir: Path, seed: int) -> Path:
    """Where the run of a seed lies."""
    return workdir / f"seed-{seed}"


def summary(runs: Sequence[Path]) -> dict[str, JSON]:
    """`{"runs": [...], "metrics": {name: {"mean", "lo", "hi", "values"}}}` of finished training runs.

    Metrics are those of `evaluation.json` where a run measured held-out trees, and the last loss of `metrics.jsonl`.
    """
    found = [_metrics(run) for run in runs]
    shared = [name for name in found[0] if all(name in one for one in found)]
    return {
        "runs": [str(run) for run in runs],
        "metrics": {name: interval([one[name] for one in found]) for name in shared},
    }


def interval(values: Sequence[float], level: float = 0.95) -> dict[str, JSON]:
    """Mean of a few independent values [n] with its Student t interval; lo and hi are None for a single one."""
    from scipy import stats

    n, mean = len(values), sum(values) / len(values)
    half = math.nan
    if n > 1:
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
        half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * spread / math.sqrt(n)
    lo, hi = (None, None) if math.isnan(half) else (mean - half, mean + half)
    return {"mean": mean, "lo": lo, "hi": hi, "values": list(values)}


def text(metrics: Mapping[str, JSON]) -> str:
    """The metrics that people compare, in one line."""
    named = ("loss", "mse", "spearman_within_task", "sibling_accuracy", "success_auc")
    parts = []
    for name in (n for n in named if n in metrics):
        m = metrics[name]
        half = "" if m["lo"] is None else f" ± {m['hi'] - m['mean']:.3f}"
        parts.append(f"{name} {m['mean']:.3f}{half}")
    return ", ".join(parts)


def _metrics(run: Path) -> dict[str, float]:
    rows = [row for row in formats.read_jsonl(run / "metrics.jsonl") if row.get("loss") is not None]
    found: dict[str, JSON] = {"loss": rows[-1]["loss"]} if rows else {}
    if (run / "evaluation.json").exists():
        found |= read_json(run / "evaluation.json")["metrics"]
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}
