"""The record of a running search: every finished task goes to disk at once, and a stopped run knows what it has."""

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

from agentrm_jax.data import formats
from agentrm_jax.evaluation.results import BUDGET, Sample, TaskRecord
from agentrm_jax.search import Candidate, Cost, Done, Meter, Result
from agentrm_jax.types import JSON, SearchTree, State, Task, trajectory_of


class Journal:
    """`tasks.jsonl` (a line a finished task), `trajectories.jsonl` and `trees/trees.jsonl` of a search workdir.

    A task counts as finished once its line in `tasks.jsonl` is whole; anything a killed run wrote of others is dropped.

    Attributes:
      finished: keys of finished tasks.
    """

    def __init__(self, workdir: Path):
        self._tasks, self._trajectories = workdir / "tasks.jsonl", workdir / "trajectories.jsonl"
        self._trees = workdir / "trees" / "trees.jsonl"
        self._rows = list(formats.read_jsonl(self._tasks)) if self._tasks.exists() else []
        self.finished = {row["task"] for row in self._rows}
        self._before = self._rows[-1]["spent"] if self._rows else dict.fromkeys(BUDGET, 0)
        self._begin = time.monotonic()
        self._files = (self._trajectories, self._trees)
        for path in self._files:
            if path.exists():
                _keep_tasks(path, self.finished)

    def record(self, done: Done[Result], meter: Meter, *, ranked: bool = True) -> None:
        """Writes what became of a task.

        Args:
          meter: what the run has spent so far.
          ranked: the method chose among its candidates, which are then kept as samples.
        """
        row: dict[str, JSON] = {"task": done.task.key, "env": done.task.env}
        cost = meter.tasks[done.task.key]
        match done.result:
            case None:
                row |= {
                    "failed": True,
                    "fault": done.fault,
                    "reward": 0.0,
                    "progress": 0.0,
                    "success": False,
                    "steps": 0,
                }
            case Result(tree=SearchTree() as tree):
                formats.append_jsonl(self._trees, [formats.tree_to_json(tree)])
                row |= _episode_row(done.result.state) | {"nodes": len(tree.nodes), "mean_return": tree.nodes[0].value}
            case result:
                self._keep(result.candidates, result.chosen)
                row |= _episode_row(result.state) | {"counts": dict(result.counts)}
                if ranked:
                    row["samples"] = [list(_sample(c)) for c in result.candidates]
        row |= {"cost": dataclasses.asdict(cost), "spent": self._spent(meter.total())}
        formats.append_jsonl(self._tasks, [row])
        self._rows.append(row)
        self.finished.add(done.task.key)

    def mean_reward(self) -> float:
        """Mean reward of the finished tasks so far."""
        return sum(r["reward"] for r in self._rows) / max(len(self._rows), 1)

    def records(self, tasks: list[Task]) -> list[TaskRecord]:
        """Records of `tasks`, in their order."""
        by_task = {row["task"]: row for row in self._rows}
        return [_record(by_task[t.key]) for t in tasks if t.key in by_task]

    @property
    def spent(self) -> dict[str, float]:
        """Budget of the whole run, over all its sittings."""
        return self._rows[-1]["spent"] if self._rows else dict.fromkeys(BUDGET, 0)

    def _keep(self, candidates: Any, chosen: int) -> None:
        rows = []
        for i, c in enumerate(candidates):
            meta: dict[str, JSON] = {"sample": c.sample, "chosen": i == chosen}
            if c.step_scores:
                meta |= {"score": c.score, "step_scores": list(c.step_scores)}
            rows.append(formats.trajectory_to_json(trajectory_of(c.state, **meta)))
        formats.append_jsonl(self._trajectories, rows)

    def _spent(self, total: Cost) -> dict[str, float]:
        now = {
            "policy_tokens": total.policy_tokens,
            "reward_tokens": total.reward_tokens,
            "env_steps": total.env_steps,
            "seconds": round(time.monotonic() - self._begin, 2),
        }
        return {name: self._before[name] + value for name, value in now.items()}


def _keep_tasks(path: Path, keys: set[str]) -> None:
    """Drops the rows of other tasks from a file of trajectories or trees, at once or not at all."""
    rows = list(formats.read_jsonl(path))
    kept = [row for row in rows if _key(row) in keys]
    if len(kept) < len(rows):
        whole = path.with_suffix(".new")
        whole.unlink(missing_ok=True)
        formats.append_jsonl(whole, kept)
        whole.replace(path)


def _key(row: dict[str, Any]) -> str:
    return f"{row['task']['env']}/{row['task']['id']}"


def part(workdir: Path, process: int, processes: int) -> Journal:
    """Where one of several processes that share a workdir records its tasks; the workdir's own journal for one alone."""
    return Journal(workdir if processes == 1 else workdir / "parts" / str(process))


def gather(workdir: Path) -> None:
    """Moves what several processes recorded into the workdir's own journal; they must not be writing.

    May be killed at any point and called again. Tokens and steps spent add up; of seconds, the longest counts.
    """
    parts = [Journal(folder) for folder in sorted(workdir.glob("parts/*"))]
    if not parts:
        return
    main = Journal(workdir)
    rows = [(row["spent"]["seconds"], n, row) for n, log in enumerate(parts) for row in log._rows]
    rows = [r for r in sorted(rows, key=lambda r: r[:2]) if r[2]["task"] not in main.finished]
    new = {row["task"] for *_, row in rows}
    for log in parts:
        for path, ours in zip(log._files, main._files, strict=True):
            if path.exists():
                formats.append_jsonl(ours, (r for r in formats.read_jsonl(path) if _key(r) in new))
    latest = [dict.fromkeys(BUDGET, 0) for _ in parts]
    for _, n, row in rows:  # last, because it makes their tasks finished ones
        latest[n] = row["spent"]
        spent = {k: main._before[k] + sum(each[k] for each in latest) for k in BUDGET}
        spent["seconds"] = main._before["seconds"] + max(each["seconds"] for each in latest)
        formats.append_jsonl(main._tasks, [row | {"spent": spent}])
    shutil.rmtree(workdir / "parts", ignore_errors=True)


def _episode_row(state: State) -> dict[str, JSON]:
    outcome = state.outcome
    assert outcome is not None
    return {
        "reward": outcome.reward,
        "progress": outcome.progress,
        "success": outcome.success,
        "steps": state.depth,
        "failed": False,
    }


def _sample(candidate: Candidate) -> Sample:
    outcome = candidate.state.outcome
    assert outcome is not None
    state = candidate.state
    ended = state.done and state.depth < state.task.max_steps
    return Sample(candidate.score, outcome.reward, outcome.success, outcome.progress, state.depth, ended)


def _record(row: dict[str, Any]) -> TaskRecord:
    samples = [Sample(*s) for s in row["samples"]] if "samples" in row else None
    names = ("task", "env", "reward", "progress", "success", "steps", "failed")
    return TaskRecord(**{name: row[name] for name in names}, samples=samples)
