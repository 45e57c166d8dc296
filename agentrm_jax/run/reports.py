"""From search workdirs to results.json, report pages, and tables on the terminal."""

import dataclasses
import importlib.metadata
import json
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentrm_jax.data import formats
from agentrm_jax.evaluation import budgets, comparison, prefixes, repeats, report, results
from agentrm_jax.evaluation import markdown as markdown_page
from agentrm_jax.files import read_json, write_json
from agentrm_jax.run import journal, workdirs
from agentrm_jax.run.journal import Journal
from agentrm_jax.search.methods import METHODS
from agentrm_jax.types import JSON, SearchTree, Task, Trajectory, UserError

_PACKAGES = ("agentrm-jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")


def write(workdir: Path, config: Any, tasks: list[Task], log: Journal) -> None:
    """Writes `results.json` and `report/index.html` of a search run whose tasks are all finished."""
    baselines = {}
    if config.method != "greedy" and (greedy := _greedy(Path(config.greedy), tasks)):
        baselines["greedy"] = greedy
    scored, independent = _scored(workdir / "trajectories.jsonl"), _independent(config)
    found = results.build(
        log.records(tasks),
        method=config.method,
        policy=config.policy,
        reward_model=config.reward_model or None,
        budget=spent(workdir, log.spent),
        baselines=baselines,
        independent=independent,
        dropped_turns=log.dropped_turns,
        prefixes=prefixes.measure(scored) if independent is None else None,
        value_curves=prefixes.curves(scored),
        **_about(workdir),
        **log.judged,
        config=json.loads(config.to_json_best_effort()),
    )
    write_json(workdir / "results.json", found)
    page([workdir], workdir / "report" / "index.html", title=f"{config.method} on {', '.join(config.env.names)}")


def show(*searches: Path) -> str:
    """The results of search runs as a table; of explorations, which are no answers to compare, and of failed tasks, a line each."""
    found = [read(workdir) for workdir in searches]
    answers = averaged([result for result in found if not _explores(result)])
    costs = budgets.equal(answers) if len(answers) > 1 else None
    lines = [
        f"{result['method']}: {result['overall']['n']} trees; the best episode of a tree earns {100 * result['overall']['score']:.1f} "
        "on average (what exploration reaches, not what the policy does)"
        for result in found
        if _explores(result)
    ]
    failures = [line for workdir, result in zip(searches, found, strict=True) for line in _failures(workdir, result)]
    tables = [results.table(*answers)] if answers else []
    tables += ["A task costs:", *budgets.lines(costs), ""] if costs else []
    return "\n".join([*lines, *tables, *failures])


def averaged(found: Sequence[dict[str, JSON]]) -> list[dict[str, JSON]]:
    """Results in order; as one those of the same search with reward models that were trained alike but for the seed (`repeats.mean_of`)."""
    groups: dict[str, list[dict[str, JSON]]] = {}
    for number, result in enumerate(found):
        trained, config = _training_of(result), result.get("config") or {}
        how = [result["method"], result["policy"], config.get("search"), config.get("seed")]
        told = json.dumps([*how, (result.get("panel") or {}).get("hash"), trained], sort_keys=True)
        same = groups.get(told, [])
        again = result["reward_model"] in [other["reward_model"] for other in same]  # no reward model counts twice
        groups.setdefault(told if trained and not again else str(number), []).append(result)
    return [repeats.mean_of(same) if len(same) > 1 else same[0] for same in groups.values()]


def _training_of(result: dict[str, JSON]) -> dict[str, JSON] | None:
    """What the reward model of a result was trained with, but for its seed; None if that is not known."""
    path = Path(result.get("reward_model") or "") / "config.json"
    if not result.get("reward_model") or not path.is_file():
        return None
    return {name: value for name, value in read_json(path).items() if name not in ("seed", "date")}


def markdown(*searches: Path) -> str:
    """The results of search runs as Markdown: the table; what the reward model adds to rules without one, and to chance before episodes
    are over; and what each method costs."""
    answers = averaged([result for result in map(read, searches) if not _explores(result)])
    named = [row.name for row in comparison.rows(answers)]
    best = [name for name in named if name.startswith("best_of_n")]
    parts = [markdown_page.table(*answers)]
    if best:
        rules = ["random", "greedy", "shortest", "longest", "ended", "majority"]
        parts.append(markdown_page.differences(answers, best[0], rules))
    for result in answers:
        parts += [_repeats(result)] if result.get("repeats") else []
        parts += [text] if (text := markdown_page.prefixes(result)) else []
    if costs := budgets.equal(answers):
        parts.append("```\n" + "\n".join(budgets.lines(costs)) + "\n```")
    return "\n\n".join(parts)


def _repeats(result: dict[str, JSON]) -> str:
    """One line: what each of several reward models made of the same samples."""
    runs = "; ".join(
        f"{', '.join(f'{env} {100 * score:.1f}' for env, score in run['tasks'].items())}" for run in result["repeats"]
    )
    spreads = ", ".join(f"{env} {100 * cell['spread']:.1f}" for env, cell in result["tasks"].items())
    return f"{result['method']}: by reward model {runs}; standard deviation over them {spreads}."


