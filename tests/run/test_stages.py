"""What a run needs of earlier ones: there, made first, or asked for in one line."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import ml_collections
import pytest

from agentrm_jax.run import flags, stages, workdirs
from agentrm_jax.types import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def commands(monkeypatch) -> list[list[str]]:
    """Commands that were started, each of which does its work and ends well."""
    started: list[list[str]] = []

    def run(arguments: Sequence[str], *, alone: bool) -> int:
        assert alone
        started.append(list(arguments))
        workdir = Path(next(c for c in arguments if c.startswith("--workdir=")).removeprefix("--workdir="))
        workdir.mkdir()
        workdirs.finish(workdir)
        return 0

    monkeypatch.setattr(stages, "run", run)
    return started


def test_a_finished_run_is_used(tmp_path, commands):
    workdirs.finish(tmp_path, steps=3)
    stages.require(str(tmp_path), "sft", "nano")
    assert commands == []
    assert (tmp_path / "done.json").read_text() == '{"steps": 3}\n'


@pytest.mark.parametrize(("name", "main"), [("sft", "train.py"), ("explicit", "train.py"), ("mcts", "search.py")])
def test_the_default_run_is_made_first_by_its_own_command(name, main, commands, capsys):
    place = f"runs/nano/{name}"
    stages.require(place, name, "nano")
    assert commands == [[f"{ROOT}/{main}", f"--config={ROOT}/configs/{name}.py:nano", f"--workdir={place}"]]
    assert f"making it first: python {ROOT}/{main} --config={ROOT}/configs/{name}.py:nano" in capsys.readouterr().out
    stages.require(place, name, "nano")
    assert len(commands) == 1


def test_another_folder_must_be_complete(tmp_path, commands):
    with pytest.raises(UserError, match=r"mine \(needed as sft\) does not exist"):
        stages.require(str(tmp_path / "mine"), "sft", "nano")
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match=r"is not finished; run its command again"):
        stages.require(str(tmp_path / "mine"), "sft", "nano")
    assert commands == []


def test_a_model_folder_from_elsewhere_needs_no_run(tmp_path, commands):
    (tmp_path / "model.safetensors").write_text("")
    stages.require(str(tmp_path), "sft", "nano")
    assert commands == []


def test_a_run_that_cannot_be_made_is_reported(monkeypatch):
    monkeypatch.setattr(stages, "run", lambda arguments, *, alone: 3)
    with pytest.raises(UserError, match=r"making runs/nano/sft failed with exit code 3"):
        stages.require("runs/nano/sft", "sft", "nano")


def test_in_the_folder_of_the_mains_commands_are_short(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert stages.arguments_of("sft", "nano") == ["train.py", "--config=configs/sft.py:nano"]


def test_everything_that_a_config_names_is_made_in_the_order_of_the_loop(commands):
    config = ml_collections.ConfigDict(
        {"size": "nano", "init": "runs/nano/sft", "trees": "runs/nano/mcts", "reward_model": "", "greedy": "elsewhere"}
    )
    stages.require_named(config)
    assert [c[-1] for c in commands] == ["--workdir=runs/nano/sft", "--workdir=runs/nano/mcts"]


def test_what_acts_or_judges_from_elsewhere_needs_no_run_and_a_judge_of_ours_needs_its_policy(commands):
    config = ml_collections.ConfigDict(
        {"size": "nano", "policy": "openai:gpt@http://x/v1", "reward_model": "mine:make"}
    )
    stages.require_named(config)
    config.reward_model = "judge:openai:gpt@http://x/v1"
    stages.require_named(config)
    assert commands == []
    config.reward_model = "judge:runs/nano/sft"
    stages.require_named(config)
    assert [command[-1] for command in commands] == ["--workdir=runs/nano/sft"]


@pytest.mark.parametrize(
    ("place", "made"),
    [
        ("runs/nano/explicit", ["runs/nano/explicit"]),
        ("runs/nano/implicit", ["runs/nano/implicit"]),
        ("implicit:runs/nano/sft@smollm2", ["runs/nano/sft"]),
    ],
)
def test_a_reward_model_is_made_by_the_stage_whose_run_it_names(commands, place, made):
    stages.require_named(ml_collections.ConfigDict({"size": "nano", "reward_model": place}))
    assert [c[-1] for c in commands] == [f"--workdir={place}" for place in made]


def test_an_implicit_reward_model_needs_the_trajectories_or_trees_that_it_names_only(commands):
    config = {"size": "nano", "init": "runs/nano/sft", "samples": "runs/nano/sample", "trees": ""}
    stages.require_named(ml_collections.ConfigDict(config))
    assert [c[-1] for c in commands] == ["--workdir=runs/nano/sft", "--workdir=runs/nano/sample"]


@pytest.mark.parametrize(
    ("config", "named", "init", "made"),
    [
        ("explicit", (), "", []),
        ("explicit", ("--config.init=runs/nano/sft",), "runs/nano/sft", ["runs/nano/sft"]),
        ("explicit:smollm2", (), "smollm2", []),
        ("implicit", (), "runs/nano/sft", ["runs/nano/sft"]),
        ("sft", (), "", []),
    ],
)
def test_with_rows_of_ones_own_no_search_is_run_and_a_small_reward_model_starts_from_nothing(
    commands, config, named, init, made
):
    name, _, size = config.partition(":")
    path = f"--config={ROOT}/configs/{name}.py" + (f":{size}" if size else "")
    found, _ = flags.parse([path, "--config.data=mine.jsonl", *named])
    assert found.init == init
    stages.require_named(found)
    assert [command[-1].removeprefix("--workdir=") for command in commands] == made


def test_the_table_has_every_config_and_its_main():
    names = {p.stem for p in (ROOT / "configs").glob("*.py")} - {"common"}
    assert names == set(stages.STAGES)
    for name, stage in stages.STAGES.items():
        assert stage.main == flags.load_module(ROOT / "configs" / f"{name}.py").MAIN


def test_a_hub_name_is_said_to_be_none(commands):
    with pytest.raises(UserError, match=r"not fetched from a hub by name: download it, .*hf download Qwen/Qwen3-0\.6B"):
        stages.require("Qwen/Qwen3-0.6B", "sft", "nano")


def test_a_stage_is_asked_once_to_stop_and_waited_for(tmp_path):
    """Of a process that runs a stage and is terminated, the stage hears once, saves its work, and ends before it."""
    stage = tmp_path / "stage.py"
    stage.write_text(
        "import pathlib, signal, sys, time\n"
        "asked = []\n"
        "def ask(*_):\n"
        "    asked.append(1)\n"
        "signal.signal(signal.SIGTERM, ask); signal.signal(signal.SIGINT, ask)\n"
        "pathlib.Path('ready').touch()\n"
        "while not asked: time.sleep(0.01)\n"
        "time.sleep(0.3)\n"
        "pathlib.Path('saved').write_text(str(len(asked)))\n"
    )
    code = f"from agentrm_jax.run import command, stages; command.run(lambda: stages.run([{str(stage)!r}]), kept='all')"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    outer = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "ready").exists():
        assert outer.poll() is None
        time.sleep(0.02)
    outer.send_signal(signal.SIGTERM)
    _, err = outer.communicate(timeout=30)
    assert (outer.returncode, err.strip()) == (143, "stopped; all")
    assert (tmp_path / "saved").read_text() == "1"
