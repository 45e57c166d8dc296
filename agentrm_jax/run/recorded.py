"""Samples that another run drew: several reward models can rank the same trajectories, and none is paid for twice."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from agentrm_jax.data import formats
from agentrm_jax.run import journal, workdirs
from agentrm_jax.search import Result, rank
from agentrm_jax.search.methods import Search
from agentrm_jax.types import JSON, RewardModel, State, Task, TaskFailure, UserError, state_of

_SAME = (
    "policy",
    "seed",
    "examples",
    "search.temperature",
    "env.options",
    "env.data",
    "env.prompts",
)  # what decides the samples


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What a finished run drew for some tasks.

    Attributes:
      states: task key -> sample -> its last state.
      faults: of tasks that failed there.
      spent: what drawing these samples cost there; its seconds are those of the run, in proportion to tokens.
    """

    states: Mapping[str, Mapping[int, State]]
    faults: Mapping[str, str]
    spent: Mapping[str, float]

    def ranking(self, settings: Mapping[str, Any]) -> Search:
        """Best-of-n with the `settings` of its config, called with a task and a reward model; a task that failed there fails again."""
        told = {name: settings[name] for name in ("n", "aggregate", "all_steps")}

        async def run(task: Task, reward_model: RewardModel) -> Result:
            if task.key in self.faults:
                raise TaskFailure(self.faults[task.key])
            return await rank(task, self.states[task.key], reward_model, **told)

        return run


def read(config: ml_collections.ConfigDict, tasks: Sequence[Task]) -> Recorded:
    """The first `config.search.n` samples a task of the run in `config.samples`.

    Raises:
      UserError: that run is not finished, drew fewer samples, or drew them otherwise than this config says; or lacks one of the tasks.
    """
    workdir = Path(config.samples)
    if not workdirs.is_finished(workdir):
        raise UserError(
            f"--config.samples={workdir}: there is no finished run; run search.py with that --workdir first"
        )
    drawn = workdirs.read_config(workdir)
    for name in _SAME:
        mine, theirs = _value(config, name), _value(drawn, name)
        if mine != theirs:
            raise UserError(
                f"--config.samples={workdir}: was drawn with {name} {theirs}, this run has {mine}; set both the same"
            )
    if (there := _value(drawn, "search.n")) is None or there < config.search.n:
        raise UserError(f"--config.samples={workdir}: holds {there or 'no'} samples a task; set search.n to no more")
    entries = {entry.record.task: entry for entry in journal.entries(workdir / "tasks.jsonl")}
    if missing := next((task.key for task in tasks if task.key not in entries), None):
        raise UserError(
            f"--config.samples={workdir}: holds nothing of task {missing}; set env.split, start and count as there"
        )
    faults = {key: str(entry.row.get("fault", "")) for key, entry in entries.items() if entry.record.failed}
    wanted = {task.key: task for task in tasks}
    states: dict[str, dict[int, State]] = {}
    for trajectory in formats.read_trajectories(workdir / "trajectories.jsonl"):
        sample = int(trajectory.meta.get("sample", 0))
        if trajectory.task.key in wanted and sample < config.search.n:
            states.setdefault(trajectory.task.key, {})[sample] = state_of(trajectory)
    return Recorded(states, faults, _spent(states, list(entries.values())))


def _spent(states: Mapping[str, Mapping[int, State]], entries: Sequence[journal.Entry]) -> dict[str, float]:
    turns = [s for samples in states.values() for end in samples.values() for s in end.path()[1:]]
    tokens = sum(len(s.action.tokens) for s in turns if s.action)
    every = journal.budget(entries)
    share = tokens / every["policy_tokens"] if every["policy_tokens"] else 1.0
    return {"policy_tokens": tokens, "env_steps": len(turns), "seconds": round(every["seconds"] * min(share, 1.0), 2)}


def _value(config: ml_collections.ConfigDict, name: str) -> JSON:
    """One value as JSON has it, since the other run's was read from there: no tuples."""
    value: JSON = config
    for part in name.split("."):
        value = value.get(part) if value is not None else None
    return json.loads(json.dumps(value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value))
