"""The record of a search: whole tasks only, whatever killed the run, and one record of what several processes did."""

import dataclasses
from pathlib import Path

import pytest

from agentrm_jax.data import formats
from agentrm_jax.run.journal import Journal, gather, part
from agentrm_jax.search import Candidate, Cost, Done, Result
from agentrm_jax.types import Action, Outcome, State, Task


@dataclasses.dataclass
class Spent:
    """A meter that says what it is told."""

    tokens: int

    @property
    def tasks(self):
        return dict.fromkeys((f"maze/{i}" for i in range(9)), Cost(policy_tokens=self.tokens))

    def total(self) -> Cost:
        return Cost(policy_tokens=self.tokens)


def done(number: int) -> Done:
    root = State(Task("maze", str(number), "test", 5), "find it", outcome=Outcome("see"))
    end = Outcome("there", reward=float(number % 2), done=True)
    state = dataclasses.replace(root.propose(Action("go")), outcome=end)
    return Done(root.task, Result((Candidate(state, 0.5),), 0), None, 1.0)


def record(log: Journal, *numbers: int) -> None:
    for i, number in enumerate(numbers, 1):
        log.record(done(number), Spent(10 * i))


def keys(path: Path) -> list[str]:
    return sorted(f"maze/{row['task']['id']}" for row in formats.read_jsonl(path))


def test_trajectories_of_a_task_that_was_not_finished_are_dropped(tmp_path):
    record(Journal(tmp_path), 0, 1)
    rows = (tmp_path / "tasks.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "tasks.jsonl").write_text(rows[0])
    assert Journal(tmp_path).finished == {"maze/0"}
    assert keys(tmp_path / "trajectories.jsonl") == ["maze/0"]


def test_one_process_writes_to_the_workdir_itself(tmp_path):
    record(part(tmp_path, 0, 1), 3)
    gather(tmp_path)
    assert Journal(tmp_path).finished == {"maze/3"}
    assert not (tmp_path / "parts").exists()


def test_several_processes_become_one_record(tmp_path):
    """Tokens add up, seconds are those of the longest."""
    record(Journal(tmp_path), 0)
    before = Journal(tmp_path).spent
    record(part(tmp_path, 0, 2), 1, 3)
    record(part(tmp_path, 1, 2), 2)
    longest = max(part(tmp_path, i, 2).spent["seconds"] for i in range(2))
    gather(tmp_path)
    log = Journal(tmp_path)
    assert log.finished == {"maze/0", "maze/1", "maze/2", "maze/3"}
    assert keys(tmp_path / "trajectories.jsonl") == ["maze/0", "maze/1", "maze/2", "maze/3"]
    assert log.spent["policy_tokens"] == before["policy_tokens"] + 20 + 10
    assert log.spent["seconds"] == pytest.approx(before["seconds"] + longest)
    assert log.mean_reward() == 0.5
    assert not (tmp_path / "parts").exists()


def test_gathering_that_was_killed_is_gathered_again(tmp_path):
    """Before its end the parts are still there; what had arrived is not counted twice."""
    record(part(tmp_path, 0, 2), 1, 3)
    kept = {path: path.read_bytes() for path in (tmp_path / "parts/0").iterdir()}
    gather(tmp_path)
    (tmp_path / "parts/0").mkdir(parents=True)
    for path, content in kept.items():
        path.write_bytes(content)
    tasks = (tmp_path / "tasks.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "tasks.jsonl").write_text(tasks[0])  # it had come that far
    gather(tmp_path)
    assert Journal(tmp_path).finished == {"maze/1", "maze/3"}
    assert keys(tmp_path / "trajectories.jsonl") == ["maze/1", "maze/3"]
