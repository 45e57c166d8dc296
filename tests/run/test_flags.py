"""Command lines: every experiment says how it is run, values keep their types, and a mistake is one line with the fix."""

import ast
import subprocess
import sys
from pathlib import Path

import ml_collections
import pytest

from agentrm_jax.run import flags, stages
from agentrm_jax.types import UserError

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted(p for p in (ROOT / "configs").glob("*.py") if p.stem != "common")


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def parse(*arguments: str) -> ml_collections.ConfigDict:
    return flags.parse(arguments)[0]


def refusal(*arguments: str) -> str:
    """The one line a command line is refused with."""
    with pytest.raises(UserError) as caught:
        flags.parse(arguments)
    return str(caught.value)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_every_experiment_resolves_and_its_docstring_names_its_command(path):
    doc = ast.get_docstring(ast.parse(path.read_text()))
    assert doc is not None
    main = stages.STAGES[path.stem].main
    assert f"python {main} --config=configs/{path.name}" in doc
    config, workdir = flags.parse([f"--config=configs/{path.name}"])
    assert config.size == "nano"
    assert workdir == Path("runs/nano") / path.stem
    named, _ = flags.parse([f"--config=configs/{path.name}:nano"])
    assert named.to_dict() == config.to_dict()
    assert config.is_locked


SFT = "--config=configs/sft.py"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("total_steps", "7", 7),
        ("learning_rate", "1", 1.0),
        ("learning_rate", "3e-5", 3e-5),
        ("init", "runs/nano/sft", "runs/nano/sft"),
        ("init", "12", "12"),
        ("mesh.tensor", "2", 2),
        ("env.names", "maze", ("maze",)),
        ("env.names", "maze, babyai", ("maze", "babyai")),
        ("env.names", "('maze', 'babyai')", ("maze", "babyai")),
        ("env.options.maze.sizes", "3,5", (3, 5)),
        ("env.options.maze.sizes", "3", (3,)),
        ("env.options.maze.new_key", "5", 5),
        ("env.options.another.key", "text", "text"),
        ("env.options.another.key", "[1, 2]", [1, 2]),
    ],
)
def test_a_value_gets_the_type_of_what_it_replaces(key, text, value):
    node = parse(SFT, f"--config.{key}={text}")
    for part in key.split("."):
        node = node[part]
    node = list(node) if isinstance(value, list) else node
    assert node == value
    assert type(node) is type(value)


def test_true_and_false_are_words_and_not_any_text():
    config = ml_collections.ConfigDict({"flag": False})
    for text, value in (("true", True), ("False", False), ("1", True)):
        flags.override(config, "flag", text)
        assert config.flag is value
    with pytest.raises(UserError, match=r"--config\.flag=maybe: must be true or false"):
        flags.override(config, "flag", "maybe")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((SFT, "--config.totl_steps=5"), ("unknown config key --config.totl_steps", "did you mean total_steps")),
        ((SFT, "--config.mesh.tenso=2"), ("--config.mesh.tenso", "did you mean tensor")),
        ((SFT, "--config.zzz=2"), ("--config.zzz", "known here: ", "total_steps")),
        ((SFT, "--config.seed.x=2"), ("--config.seed.x", "seed is a value, not a group")),
        ((SFT, "--config.mesh=2"), ("--config.mesh is a group of keys: data, fsdp, tensor",)),
        ((SFT, "--config.total_steps=many"), ("--config.total_steps=many: must be a whole number",)),
        ((SFT, "--config.total_steps=1.5"), ("must be a whole number",)),
        ((SFT, "--config.learning_rate=fast"), ("--config.learning_rate=fast: must be a number",)),
        ((SFT, "--config.env.options.maze.sizes=big"), ("sizes=big: must be a list like 3",)),
        ((SFT, "--steps=5"), ("unknown flag --steps", "usage: ")),
        ((SFT, "runs"), ("cannot read 'runs'", "usage: ")),
        ((SFT, "--workdir"), ("cannot read '--workdir'",)),
        (("--workdir=x",), ("--config is missing", "usage: ")),
        (("--config=configs/stf.py",), ("no such file", "did you mean configs/sft.py?")),
        (("--config=nowhere/at/all.py",), ("--config=nowhere/at/all.py: no such file",)),
        (("--config=pyproject.toml",), ("--config=pyproject.toml: a config is a Python file",)),
        (("--config=configs/common.py",), ("configs/common.py defines no get_config",)),
        (("--config=configs/sft.py:giant",), ("no size 'giant'", "nano")),
        ((SFT, "--workdir=/nowhere/at/all"), ("--workdir=/nowhere/at/all: the folder /nowhere/at does not exist",)),
    ],
)
def test_a_mistake_is_named_with_what_to_do(arguments, parts):
    line = refusal(*arguments)
    assert all(part in line for part in parts), line


