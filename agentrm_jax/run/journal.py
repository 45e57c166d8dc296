"""The record of a running search: every finished task goes to disk at once, and a stopped run knows what it has.

A line of `tasks.jsonl` is a finished task: what became of it, what it cost, and what its sitting (one process from start to end)
had spent in all when it was written. So the cost of finished tasks and what was lost with unfinished ones can be told apart:

    {"task", "env", "reward", "progress", "success", "steps", "failed", "fault"?, "counts"?, "nodes"?, "mean_return"?,
     "notes"?: what a reward model has to say about its scores of the task, such as {"judge": {...}},
     "samples"?: [[score | null, reward, success, progress, steps, ended, answer | null], ...],
     "cost": {"policy_tokens", "reward_tokens", "env_steps", ...}, "sitting", "launch"?, "spent": {..., "seconds"}}
"""

import dataclasses
import math
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from agentrm_jax import files
from agentrm_jax.data import fields, formats
from agentrm_jax.data.fields import Fields
from agentrm_jax.evaluation import position_bias
from agentrm_jax.evaluation.results import BUDGET, TaskRecord
from agentrm_jax.evaluation.rules import Sample
from agentrm_jax.search import Candidate, Cost, Done, Meter, Result
from agentrm_jax.types import JSON, SearchTree, State, Task, UserError, trajectory_of

Answer = Callable[[State], str | None]  # what an episode came to, as votes are counted

_COUNTED = tuple(
    name for name in BUDGET if name != "seconds"
)  # what a task costs; wall time is shared by all in flight


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """A finished task.

    Attributes:
      cost: tokens and steps it took, by the names of a budget.
      prompt_tokens: tokens that were sent to a policy behind a server.
      dropped: oldest turns that policy and reward model read it without.
      sitting: which process of which start wrote it; empty in files of before this was noted.
      launch: names the sittings that ran side by side.
      spent: what the sitting had spent by then, on tasks that were not finished too; since the run began if `sitting` is empty.
      row: as it is written.
    """

    record: TaskRecord
    cost: dict[str, int]
    prompt_tokens: int
    dropped: tuple[int, int]
    sitting: str
    launch: str
    spent: dict[str, float]
    row: dict[str, JSON]


def entries(path: Path) -> list[Entry]:
    """The finished tasks of a `tasks.jsonl`, in order of finishing; none if there is no such file. Changes nothing.

    Raises:
      UserError: a line is no record of a finished task.
    """
    return [_entry(row, origin) for origin, row in formats.read_rows(path)] if path.exists() else []


def budget(finished: Sequence[Entry]) -> dict[str, JSON]:
    """What the finished tasks cost, wall seconds over all sittings, and under `lost` what was spent on top of that: on tasks that
    were in flight when a sitting ended (as far as its last line knows), or are so now.
    """
    total = dict.fromkeys(_COUNTED, 0)
    lost = dict.fromkeys(_COUNTED, 0)
    last = {entry.sitting: entry for entry in finished}
    costs = {entry.record.task: entry for entry in finished}
    for name in _COUNTED:
        total[name] = sum(entry.cost[name] for entry in costs.values() if entry.sitting)
        spent = sum(int(entry.spent[name]) for sitting, entry in last.items() if sitting)
        lost[name] = max(0, spent - total[name])
        total[name] += int(last[""].spent[name]) if "" in last else 0
    seconds: dict[str, float] = {}
    for entry in last.values():
        seconds[entry.launch] = max(entry.spent["seconds"], seconds.get(entry.launch, 0.0))
    sent = sum(entry.prompt_tokens for entry in costs.values())
    told = {"policy_prompt_tokens": sent} if sent else {}
    return {**total, **told, "seconds": round(sum(seconds.values()), 2), "lost": lost}


def dropped_turns(finished: Sequence[Entry]) -> dict[str, int]:
    """How many of the oldest turns the models read finished tasks without, and on how many tasks."""
    return {
        "policy": sum(entry.dropped[0] for entry in finished),
        "reward_model": sum(entry.dropped[1] for entry in finished),
        "tasks": sum(any(entry.dropped) for entry in finished),
    }


def notes_of(reward_model: object, task: Task) -> Mapping[str, JSON]:
    """What a reward model has to say about its scores of a task, if it has a method `notes`."""
    notes = getattr(reward_model, "notes", None)
    return notes(task.key) if notes else {}