def _failures(workdir: Path, result: dict[str, JSON]) -> list[str]:
    """A line about the tasks that failed, with the first fault; none if none did."""
    overall = result["overall"]
    if not overall.get("failed"):
        return []
    rows = formats.read_jsonl(workdir / "tasks.jsonl") if (workdir / "tasks.jsonl").exists() else ()
    first = next((f"; the first, {row['task']}: {row.get('fault', '')}" for row in rows if row.get("failed")), "")
    count = f"{overall['failed']} of {overall['n']} tasks"
    return [f"{result['method']}: {count} failed through no choice of the policy and count as 0{first}"]


def page(searches: Sequence[Path], path: Path, *, title: str, training: Sequence[Path] = ()) -> Path:
    """One report of several search runs, with the training runs they rest on."""
    found, trajectories, trees = [], [], []
    for workdir in searches:
        result = read(workdir)
        found.append(result)
        trajectories += _labelled(workdir / "trajectories.jsonl", result["method"])
        trees += _trees(workdir)
    evaluated = {run.name: run / "evaluation.json" for run in training}
    provenance = {
        "commands": [_command(w) for w in (*training, *searches)],
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}},
        "config": {str(w): read_json(w / "config.json") for w in searches},
    }
    return report.write(
        path,
        title=title,
        results=averaged([result for result in found if not _explores(result)]),
        trajectories=_varied(trajectories),
        trees=trees,
        training={run.name: list(formats.read_jsonl(run / "metrics.jsonl")) for run in training},
        reward_models={name: read_json(file) for name, file in evaluated.items() if file.exists()},
        provenance=provenance,
    )


def read(workdir: Path) -> dict[str, JSON]:
    """The results of a search run; of one that has not finished, those of the tasks it has finished so far, marked as such.

    Raises:
      UserError: the folder holds no search, or none of its tasks is finished.
    """
    if (workdir / "results.json").exists():  # written when all tasks are finished, before the workdir is marked so
        return read_json(workdir / "results.json")
    config = workdirs.read_config(workdir)
    finished = [
        entry for part in (workdir, *sorted(workdir.glob("parts/*"))) for entry in journal.entries(part / "tasks.jsonl")
    ]
    if "method" not in config or not finished:
        raise UserError(f"{workdir} holds no finished task of a search; run search.py with --workdir={workdir} first")
    return results.build(
        list({entry.record.task: entry.record for entry in finished}.values()),
        method=f"{config.method} (unfinished: {len(finished)} tasks)",
        policy=config.policy,
        reward_model=config.reward_model or None,
        budget=spent(workdir, journal.budget(finished)),
        independent=_independent(config),
        dropped_turns=journal.dropped_turns(finished),
        **journal.judged(finished),
        config=config.to_dict(),
    )


def _about(workdir: Path) -> dict[str, JSON]:
    """The task panel of a run, and the run that drew its samples, as far as it says."""
    panel, drawn = workdir / "panel.json", workdir / "drawn.json"
    found = {"panel": read_json(panel)} if panel.exists() else {}
    return found | ({"samples": read_json(drawn)["run"]} if drawn.exists() else {})


def spent(workdir: Path, budget: dict[str, JSON]) -> dict[str, JSON]:
    """A budget with what drawing the samples cost where they were drawn: a method costs what it needs, whoever paid."""
    path = workdir / "drawn.json"
    drawn = read_json(path)["budget"] if path.exists() else {}
    return {name: value + drawn[name] if name in drawn else value for name, value in budget.items()}


def _independent(config: Any) -> int | None:
    """How many candidates of a task are independent samples of the policy: None is all, 0 none."""
    method, settings = METHODS[config.method], config.get("search") or {}
    if not method.drawn:
        return 0 if method.keeps else None
    drawn = settings.get(method.drawn)
    return None if drawn is None or drawn >= settings.get("n", drawn) else int(drawn)


def _scored(path: Path) -> list[prefixes.Scored]:
    """Sampled episodes of which every step was scored."""
    found = formats.read_trajectories(path) if path.exists() else []
    return [
        prefixes.Scored(t.task.key, t.task.env, _numbers(t.meta["step_scores"]), t.last.reward, t.last.success)
        for t in found
        if len(t.meta.get("step_scores") or ()) == len(t.steps) > 0
    ]


def _numbers(scores: Sequence[float | None]) -> list[float]:
    return [math.nan if score is None else score for score in scores]


def _explores(result: dict[str, JSON]) -> bool:
    return METHODS[result["method"].split(" (")[0]].explores


def _greedy(workdir: Path, tasks: list[Task]) -> list[results.TaskRecord]:
    """Records of a greedy run on these very tasks; empty if it has not finished them all."""
    records = journal.records(workdir, tasks)
    return records if len(records) == len(tasks) else []


def _command(workdir: Path) -> str:
    """The command that began a run, with all its flags."""
    return workdirs.command_of(workdir) or f"(not recorded) --workdir={workdir}"


def _version(package: str) -> str:
    """The version of a package; a checkout that is only on the path has none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


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
