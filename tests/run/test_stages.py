"""What a run needs of earlier ones: there, made first, or asked for in one line."""

import subprocess
import sys
import types
from pathlib import Path

import pytest

from agentrm_jax.run import stages as start
from agentrm_jax.types import UserError


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def commands(monkeypatch) -> list[list[str]]:
    """Commands that were started, each of which does its work and ends well."""
    started: list[list[str]] = []

    def run(command: list[str], *, env: dict[str, str], check: bool) -> types.SimpleNamespace:
        started.append(command)
        workdir = Path(next(c for c in command if c.startswith("--workdir=")).removeprefix("--workdir="))
        workdir.mkdir()
        start.finish(workdir)
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    return started


def test_a_finished_run_is_used(tmp_path, commands):
    start.finish(tmp_path, steps=3)
    start.require(str(tmp_path), "sft", "nano")
    assert commands == []
    assert (tmp_path / "done.json").read_text() == '{"steps": 3}\n'


@pytest.mark.parametrize(("name", "main"), [("sft", "train.py"), ("explicit", "train.py"), ("mcts", "search.py")])
def test_the_default_run_is_made_first_by_its_own_command(name, main, commands, capsys):
    place = f"runs/nano/{name}"
    start.require(place, name, "nano")
    assert commands == [[sys.executable, main, f"--config=configs/{name}.py:nano", f"--workdir={place}"]]
    assert f"making it first: python {main} --config=configs/{name}.py:nano" in capsys.readouterr().out
    start.require(place, name, "nano")
    assert len(commands) == 1


def test_another_folder_must_be_complete(tmp_path, commands):
    with pytest.raises(UserError, match=r"mine \(needed as sft\) does not exist"):
        start.require(str(tmp_path / "mine"), "sft", "nano")
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match=r"is not finished; run its command again"):
        start.require(str(tmp_path / "mine"), "sft", "nano")
    assert commands == []


def test_a_model_folder_from_elsewhere_needs_no_run(tmp_path, commands):
    (tmp_path / "model.safetensors").write_text("")
    start.require(str(tmp_path), "sft", "nano")
    assert commands == []


def test_a_run_that_cannot_be_made_is_reported(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda command, env, check: types.SimpleNamespace(returncode=3))
    with pytest.raises(UserError, match=r"making runs/nano/sft failed with exit code 3"):
        start.require("runs/nano/sft", "sft", "nano")
