"""Expert episodes of the tasks that a config names, kept in a folder once they are made."""

import asyncio
import sys
from pathlib import Path
from typing import Any

from agentrm_jax.data import fields, formats
from agentrm_jax.envs.catalogue import Catalogue, Entry, tasks
from agentrm_jax.envs.experts import ExpertCounts, stream_expert_trajectories
from agentrm_jax.types import Task, Trajectory, UserError

_SAVED_TOGETHER = 100  # episodes; a killed run loses at most so many
_TIME_LIMIT = 20.0  # seconds an expert has for a task


def expert_trajectories(env: Any, catalogue: Catalogue, folder: Path) -> list[Trajectory]:
    """Solved expert episodes of all tasks of a config's `env` group, read from or added to `folder`/NAME.jsonl.

    A task that an expert did not solve is noted in `folder`/NAME.failed.jsonl and not tried again.

    Raises:
      UserError: an environment has no expert, or cannot be built; or `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"config.experts={folder} is a file; name a folder")
    found: list[Trajectory] = []
    for name, entry in catalogue.items():
        wanted = tasks(env, entry)
        path = folder / f"{name}.jsonl"
        known = {t.task.key: t for t in formats.read_trajectories(path)} if path.exists() else {}
        tried = {t.task.key for t in known.values()} | _unsolved(folder, name)
        missing = [t for t in wanted if t.key not in tried]
        if missing:
            made = asyncio.run(_demonstrate(entry, missing, folder, env.workers))
            known |= {t.task.key: t for t in made}
        found += [known[t.key] for t in wanted if t.key in known]
    return found


async def _demonstrate(entry: Entry, missing: list[Task], folder: Path, workers: int) -> list[Trajectory]:
    """Runs the expert on tasks and keeps what it solved."""
    name = entry.spec.name
    path, made = folder / f"{name}.jsonl", []

    def progress(counts: ExpertCounts) -> None:
        if counts.finished % _SAVED_TOGETHER == 0 or counts.finished == counts.total:
            print(f"expert of {name}: {counts.solved} solved of {counts.finished}/{counts.total}", file=sys.stderr)

    batch: list[Trajectory] = []
    async for trajectory in stream_expert_trajectories(
        entry.spec, missing, entry.options, time_limit=_TIME_LIMIT, workers=workers, progress=progress
    ):
        batch.append(trajectory)
        made.append(trajectory)
        if len(batch) == _SAVED_TOGETHER:
            formats.append_jsonl(path, map(formats.trajectory_to_json, batch))
            batch = []
    formats.append_jsonl(path, map(formats.trajectory_to_json, batch))
    solved = {t.task.key for t in made}
    formats.append_jsonl(folder / f"{name}.failed.jsonl", [{"task": t.key} for t in missing if t.key not in solved])
    return made


def _unsolved(folder: Path, name: str) -> set[str]:
    """Keys of the tasks that the expert was tried on without success."""
    path = folder / f"{name}.failed.jsonl"
    rows = formats.read_rows(path) if path.exists() else ()
    return {fields.text(fields.record(row, origin, "task"), "task", verbatim=True) for origin, row in rows}