def judged(finished: Sequence[Entry]) -> dict[str, JSON]:
    """What was noted of a reward model, over all tasks: of a judge its answers, as `judge`; of an ensemble the states that it scored
    and the mean standard deviation of its members at one, as `disagreement`. Empty where there is neither.

    Raises:
      UserError: what was noted about one cannot be read.
    """
    summaries: Mapping[str, tuple[str, Callable[[Sequence[JSON]], JSON]]] = {
        "judge": ("a judge", position_bias.summary),
        "disagreement": ("an ensemble", _disagreement),
    }
    found: dict[str, JSON] = {}
    notes = [entry.row["notes"] for entry in finished if isinstance(entry.row.get("notes"), dict)]
    for name, (whose, summary) in summaries.items():
        try:
            if parts := [note[name] for note in notes if isinstance(note.get(name), dict)]:
                found[name] = summary(parts)
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise UserError(f"tasks.jsonl: the notes of {whose} cannot be read ({error})") from error
    return found


def _disagreement(parts: Sequence[JSON]) -> JSON:
    """Of the notes of `rewards.ensemble.Pessimism` on several tasks: states, and the mean deviation at one."""
    states = sum(part["states"] for part in parts)
    return {"states": states, "mean_deviation": sum(part["deviation"] for part in parts) / max(states, 1)}


def records(workdir: Path, tasks: Sequence[Task]) -> list[TaskRecord]:
    """Records of those of `tasks` that a search in `workdir` has finished, in their order. Changes nothing there.

    Raises:
      UserError: its `tasks.jsonl` cannot be read.
    """
    return _of(tasks, entries(workdir / "tasks.jsonl"))


class Journal:
    """`tasks.jsonl` (a line a finished task), `trajectories.jsonl` and `trees/trees.jsonl` of a search workdir.

    A task counts as finished once its line in `tasks.jsonl` is whole; anything a killed run wrote of others is dropped.

    Attributes:
      finished: keys of finished tasks.
    """

    def __init__(self, workdir: Path):
        self._tasks, self._trajectories = workdir / "tasks.jsonl", workdir / "trajectories.jsonl"
        self._trees = workdir / "trees" / "trees.jsonl"
        self._entries = entries(self._tasks)
        self.finished = {entry.record.task for entry in self._entries}
        self._sitting = secrets.token_hex(6)
        self._begin = time.monotonic()
        self._files = (self._trajectories, self._trees)
        for path in self._files:
            if path.exists():
                _keep_tasks(path, self.finished)

    def record(
        self,
        done: Done[Result],
        meter: Meter,
        *,
        ranked: bool = True,
        notes: Mapping[str, JSON] | None = None,
        answer: Answer | None = None,
    ) -> None:
        """Writes what became of a task.

        Args:
          meter: what the run has spent so far.
          ranked: the method chose among its candidates, or drew them to be kept: they are kept as samples.
          notes: what the reward model has to say about its scores of the task.
          answer: reads what a sample came to, if there is something to read.
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
                    row["samples"] = [_sample_row(c, answer) for c in result.candidates]
        row |= {"notes": dict(notes)} if notes else {}
        row |= {"cost": dataclasses.asdict(cost), "sitting": self._sitting, "spent": self._spent(meter.total())}
        formats.append_jsonl(self._tasks, [row])
        self._entries.append(_entry(row, str(self._tasks)))
        self.finished.add(done.task.key)

    def mean_reward(self) -> float:
        """Mean reward of the finished tasks so far."""
        return sum(entry.record.reward for entry in self._entries) / max(len(self._entries), 1)

    def records(self, tasks: Sequence[Task]) -> list[TaskRecord]:
        """Records of `tasks`, in their order."""
        return _of(tasks, self._entries)

    @property
    def spent(self) -> dict[str, JSON]:
        """Budget of the whole run, over all its sittings; see `budget`."""
        return budget(self._entries)

    @property
    def judged(self) -> dict[str, JSON]:
        """See `judged`."""
        return judged(self._entries)

    @property
    def dropped_turns(self) -> dict[str, int]:
        """See `dropped_turns`."""
        return dropped_turns(self._entries)

    def _keep(self, candidates: Sequence[Candidate], chosen: int) -> None:
        rows = []
        for i, c in enumerate(candidates):
            meta: dict[str, JSON] = {"sample": c.sample, "chosen": i == chosen}
            if c.step_scores:
                meta |= {"score": _or_null(c.score), "step_scores": [_or_null(s) for s in c.step_scores]}
            rows.append(formats.trajectory_to_json(trajectory_of(c.state, **meta)))
        formats.append_jsonl(self._trajectories, rows)

    def _spent(self, total: Cost) -> dict[str, float]:
        seconds = round(time.monotonic() - self._begin, 2)
        return {name: getattr(total, name) for name in _COUNTED} | {"seconds": seconds}


def _keep_tasks(path: Path, keys: set[str]) -> None:
    """Drops the rows of other tasks from a file of trajectories or trees, at once or not at all."""
    rows = list(formats.read_rows(path))
    kept = [row for origin, row in rows if formats.task_key(row, origin) in keys]
    if len(kept) < len(rows):
        with files.replacing(path) as draft:
            draft.write_bytes(b"".join(map(formats.line, kept)))


def part(workdir: Path, process: int, processes: int) -> Journal:
    """Where one of several processes that share a workdir records its tasks; the workdir's own journal for one alone."""
    return Journal(workdir if processes == 1 else workdir / "parts" / str(process))


