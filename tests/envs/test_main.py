"""`python -m agentrm_jax.envs`: what a person at the terminal gets."""

import io
import json
import subprocess
import sys

import pytest

from agentrm_jax.data.formats import read_trajectories
from agentrm_jax.envs.__main__ import main
from agentrm_jax.envs.catalogue import names
from agentrm_jax.testing import toy_env
from agentrm_jax.testing.shared import needs_shared, shared_data

TASKS = toy_env.tasks("test", {})
TOY = "agentrm_jax.testing.toy_env"

UNSTEADY = '''
"""The toy game with observations that nobody can reproduce."""
import dataclasses, os
from agentrm_jax.testing import toy_env

class Unsteady(toy_env.ToyEnv):
    def step(self, command):
        answer = super().step(command)
        return dataclasses.replace(answer, observation=answer.observation + os.urandom(4).hex())

SPEC = dataclasses.replace(toy_env.SPEC, make=Unsteady)
'''


@pytest.fixture
def run(capsys, monkeypatch):
    """(exit code, output, errors) of a command line, with lines typed into it."""

    def call(*argv, typed=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        code = main(argv)
        return code, *capsys.readouterr()

    return call


# list


def test_the_list_has_a_line_for_every_environment(run):
    code, out, _ = run()
    assert code == 0
    table, _, notes = out.partition("\n\n")
    rows = {line.split()[0]: line for line in table.splitlines()[1:]}
    assert sorted(rows) == names()
    *counts, speed, licence, extra = rows["maze"].split()[1:]
    assert counts == ["built", "in", "yes", "900", "30", "60", "yes"]
    assert int(speed.replace(",", "")) > 100
    assert (licence, extra) == ("Apache-2.0", "-")
    assert "agentgym: option base_url is missing; set it to the address of a server" in notes


@needs_shared("maze")
def test_the_list_says_what_was_found_of_official_data(run):
    assert "maze: official tasks found: test 25" in run("list", "--data", str(shared_data()))[1]


def test_without_official_data_the_list_says_so(run, tmp_path):
    assert "maze: no official tasks found (maze: " in run("--data", str(tmp_path))[1]
    assert run("--data", str(tmp_path / "nowhere"))[2] == f"error: --data {tmp_path}/nowhere: there is no such folder\n"


def test_it_runs_as_a_module():
    found = subprocess.run(
        [sys.executable, "-m", "agentrm_jax.envs", "play", TOY], input="b\n", capture_output=True, text=True
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert 'Observation: The word is "b".' in found.stdout


# play


def test_playing_an_episode_shows_goal_observations_and_rewards(run):
    code, out, _ = run("play", TOY, typed="b\nb\nnonsense\nThought: last\n\nThought: last one. Action: b\nb\n")
    assert code == 0
    assert out.startswith("toy/h3, at most 5 steps.")
    assert 'Goal: Write the best word of 3 letters.\n\nThe word is "".\n' in out
    assert 'Observation: The word is "bb".\n[reward 0, progress 0.667, step 2 of 5]\n' in out
    assert "Observation: Nothing happens.\n[reward 0, progress 0.667, step 3 of 5, not a valid command]\n" in out


def test_the_end_is_announced_and_can_be_taken_back(run):
    _, out, _ = run("play", TOY, typed="b\nb\nb\na\n:undo\na\n:quit\nb\n")
    first, second = out.split("Back at step 2.\n")
    over = "The episode is over: success. :undo or :quit?\n"
    assert first.endswith("[reward 0.965, progress 1, step 3 of 5]\n" + over + over)
    assert second.startswith('Observation: The word is "bb".\nObservation: The word is "bba".\n[reward 0.391, ')
    assert "The episode is over: no success." in second


def test_undo_replays_where_there_are_no_snapshots(run):
    _, out, _ = run("play", TOY, "--option", "snapshot=False", typed=":undo\nb\na\n:undo\nb\n")
    assert "There is nothing to take back." in out
    assert 'Back at step 1, by replay.\nObservation: The word is "b".\nObservation: The word is "bb".' in out


def test_the_expert_hints_while_one_follows_it(run):
    _, out, _ = run("play", TOY, typed=":expert\nb\n:expert\na\n:expert\n:undo\n:expert\n")
    hint = "Letter 2 of the best word is b.\nb\n"
    assert "Letter 1 of the best word is b.\nb\n" in out
    assert out.count(hint) == 2
    assert "The expert would have done otherwise at step 2: b (:undo leads back).\n" in out


def test_other_colon_commands_and_empty_lines_cost_nothing(run):
    _, out, _ = run("play", TOY, typed="\n:rules\n:help\nb\n")
    assert "You write a word, one letter a turn." in out
    assert out.count("Type a command of the environment") == 2
    assert "step 1 of 5" in out


def test_a_task_is_chosen_by_id_or_number(run):
    second = TASKS[1]
    for wanted in (second.id, second.key, "1"):
        assert run("play", TOY, "--task", wanted)[1].startswith(f"{second.key}, at most")
    assert run("play", TOY, "--split", "train")[1].startswith("toy/h4-")
    code, _, errors = run("play", TOY, "--task", "16")
    assert (code, errors) == (
        2,
        "error: toy has no task '16' in split test; take a number below 16, or an id such as h3\n",
    )


# check


def test_check_compares_the_experts_episodes_with_replays(run):
    code, out, _ = run("check", TOY, "--n", "2")
    first, second, summary = out.splitlines()
    assert code == 0
    assert first == "equal     toy/h3: solved in 3 steps, reward 0.965"
    assert second.startswith(f"equal     {TASKS[8].key}: solved in ")
    assert summary.startswith(
        "2 tasks: 2 solved, 0 not solved, 0 without an expert's episode, 0 diverged; mean reward 0.9"
    )


def test_check_fails_if_a_replay_diverges(run, tmp_path, monkeypatch):
    (tmp_path / "unsteady_env.py").write_text(UNSTEADY)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "unsteady").mkdir()
    (tmp_path / "unsteady" / "env.py").write_text(UNSTEADY)
    for place in ("unsteady_env", "unsteady.env"):  # neither is named as its SPEC is, which tasks are called after
        code, out, _ = run("check", place, "--n", "1")
        assert code == 1
        assert out.startswith('DIVERGED  toy/h3: step 1 answers observation \'Observation: The word is "b".')
        assert "1 diverged; mean reward" in out


def test_check_fails_if_no_task_can_be_played(run, tmp_path, monkeypatch):
    broken = (
        "from agentrm_jax.testing import toy_env\nimport dataclasses\ndef make(options): raise OSError('no engine')\n"
    )
    (tmp_path / "broken_env.py").write_text(broken + "SPEC = dataclasses.replace(toy_env.SPEC, make=make)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    code, out, _ = run("check", "broken_env", "--n", "2")
    assert code == 1
    assert "no engine" in out
    assert "2 without an expert's episode" in out


def test_check_names_what_a_users_module_raises(run, tmp_path, monkeypatch):
    (tmp_path / "listless_env.py").write_text(
        "from agentrm_jax.testing import toy_env\nimport dataclasses\ndef tasks(split, options): raise OSError('no\\nlist')\n"
        "SPEC = dataclasses.replace(toy_env.SPEC, tasks=tasks)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    code, _, errors = run("check", "listless_env", "--n", "2")
    assert code == 2
    assert errors.startswith("error: listless_env could not list its tasks: OSError: no list (")
    assert len(errors.splitlines()) == 1


def test_check_wants_an_expert(run):
    code, _, errors = run("check", "agentgym", "--option", "kind=maze", "--option", "indices=2")
    assert (code, errors) == (2, "error: environment 'agentgym' has no expert to check it with\n")


# experts


def test_experts_are_written_and_continued(run, tmp_path):
    out = tmp_path / "toy.jsonl"
    assert run("experts", TOY, "--n", "2", "--out", str(out))[1] == "2 of 2 tasks solved (0 of them before)\n"
    first = out.read_text()
    with out.open("a") as f:
        f.write('{"cut off')
    assert run("experts", TOY, "--n", "3", "--out", str(out))[1] == "3 of 3 tasks solved (2 of them before)\n"
    assert out.read_text().startswith(first)
    trajectories = read_trajectories(out)
    assert [t.task.split for t in trajectories] == ["train"] * 3
    assert all(t.last.success for t in trajectories)
    assert json.loads(first.splitlines()[0])["kind"] == "trajectory"


def test_experts_need_a_place_to_write_to(run, tmp_path):
    for place in (tmp_path, tmp_path / "no" / "such.jsonl"):
        code, _, errors = run("experts", TOY, "--n", "1", "--out", str(place))
        assert (code, errors) == (2, f"error: --out {place}: not a file in an existing folder\n")


# speed


def test_speed_times_resets_steps_and_forks(run):
    _, out, _ = run("speed", TOY, "--seconds", "0.02")
    assert [line.split()[0] for line in out.splitlines()] == ["toy:", "reset", "step", "snapshot", "restore"]
    _, out, _ = run("speed", TOY, "--seconds", "0.02", "--option", "snapshot=False")
    assert out.splitlines()[-1].startswith("no snapshots")


# mistakes


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("play", "mase"), "no environment named 'mase'; did you mean maze?"),
        (("play", TOY, "--option", "seed"), "--option seed: write KEY=VALUE"),
        (
            ("check", TOY, "--n", "0"),
            "argument --n: '0' is not a number above 0; see python -m agentrm_jax.envs --help",
        ),
        (
            ("experts", TOY, "--n", "1"),
            "the following arguments are required: --out; see python -m agentrm_jax.envs --help",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run, argv, message):
    assert run(*argv) == (2, "", f"error: {message}\n")
