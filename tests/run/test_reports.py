"""Reports of runs, finished or stopped: what they show, and how the command says what it cannot do."""

import dataclasses
import json
from pathlib import Path

import ml_collections
import pytest

from agentrm_jax import report
from agentrm_jax.run import command, reports
from agentrm_jax.run.journal import Journal
from agentrm_jax.search import Meter
from tests.evaluation.test_results import build
from tests.run.test_journal import done


@pytest.fixture
def stopped(tmp_path) -> Path:
    """A search of which two tasks are finished."""
    config = {"method": "beam", "policy": "p", "reward_model": "r", "size": "nano", "env": {"names": ["maze"]}}
    (tmp_path / "beam").mkdir()
    (tmp_path / "beam" / "config.json").write_text(json.dumps(config))
    (tmp_path / "beam" / "command.txt").write_text(
        "python search.py --config=configs/beam.py --config.search.width=3\n"
    )
    log = Journal(tmp_path / "beam")
    for number in (0, 1):
        log.record(done(number), Meter())
    return tmp_path / "beam"


def ends(*arguments: object) -> int:
    return command.exit_code(lambda: report.main([str(a) for a in arguments]))


def test_a_stopped_search_is_reported_as_it_is_and_marked(stopped, tmp_path, capsys):
    before = {p: p.read_bytes() for p in stopped.iterdir() if p.is_file()}
    assert ends(stopped, "--out", tmp_path / "page.html") == 0
    assert "beam (unfinished: 2 tasks)" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert "beam (unfinished: 2 tasks)" in page
    assert {p: p.read_bytes() for p in stopped.iterdir() if p.is_file()} == before, "reading changes nothing"


def test_a_search_that_has_just_finished_is_not_marked_as_unfinished(stopped):
    log = Journal(stopped)
    config = ml_collections.ConfigDict(
        {"method": "beam", "policy": "p", "reward_model": "r", "greedy": "", "env": {"names": ["maze"]}}
    )
    tasks = [done(number).task for number in (0, 1)]
    reports.write(stopped, config, tasks, log)
    assert "(unfinished" not in reports.show(stopped)
    assert "(unfinished" not in (stopped / "report" / "index.html").read_text()


def test_failed_tasks_are_said_with_the_first_fault(stopped):
    assert "failed" not in reports.show(stopped)
    fault = "the history takes 60012 tokens"
    Journal(stopped).record(dataclasses.replace(done(2), result=None, fault=fault), Meter())
    assert (
        reports.show(stopped)
        .splitlines()[-1]
        .endswith(f"1 of 3 tasks failed through no choice of the policy and count as 0; the first, maze/2: {fault}")
    )


def test_the_page_says_the_command_with_the_users_flags(stopped, tmp_path):
    assert ends(stopped, "--out", tmp_path / "page.html") == 0
    assert "--config.search.width=3" in (tmp_path / "page.html").read_text()


def test_an_exploration_is_no_row_of_the_table(stopped):
    config = json.loads((stopped / "config.json").read_text())
    (stopped / "config.json").write_text(json.dumps(config | {"method": "mcts"}))
    text = reports.show(stopped)
    assert text.startswith("mcts (unfinished: 2 tasks): 2 trees; the best episode of a tree earns 50.0 on average")
    assert "vs" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: RUN"),
        (("nowhere",), "nowhere is no folder"),
        ((".",), "holds no finished task of a search"),
        ((".", "--out", "."), "not a file in an existing folder"),
    ],
)
def test_what_cannot_be_reported_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert ends(*arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1


def result(reward_model, **search):
    one = build(reward_model=str(reward_model), config={"search": {"n": 5, **search}, "seed": 0})
    return one | {"panel": {"hash": "a", "tasks": 3, "split": "test", "environments": ["maze", "pddl"]}}


def test_reward_models_that_differ_in_their_seed_make_one_row_and_other_searches_do_not(tmp_path):
    for seed in (0, 1):
        (tmp_path / f"rm{seed}").mkdir()
        (tmp_path / f"rm{seed}/config.json").write_text(json.dumps({"seed": seed, "trees": "t"}))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text(json.dumps({"seed": 0, "trees": "u"}))
    rm0, rm1, other = (tmp_path / name for name in ("rm0", "rm1", "other"))
    found = reports.averaged([result(rm0), result(rm1), result(rm0, n=16), result(rm0), result(other), result("gone")])
    assert [r["method"].removeprefix("best_of_n") for r in found] == [", mean of 2 reward models", "", "", "", ""]
    assert found[0]["repeats"][1]["reward_model"] == str(rm1)
