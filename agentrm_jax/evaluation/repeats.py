"""Several runs of one method that differ in how its reward model was trained (its seed), as one result with an interval over both."""

import statistics as plain
from collections.abc import Mapping, Sequence

from agentrm_jax.evaluation import panels, statistics
from agentrm_jax.types import JSON, UserError

SHARED = ("policy", "measure", "weights", "rows", "panel", "budget", "samples", "config")  # taken from the first run


def mean_of(
    results: Sequence[Mapping[str, JSON]], *, resamples: int = statistics.RESAMPLES, seed: int = 0
) -> dict[str, JSON]:
    """One result of several: every score is the mean over runs, every interval is over tasks and runs (`statistics.mean_over_runs`).

    Curves over n are means too, and their intervals span those of all runs; values of unfinished states are those of the first run.
    Beside what a result has (`results`), it holds `runs`, the scores of every run by task, and `repeats`, [{reward_model, score, tasks:
    {environment: score}}], and its cells hold `spread`, the standard deviation over runs. Its rows and its budget are those of the first:
    runs that rank the same samples share the rules without a model, and each alone costs what one costs.

    Raises:
      UserError: there is one run only, they are of different methods or task panels, or one has not finished a task of the others.
    """
    if len(results) < 2:
        raise UserError("a mean over runs needs two at least")
    if len({r["method"] for r in results}) > 1:
        raise UserError(
            f"these runs are of different methods: {', '.join(dict.fromkeys(r['method'] for r in results))}"
        )
    panels.check({f"{r['method']} [{r.get('reward_model')}]": r for r in results})
    runs = [{record["task"]: record["score"] for record in r["records"]} for r in results]
    first = results[0]
    tasks = [record["task"] for record in first["records"]]
    if any(set(run) != set(tasks) for run in runs):
        raise UserError(f"the runs of {first['method']} are not of the same tasks; finish all of them")
    wins = [{record["task"]: float(record["success"]) for record in r["records"]} for r in results]
    weights = first.get("weights")

    def cell(env: str | None) -> dict[str, JSON]:
        members = [task for task in tasks if env is None or task.split("/", 1)[0] == env]
        strata, of = [task.split("/", 1)[0] for task in members], weights if env is None else None
        score, success = (
            statistics.mean_over_runs(
                [[run[task] for run in values] for task in members], strata, of, resamples=resamples, seed=seed
            )
            for values in (runs, wins)
        )
        place = [r["overall"] if env is None else r["tasks"][env] for r in results]
        return {
            "n": len(members),
            "score": score.mean,
            "success": success.mean,
            "ci95": [score.lo, score.hi],
            "success_ci95": [success.lo, success.hi],
            "spread": plain.stdev(one["score"] for one in place),
        }

    return {
        "method": f"{first['method']}, mean of {len(results)} reward models",
        "reward_model": ", ".join(str(r.get("reward_model")) for r in results),
        **{name: first[name] for name in SHARED if name in first},
        "tasks": {env: cell(env) for env in first["tasks"]},
        "overall": cell(None),
        **_curves(results),
        **{name: first[name] for name in ("prefixes", "value_curves") if first.get(name)},
        "records": [
            {**record, "score": plain.fmean(run[record["task"]] for run in runs)} for record in first["records"]
        ],
        "runs": runs,
        "repeats": [
            {
                "reward_model": r.get("reward_model"),
                "score": r["overall"]["score"],
                "tasks": {env: place["score"] for env, place in r["tasks"].items()},
            }
            for r in results
        ],
    }


def _curves(results: Sequence[Mapping[str, JSON]]) -> dict[str, JSON]:
    """Curves over n of several runs; none if one of them has none."""
    if not all(r.get("n_curve") for r in results):
        return {}
    found: dict[str, JSON] = {"n_curve": _curve([r["n_curve"] for r in results])}
    if all(r.get("n_curves") for r in results):
        environments = results[0]["n_curves"]
        found["n_curves"] = {env: _curve([r["n_curves"][env] for r in results]) for env in environments}
    return found


def _curve(curves: Sequence[Sequence[Mapping[str, JSON]]]) -> list[dict[str, JSON]]:
    points = []
    for same in zip(*curves, strict=True):
        point: dict[str, JSON] = {"n": same[0]["n"]}
        for name in sorted(same[0].keys() - {"n"}):
            lows, highs = zip(*(p[name]["ci95"] for p in same), strict=True)
            point[name] = {"score": plain.fmean(p[name]["score"] for p in same), "ci95": [min(lows), max(highs)]}
        points.append(point)
    return points
