"""The folder of a run: what binds it, what may change, who writes it, and what a refused run leaves behind."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import ml_collections
import pytest

from agentrm_jax.run import flags, lock, workdirs
from agentrm_jax.types import UserError

ROOT = Path(__file__).parents[2]
SFT, GREEDY, MCTS = (f"--config={ROOT / 'configs' / name}.py" for name in ("sft", "greedy", "mcts"))


@pytest.fixture(autouse=True)
def _unlocked():
    yield
    lock.release_all()


def parse(*arguments: str) -> ml_collections.ConfigDict:
    return flags.parse(arguments)[0]


def begin(workdir: Path, *arguments: str) -> None:
    """A run that gets as far as its first result, and stops there."""
    with workdirs.begun(parse(*arguments), workdir):
        (workdir / "result").touch()
    lock.release_all()


def refusal(workdir: Path, *arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        begin(workdir, *arguments)
    lock.release_all()
    return str(caught.value)


def written(workdir: Path) -> dict:
    return json.loads((workdir / "config.json").read_text())


def test_the_parent_of_a_default_workdir_need_not_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, workdir = flags.parse([SFT])
    with workdirs.begun(config, workdir):
        assert (tmp_path / "runs/nano/sft/config.json").exists()


def test_a_workdir_belongs_to_one_config(tmp_path):
    config = parse(SFT)
    begin(tmp_path, SFT)
    before = (tmp_path / "config.json").read_text()
    begin(tmp_path, SFT, "--config.total_steps=" + str(config.total_steps))
    line = refusal(tmp_path, SFT, "--config.seed=1", "--config.mesh.fsdp=2")
    assert "made with another config (differs in: mesh.fsdp: 1, now 2; seed: 0, now 1); choose another" in line
    assert (tmp_path / "config.json").read_text() == before
    assert not (tmp_path / "config_changes.jsonl").exists()


@pytest.mark.parametrize(
    "override",
    ["learning_rate=1", "batch_rows=4", "env.names=maze", "model.d_ff=64", "total_steps=9", "dtype=bfloat16"],
)
def test_what_changes_results_is_refused_by_name(tmp_path, override):
    begin(tmp_path, SFT)
    assert f"differs in: {override.split('=')[0]}: " in refusal(tmp_path, SFT, f"--config.{override}")


@pytest.mark.parametrize(
    ("config", "key", "new"),
    [
        (SFT, "log_steps", 3),
        (SFT, "checkpoint_steps", 7),
        (SFT, "env.workers", 1),
        (GREEDY, "concurrency", 3),
        (GREEDY, "env.step_timeout", 5.0),
        (GREEDY, "log_seconds", 1.0),
        (GREEDY, "engine.rows", [4, 8]),
        (GREEDY, "engine.cache_tokens", 4096),
    ],
)
def test_what_cannot_change_results_may_change_and_is_noted(tmp_path, config, key, new, capsys):
    begin(tmp_path, config)
    text = ",".join(map(str, new)) if isinstance(new, list) else str(new)
    begin(tmp_path, config, f"--config.{key}={text}")
    value, old = written(tmp_path), parse(config)
    for part in key.split("."):
        value, old = value[part], old[part]
    assert value == new
    (row,) = map(json.loads, (tmp_path / "config_changes.jsonl").read_text().splitlines())
    assert row.pop("time").endswith("+00:00")
    assert row == {"key": key, "old": list(old) if isinstance(old, tuple) else old, "new": new}
    assert f"goes on with another {key}: " in capsys.readouterr().err


def test_a_finished_run_takes_more_steps_and_says_what_that_does(tmp_path, capsys):
    begin(tmp_path, SFT, "--config.total_steps=6")
    workdirs.finish(tmp_path, steps=6)
    longer = parse(SFT, "--config.total_steps=8")
    changes = workdirs.compare(longer, tmp_path)
    assert workdirs.is_extended(changes)
    assert workdirs.is_finished(tmp_path)
    begin(tmp_path, SFT, "--config.total_steps=8")
    assert not workdirs.is_finished(tmp_path)
    assert written(tmp_path)["total_steps"] == 8
    assert "total_steps: 6, now 8 (training goes on" in capsys.readouterr().err
    assert not workdirs.compare(longer, tmp_path)


def test_a_longer_context_is_taken_and_a_shorter_one_is_not(tmp_path):
    begin(tmp_path, GREEDY)
    begin(tmp_path, GREEDY, "--config.engine.context=128,1024")
    begin(tmp_path, GREEDY, "--config.engine.context=128,1024")
    assert "differs in: engine.context: 128,1024, now 128,512" in refusal(
        tmp_path, GREEDY, "--config.engine.context=128,512"
    )


def test_a_comparison_writes_nothing(tmp_path):
    assert workdirs.compare(parse(SFT), tmp_path / "new") == []
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("error", [UserError, KeyboardInterrupt, ZeroDivisionError])
def test_a_run_that_fails_before_its_first_result_binds_nothing(tmp_path, error):
    for workdir in (tmp_path / "new", tmp_path / "old"):
        (tmp_path / "old").mkdir(exist_ok=True)
        with pytest.raises(error), workdirs.begun(parse(SFT), workdir):
            raise error
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert not list((tmp_path / "old").iterdir())
    begin(tmp_path / "new", SFT, "--config.seed=5")


def test_a_run_that_fails_later_keeps_its_config(tmp_path):
    with contextlib.suppress(UserError), workdirs.begun(parse(SFT), tmp_path):
        (tmp_path / "data").mkdir()
        raise UserError
    assert "differs in: seed" in refusal(tmp_path, SFT, "--config.seed=5")


def test_a_workdir_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    assert "file/run cannot be written" in refusal(tmp_path / "file" / "run", SFT)


@pytest.mark.parametrize("content", ["", '{"size": "na', "[]", "null"])
def test_half_a_config_is_one_line(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    assert "config.json" in refusal(tmp_path, SFT)
    with pytest.raises(UserError, match=r"config\.json"):
        workdirs.read_config(tmp_path)


@pytest.mark.parametrize("content", ["", '{"ste', "3"])
def test_half_a_done_mark_is_none(tmp_path, content):
    (tmp_path / "done.json").write_text(content)
    assert not workdirs.is_finished(tmp_path)
    workdirs.finish(tmp_path, steps=3)
    assert workdirs.is_finished(tmp_path)


def test_a_main_refuses_a_changed_config_in_an_old_workdir_before_it_does_anything(tmp_path):
    with workdirs.begun(parse(SFT), tmp_path):
        pass
    lock.release_all()
    done = subprocess.run(
        [sys.executable, "train.py", SFT, f"--workdir={tmp_path}", "--config.seed=5"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "differs in: seed" in line
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "command.txt"}


def test_a_folder_of_other_things_is_no_workdir(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    config = ml_collections.ConfigDict({"seed": 0})
    with pytest.raises(UserError, match=r"holds thesis\.tex and is no folder of a run; name a new one"):
        workdirs.compare(config, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_command_of_a_run_has_every_flag_also_those_that_came_later(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["search.py", GREEDY, "--config.engine.context=128,512", "--config.seed=3"])
    begin(tmp_path, GREEDY, "--config.engine.context=128,512", "--config.seed=3")
    typed = f"python search.py {GREEDY} --config.engine.context=128,512 --config.seed=3"
    assert workdirs.command_of(tmp_path) == typed
    begin(tmp_path, GREEDY, "--config.engine.context=128,1024", "--config.seed=3", "--config.concurrency=7")
    assert workdirs.command_of(tmp_path).split()[1:] == [
        "search.py",
        GREEDY,
        "--config.seed=3",
        "--config.concurrency=7",
        "--config.engine.context=128,1024",
    ]
    assert workdirs.command_of(tmp_path / "nowhere") == ""