def gather(workdir: Path) -> None:
    """Moves what several processes recorded into the workdir's own journal; they must not be writing.

    May be killed at any point and called again.
    """
    parts = [Journal(folder) for folder in sorted(workdir.glob("parts/*"))]
    if not parts:
        return
    main = Journal(workdir)
    found = sorted((entry for log in parts for entry in log._entries), key=lambda entry: entry.spent["seconds"])
    launch = min((entry.sitting for entry in found), default="")  # they ran side by side, and so share their wall time
    new = [entry for entry in found if entry.record.task not in main.finished]
    keys = {entry.record.task for entry in new}
    for log in parts:
        for path, ours in zip(log._files, main._files, strict=True):
            if path.exists():
                rows = formats.read_rows(path)
                formats.append_jsonl(ours, (row for origin, row in rows if formats.task_key(row, origin) in keys))
    # last, because it makes their tasks finished ones
    formats.append_jsonl(main._tasks, (entry.row | {"launch": launch} for entry in new))
    shutil.rmtree(workdir / "parts", ignore_errors=True)


# --- Rows ------------------------------------------------------------------------------------------------------------


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


def _sample_row(candidate: Candidate, answer: Answer | None) -> list[JSON]:
    sample = _sample(candidate, answer(candidate.state) if answer else None)
    return [_or_null(sample.score), *sample[1:]]


def _sample(candidate: Candidate, answer: str | None) -> Sample:
    outcome = candidate.state.outcome
    assert outcome is not None
    state = candidate.state
    ended = state.done and state.depth < state.task.max_steps
    return Sample(candidate.score, outcome.reward, outcome.success, outcome.progress, state.depth, ended, answer)


def _or_null(score: float) -> float | None:
    """JSON knows no NaN: a missing score is null."""
    return score if math.isfinite(score) else None


def _of(tasks: Sequence[Task], finished: Sequence[Entry]) -> list[TaskRecord]:
    by_task = {entry.record.task: entry.record for entry in finished}
    return [by_task[task.key] for task in tasks if task.key in by_task]


def _entry(row: dict[str, JSON], origin: str) -> Entry:
    task = fields.record(row, origin, "record of a task")
    cost, spent = fields.inner(task, "cost"), fields.inner(task, "spent")
    samples = [_read_sample(task, i, one) for i, one in enumerate(fields.items(task, "samples", default=()))]
    record = TaskRecord(
        task=fields.text(task, "task", verbatim=True),
        env=fields.text(task, "env", verbatim=True),
        reward=fields.number(task, "reward", 0, 1),
        progress=fields.number(task, "progress", 0, 1),
        success=fields.flag(task, "success"),
        steps=fields.whole(task, "steps", 0),
        samples=samples if "samples" in row else None,
        failed=fields.flag(task, "failed"),
    )
    sitting = fields.text(task, "sitting", default="")
    return Entry(
        record=record,
        cost={name: fields.whole(cost, name, 0) for name in _COUNTED},
        prompt_tokens=fields.whole(cost, "policy_prompt_tokens", 0, default=0),
        dropped=(
            fields.whole(cost, "policy_dropped_turns", 0, default=0),
            fields.whole(cost, "reward_dropped_turns", 0, default=0),
        ),
        sitting=sitting,
        launch=fields.text(task, "launch", default=sitting),
        spent={name: fields.number(spent, name, 0, 1e18) for name in BUDGET},
        row=row,
    )


def _read_sample(task: Fields, index: int, value: JSON) -> Sample:
    """A sample as `_sample` made it; earlier files end after the progress, or before the answer."""
    names = (
        Sample._fields[: len(value)] if isinstance(value, list) and len(value) in (4, 6, len(Sample._fields)) else ()
    )
    if not names:
        expected = f"a list of {', '.join(Sample._fields)}"
        raise dataclasses.replace(task, values={f"samples[{index}]": value}).error(f"samples[{index}]", expected)
    sample = Fields(dict(zip(names, value, strict=True)), task.origin, task.kind, f"samples[{index}].")
    return Sample(
        score=math.nan if sample.values["score"] is None else fields.number(sample, "score"),
        reward=fields.number(sample, "reward", 0, 1),
        success=fields.flag(sample, "success"),
        progress=fields.number(sample, "progress", 0, 1),
        steps=fields.whole(sample, "steps", 0) if "steps" in names else None,
        ended=fields.flag(sample, "ended", default=False),
        answer=fields.text(sample, "answer", verbatim=True) if sample.values.get("answer") is not None else None,
    )
