"""The record of a search: whole tasks only, whatever killed the run, and one record of what several processes did."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest

from agentrm_jax.data import formats
from agentrm_jax.run.journal import Journal, gather, part, records
from agentrm_jax.search import Candidate, Cost, Done, Result
from agentrm_jax.types import Action, Outcome, State, Task, UserError


@dataclasses.dataclass
class Spent:
    """A meter that says what it is told: 10 tokens for every task, and some in all."""

    tokens: int

    @property
    def tasks(self):
        return dict.fromkeys((f"maze/{i}" for i in range(9)), Cost(policy_tokens=10))

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


# --- Budgets ---------------------------------------------------------------------------------------------------------


def cut(path: Path, lines: int) -> None:
    """Leaves the first lines of a file, and half of the next: what a kill leaves."""
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(rows[:lines]) + b"".join(rows[lines : lines + 1])[:20])


def test_a_budget_is_what_finished_tasks_cost_and_what_was_lost_stands_apart(tmp_path):
    """Three sittings finish two tasks each; the first two are killed with 15 and 7 tokens spent on others."""
    for first, lost in ((0, 15), (2, 7), (4, 0)):
        log = Journal(tmp_path)
        for n, number in enumerate((first, first + 1), 1):
            log.record(done(number), Spent(10 * n + lost))
    spent = Journal(tmp_path).spent
    assert (spent["policy_tokens"], spent["lost"]["policy_tokens"]) == (60, 22)
    assert (spent["env_steps"], spent["lost"]["env_steps"]) == (0, 0)
    assert spent["seconds"] >= 0


def test_nothing_was_spent_on_nothing(tmp_path):
    assert Journal(tmp_path).spent == {
        "policy_tokens": 0,
        "reward_tokens": 0,
        "env_steps": 0,
        "seconds": 0,
        "lost": {"policy_tokens": 0, "reward_tokens": 0, "env_steps": 0},
    }


def test_rows_that_do_not_name_their_sitting_count_as_they_did_then(tmp_path):
    """`spent` was what the run had spent since it began, lost work included."""
    record(Journal(tmp_path), 0, 1)
    path = tmp_path / "tasks.jsonl"
    rows = list(formats.read_jsonl(path))
    path.write_bytes(b"".join(formats.line({k: v for k, v in row.items() if k != "sitting"}) for row in rows))
    record(Journal(tmp_path), 2)
    spent = Journal(tmp_path).spent
    assert (spent["policy_tokens"], spent["lost"]["policy_tokens"]) == (20 + 10, 0)


# --- Files as a kill leaves them ---------------------------------------------------------------------------------------


def test_a_journal_that_was_cut_at_any_byte_is_readable_and_can_be_continued(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda file: None)  # no power cut here, and thousands of files
    whole = tmp_path / "whole"
    record(Journal(whole), 0, 1)
    names = ("tasks.jsonl", "trajectories.jsonl")
    content = {name: (whole / name).read_bytes() for name in names}
    for name in names:
        for size in range(len(content[name])):
            folder = tmp_path / "cut"
            folder.mkdir()
            for other in names:
                (folder / other).write_bytes(content[other][: size if other == name else None])
            log = Journal(folder)
            lines = content["tasks.jsonl"][: size if name == "tasks.jsonl" else None].count(b"\n")
            assert log.finished == {f"maze/{n}" for n in range(lines)}
            assert set(keys(folder / "trajectories.jsonl")) <= log.finished
            if size % 50 == 0:
                record(log, *range(lines, 2))
                assert Journal(folder).finished == {"maze/0", "maze/1"}
                assert Journal(folder).spent["policy_tokens"] == 20
            shutil.rmtree(folder)


def test_gathering_can_be_killed_after_any_line(tmp_path):
    """Whatever had arrived by then, in the end every task is there once, and costs and losses are counted once."""
    start = tmp_path / "start"
    record(Journal(start), 0)
    for process, numbers in enumerate([(1, 3), (2, 4)]):
        log = part(start, process, 2)
        for n, number in enumerate(numbers, 1):
            log.record(done(number), Spent(10 * n + 5))
    gathered = shutil.copytree(start, tmp_path / "gathered")
    gather(gathered)
    wanted = {f"maze/{n}" for n in range(5)}
    for name in ("trajectories.jsonl", "tasks.jsonl"):
        for lines in range(1, 5):
            folder = shutil.copytree(start, tmp_path / "again")
            for arrived in ("trajectories.jsonl", "tasks.jsonl")[: 1 + (name == "tasks.jsonl")]:
                shutil.copy(gathered / arrived, folder / arrived)
            cut(folder / name, lines)
            gather(folder)
            log = Journal(folder)
            assert log.finished == wanted
            assert keys(folder / "trajectories.jsonl") == sorted(wanted)
            assert (log.spent["policy_tokens"], log.spent["lost"]["policy_tokens"]) == (50, 10)
            assert log.spent["seconds"] == Journal(gathered).spent["seconds"]
            shutil.rmtree(folder)


def test_reading_the_records_of_another_run_changes_nothing_there(tmp_path):
    """It may be running: what it wrote of a task that is not finished yet is its own affair."""
    record(Journal(tmp_path), 0, 1)
    cut(tmp_path / "tasks.jsonl", 1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    tasks = [done(n).task for n in (1, 0)]
    assert [r.task for r in records(tmp_path, tasks)] == ["maze/0"]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert records(tmp_path / "nowhere", tasks) == []


# --- Rows ------------------------------------------------------------------------------------------------------------


def test_a_missing_score_is_null_on_disk_and_missing_when_read(tmp_path):
    episode = done(1)
    candidate = Candidate(episode.result.state, math.nan, (0.5, math.nan))
    Journal(tmp_path).record(dataclasses.replace(episode, result=Result((candidate,), 0)), Spent(10))
    (row,) = formats.read_jsonl(tmp_path / "tasks.jsonl")
    assert row["samples"] == [[None, 1.0, False, 0.0, 1, True, None]]
    (trajectory,) = formats.read_trajectories(tmp_path / "trajectories.jsonl")
    assert (trajectory.meta["score"], trajectory.meta["step_scores"]) == (None, [0.5, None])
    ((sample,),) = (r.samples for r in Journal(tmp_path).records([episode.task]))
    assert math.isnan(sample.score)
    assert sample[1:] == (1.0, False, 0.0, 1, True, None)


def test_a_failed_task_is_finished_too(tmp_path):
    Journal(tmp_path).record(dataclasses.replace(done(1), result=None, fault="it hung twice"), Spent(10))
    log = Journal(tmp_path)
    (found,) = log.records([done(1).task])
    assert (found.failed, found.reward, found.samples) == (True, 0.0, None)
    assert log.spent["policy_tokens"] == 10


TALLY = {"questions": 1, "readings": 2, "chosen": {"2": [2, 0]}, "pairs": 1, "agreeing": 0, "agreeing_by_chance": 0.5}


def test_what_a_judge_says_about_itself_is_kept_with_its_task_and_added_up_over_sittings(tmp_path):
    for number in (0, 1):
        Journal(tmp_path).record(done(number), Spent(10), notes={"judge": TALLY})
    found = Journal(tmp_path).judged["judge"]
    assert (found["questions"], found["readings"], found["agreement"]) == (2, 4, 0)
    assert [p["chosen"] for p in found["positions"]] == [4, 0]
    assert found["bias"] == 0.5
    record(Journal(tmp_path / "other"), 0)
    assert Journal(tmp_path / "other").judged == {}


def test_notes_of_a_judge_that_cannot_be_read_are_named(tmp_path):
    Journal(tmp_path).record(done(0), Spent(10), notes={"judge": {"chosen": {"two": [1]}}})
    with pytest.raises(UserError, match="the notes of a judge cannot be read"):
        Journal(tmp_path).judged  # noqa: B018


def test_tokens_sent_to_a_server_are_part_of_the_budget(tmp_path):
    meter = Spent(10)
    Journal(tmp_path).record(done(0), meter)
    assert "policy_prompt_tokens" not in Journal(tmp_path).spent
    path = tmp_path / "tasks.jsonl"
    row = json.loads(path.read_text())
    row["cost"]["policy_prompt_tokens"] = 70
    path.write_text(json.dumps(row) + "\n")
    assert Journal(tmp_path).spent["policy_prompt_tokens"] == 70


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": "0.7"}, r'line 2: reward is "0.7"; expected a number from 0 to 1'),
        ({"task": ["maze/1"]}, "line 2: task is a list of 1; expected text"),
        ({"samples": [[0.1, 1.0]]}, r"line 2: samples\[0\] is a list of 2; expected a list of score, reward"),
        ({"samples": [[0.1, 7, True, 0, 1, True]]}, r"line 2: samples\[0\].reward is 7; expected"),
        ({"cost": {"policy_tokens": -1}}, r"line 2: cost.policy_tokens is -1; expected a whole number from 0 on"),
        ({"spent": None}, "line 2: spent is null; expected an object"),
        ({"failed": 0}, "line 2: failed is 0; expected true or false"),
    ],
)
def test_a_row_that_is_none_is_named(tmp_path, change, message):
    record(Journal(tmp_path), 0, 1)
    path = tmp_path / "tasks.jsonl"
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{json.dumps(json.loads(second) | change)}\n")
    with pytest.raises(UserError, match=message):
        Journal(tmp_path)