def test_a_workdir_below_the_current_folder_needs_no_folder_around_it(tmp_path, monkeypatch):
    """As the default one does not: the first command of a newcomer may name one."""
    monkeypatch.chdir(tmp_path)
    _, workdir = flags.parse([SFT, "--workdir=runs/mine"], "train.py")
    assert workdir == Path("runs/mine")
    assert not list(tmp_path.iterdir())


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("train.py", SFT, "--config.totl_steps=5"), ("--config.totl_steps", "did you mean total_steps")),
        (("search.py", "--config=configs/greedy.py", "--workdir=/nowhere/at/all"), ("the folder /nowhere/at",)),
    ],
)
def test_a_main_ends_with_one_line_and_exit_code_2(arguments, parts):
    done = command(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in parts)


def test_the_other_mains_config_is_named_with_its_command():
    with pytest.raises(UserError) as caught:
        flags.parse(["--config=configs/beam.py"], "train.py")
    assert str(caught.value) == "--config=configs/beam.py is for search.py: python search.py --config=configs/beam.py"
    assert flags.parse(["--config=configs/beam.py"], "search.py")[0].method == "beam"


@pytest.mark.parametrize("key", ["size=smollm2", "method=greedy"])
def test_what_a_config_file_is_cannot_be_set(key):
    assert "is what the config file is; choose another" in refusal("--config=configs/beam.py", f"--config.{key}")


def test_a_value_may_follow_its_flag_after_a_space(tmp_path):
    config, workdir = flags.parse(
        ["--config", "configs/sft.py", "--workdir", str(tmp_path / "x"), "--config.total_steps", "7"]
    )
    assert (config.total_steps, workdir) == (7, tmp_path / "x")
    assert flags.joined(["--json", "--config", "a.py", "--config.x=-1", "--flag"], switches=("--json",)) == [
        "--json",
        "--config=a.py",
        "--config.x=-1",
        "--flag",
    ]


def test_shipped_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, workdir = flags.parse(["--config=configs/sft.py"])
    assert (config.loss, workdir) == ("imitation", Path("runs/nano/sft"))
    assert "did you mean configs/sft.py?" in refusal("--config=configs/stf.py")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def get_config(", "fails: SyntaxError"),
        ("import nowhere_to_be_found", "fails: ModuleNotFoundError: No module named 'nowhere_to_be_found' (line 1)"),
        ("def get_config(size='nano'): return None", "does not say which main it is for; write MAIN = "),
        (
            "MAIN = 'train.py'\ndef get_config():\n    return 1 / 0",
            "fails: ZeroDivisionError: division by zero (line 3)",
        ),
        ("MAIN = 'train.py'\ndef get_config(): return {}", "must return an ml_collections.ConfigDict with a size"),
    ],
)
def test_a_config_of_ones_own_that_fails_is_one_line(tmp_path, code, said):
    (tmp_path / "mine.py").write_text(code)
    assert said in refusal(f"--config={tmp_path / 'mine.py'}")


def test_an_object_store_is_no_workdir_and_no_folder_of_that_name_is_made(tmp_path, monkeypatch):
    assert "--workdir=gs://bucket/run: an object store" in refusal(SFT, "--workdir=gs://bucket/run")
    assert not (ROOT / "gs:").exists()
