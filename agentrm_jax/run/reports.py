"""From a search workdir to its results.json, its report page, and the table on the terminal."""

import dataclasses
import importlib.metadata
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentrm_jax.data import formats
from agentrm_jax.evaluation import report, results
from agentrm_jax.run import journal
from agentrm_jax.run.journal import Journal
from agentrm_jax.types import JSON, SearchTree, Task, Trajectory, UserError

_PACKAGES = ("agentrm-jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")


def write(workdir: Path, config: Any, tasks: list[Task], log: Journal) -> None:
    """Writes `results.json` and `report/index.html` of a search run whose tasks are all finished."""
    baselines = {}
    if config.method != "greedy" and (greedy := _greedy(Path(config.greedy), tasks)):
        baselines["greedy"] = greedy
    found = results.build(
        log.records(tasks),
        method=config.method,
        policy=config.policy,
        reward_model=config.reward_model or None,
        budget=log.spent,
        baselines=baselines,
        dropped_turns=log.dropped_turns,
        config=json.loads(config.to_json_best_effort()),
    )
    (workdir / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    page([workdir], workdir / "report" / "index.html", title=f"{config.method} on {', '.join(config.env.names)}")


def show(workdir: Path) -> str:
    """The results of a finished search run as a table."""
    return results.table(read(workdir))


def page(workdirs: Sequence[Path], path: Path, *, title: str, training: Sequence[Path] = ()) -> Path:
    """One report of several search runs, with the training runs they rest on."""
    found, trajectories, trees = [], [], []
    for workdir in workdirs:
        result = read(workdir)
        found.append(result)
        trajectories += _labelled(workdir / "trajectories.jsonl", result["method"])
        trees += _trees(workdir)
    curves = {run.name: list(formats.read_jsonl(run / "metrics.jsonl")) for run in training}
    shown = [r for r in found if r["method"] != "mcts"]
    provenance = {
        "commands": [_command(w) for w in (*training, *workdirs)],
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in _PACKAGES}},
        "config": {str(w): json.loads((w / "config.json").read_text()) for w in workdirs},
    }
    return report.write(
        path,
        title=title,
        results=shown,
        trajectories=_varied(trajectories),
        trees=trees,
        training=curves,
        provenance=provenance,
    )


def _greedy(workdir: Path, tasks: list[Task]) -> list[results.TaskRecord]:
    """Records of a finished greedy run on these very tasks; empty if there is none."""
    records = journal.records(workdir, tasks)
    return records if len(records) == len(tasks) else []


def read(workdir: Path) -> dict[str, JSON]:
    path = workdir / "results.json"
    if not path.exists():
        raise UserError(f"{workdir} holds no results.json; finish its search first")
    return json.loads(path.read_text())


def _labelled(path: Path, method: str) -> list[Trajectory]:
    if not path.exists():
        return []
    found = formats.read_trajectories(path)
    return [dataclasses.replace(t, meta={**t.meta, "method": method}) for t in found]


def _varied(trajectories: list[Trajectory], most: int = 90) -> list[Trajectory]:
    """A manageable choice: whole tasks, evenly over methods and environments."""
    groups: dict[tuple[str, str], dict[str, list[Trajectory]]] = {}
    for t in trajectories:
        of_task = groups.setdefault((str(t.meta.get("method")), t.task.env), {})
        of_task.setdefault(t.task.key, []).append(t)
    share = most // max(len(groups), 1)
    out: list[Trajectory] = []
    for by_task in groups.values():
        taken: list[Trajectory] = []
        for samples in by_task.values():
            if len(taken) + len(samples) <= max(share, len(samples)):
                taken += samples
        out += taken
    return out


def _trees(workdir: Path, most: int = 12) -> list[SearchTree]:
    """Trees of an exploration: the ones whose returns differ most come first, for they have something to show."""
    folder = workdir / "trees"
    if not folder.is_dir():
        return []
    trees = formats.read_trees(folder)

    def spread(tree: SearchTree) -> float:
        root = tree.nodes[0]
        return root.return_sq_sum / max(root.visits, 1) - root.value**2

    return sorted(trees, key=spread, reverse=True)[:most]


def _command(workdir: Path) -> str:
    config = json.loads((workdir / "config.json").read_text())
    main = "search.py" if "method" in config else "train.py"
    name = config.get("method") or {"policy": "sft"}.get(config["kind"], config["kind"])
    return f"python {main} --config=configs/{name}.py:{config['size']} --workdir={workdir}"


def _main(arguments: Sequence[str]) -> None:
    """`python -m agentrm_jax.run.reports RUN... OUT.html`: one page and one table of several runs."""
    *runs, out = map(Path, arguments)
    searches = [r for r in runs if (r / "results.json").exists()]
    training = [r for r in runs if (r / "metrics.jsonl").exists()]
    if not searches:
        raise UserError("usage: python -m agentrm_jax.run.reports WORKDIR [WORKDIR ...] OUT.html")
    page(searches, out, title="Test-time search with a reward model", training=training)
    print(results.table(*[r for r in map(read, searches) if r["method"] != "mcts"]))
    print(f"report: {out}")


if __name__ == "__main__":
    try:
        _main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
