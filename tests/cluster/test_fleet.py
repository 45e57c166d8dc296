"""Searches on a real Ray cluster of three nodes on this machine, with one, two and four engines, and with a node killed in mid-run."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_collections
import pytest

from tests.test_mains import ENGINE, ROOT, TINY, run, sft  # noqa: F401

pytest.importorskip("ray", reason="Ray is not installed: pip install 'agentrm-jax[ray]'")

from agentrm_jax.cluster import fleet
from agentrm_jax.cluster.records import Finished
from agentrm_jax.search import Cost
from agentrm_jax.testing.ray_nodes import Nodes
from agentrm_jax.testing.toy_env import make_task
from agentrm_jax.types import UserError

pytestmark = pytest.mark.slow
COUNT = 16
SEARCH = (*TINY, *ENGINE, f"--config.env.count={COUNT}", "--config.search.n=3", "--config.log_seconds=0")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory) -> Iterator[Nodes]:
    with Nodes(tmp_path_factory.mktemp("ray") / "log.txt") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def judged(sft) -> tuple[str, ...]:  # noqa: F811
    """Best of three by a judge: tokens are drawn, a reward model is asked and has something to note."""
    return (*SEARCH, f"--config.policy={sft}", f"--config.reward_model=judge:{sft}")


@pytest.fixture(scope="module")
def alone(judged, tmp_path_factory) -> Path:
    """The search of a single process."""
    workdir = tmp_path_factory.mktemp("alone") / "judge"
    run("search.py", "judge", workdir, *judged)
    return workdir


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def records(workdir: Path) -> dict[str, dict[str, Any]]:
    """Task -> its record, without what depends on how a batch was shared."""
    found = rows(workdir / "tasks.jsonl")
    assert len(found) == COUNT == len({row["task"] for row in found})
    return {row.pop("task"): {k: v for k, v in row.items() if k not in ("cost", "sitting", "spent")} for row in found}


def trajectories(workdir: Path) -> dict[str, Any]:
    """All trajectories, with the token ids that were drawn and the scores of the reward model."""
    return {f"{row['task']['id']} {row['meta']['sample']}": row for row in rows(workdir / "trajectories.jsonl")}


def assert_close(mine: Any, theirs: Any) -> None:
    """Equal, but for rounding of numbers, which depends on how many rows are computed together."""
    assert type(mine) is type(theirs)
    match mine:
        case dict():
            assert mine.keys() == theirs.keys()
            for name in mine:
                assert_close(mine[name], theirs[name])
        case list():
            assert len(mine) == len(theirs)
            for one, other in zip(mine, theirs, strict=True):
                assert_close(one, other)
        case float():
            assert mine == pytest.approx(theirs, abs=1e-4)
        case _:
            assert mine == theirs


def assert_the_same(workdir: Path, alone: Path) -> None:
    assert_close(records(workdir), records(alone))
    assert_close(trajectories(workdir), trajectories(alone))
    mine, theirs = (json.loads((folder / "results.json").read_text()) for folder in (workdir, alone))
    for name in ("overall", "per_env", "judge"):
        assert_close(mine.get(name), theirs.get(name))
    for name in ("policy_tokens", "env_steps"):
        assert mine["budget"][name] == theirs["budget"][name]


def start(config: str, workdir: Path, *options: str, said: Path, cwd: Path = ROOT) -> subprocess.Popen:
    """A search in a process of its own, which writes all that it says into the file `said`."""
    command = [sys.executable, str(ROOT / "search.py"), f"--config={ROOT}/configs/{config}.py", f"--workdir={workdir}"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with said.open("w") as file:
        return subprocess.Popen([*command, *options], cwd=cwd, env=env, stdout=file, stderr=file)


def wait(process: subprocess.Popen, said: Path, ready: Callable[[], object] = lambda: False) -> str:
    """Waits until `ready`, or else for the end, which must be a good one; what has been said by then."""
    begin = time.monotonic()
    while not ready() and process.poll() is None and time.monotonic() < begin + 300:
        time.sleep(0.05)
    assert process.poll() in (None, 0), said.read_text()[-3000:]
    return said.read_text()


def shares(said: str) -> list[int]:
    """How many tasks each engine has finished."""
    line = re.search(r"^tasks by engine: (.*)$", said, re.MULTILINE)
    assert line, said
    return [int(part.partition(": ")[2]) for part in line[1].split(", ")]


@pytest.mark.parametrize("engines", [1, 2, 4])
def test_results_are_those_of_one_process_and_every_engine_has_its_share(engines, nodes, judged, alone, tmp_path):
    workdir = tmp_path / "judge"
    on_ray = (f"--config.ray={nodes.address}", f"--config.engines={engines}", "--config.concurrency=2")
    said = run("search.py", "judge", workdir, *judged, *on_ray)
    assert_the_same(workdir, alone)
    assert sum(shares(said)) == COUNT
    assert 1 <= len(shares(said)) <= engines
    assert not (workdir / "parts").exists()


def hosts(said: str) -> dict[str, str]:
    """Engine -> id of its node."""
    return dict(re.findall(r"^engine (\d+) is on node \S+ \((\w+)\)$", said, re.MULTILINE))


def finished(workdir: Path) -> int:
    path = workdir / "tasks.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


TOY = """
import os
from agentrm_jax.testing.scripted import uniform_policy

def make(specs, config):
    return uniform_policy("abc")

def broken(specs, config):
    raise ValueError("no such thing")

def deadly(specs, config):
    os._exit(1)
"""


def explore(folder: Path, name: str, *options: str) -> subprocess.Popen:
    """Trees of a game, by a policy of the user's own, started in the user's folder."""
    (folder / "mine.py").write_text(TOY)
    own = (
        *("--config.policy=mine:make", "--config.env.names=agentrm_jax.testing.toy_env,", "--config.env.split=test"),
        *(
            "--config.env.start=0",
            "--config.env.count=16",
            "--config.env.workers=1",
            "--config.env.options.toy.delay=0.01",
        ),
        *("--config.search.iterations=5", "--config.search.k=3", "--config.log_seconds=0", "--config.concurrency=3"),
    )
    return start("mcts", Path(name), *own, *options, said=folder / f"{name}.txt", cwd=folder)


def trees(workdir: Path) -> list[str]:
    return sorted((workdir / "trees" / "trees.jsonl").read_text().splitlines())


@pytest.fixture(scope="module")
def explored(tmp_path_factory) -> list[str]:
    """The trees of a single process."""
    folder = tmp_path_factory.mktemp("explored")
    wait(explore(folder, "alone"), folder / "alone.txt")
    found = trees(folder / "alone")
    assert len(found) == 16
    return found


def test_every_engine_has_its_share_of_what_takes_time(nodes, explored, tmp_path):
    slow = ("--config.env.options.toy.delay=0.1", "--config.concurrency=4")
    process = explore(tmp_path, "ray", f"--config.ray={nodes.address}", "--config.engines=4", *slow)
    mine = shares(wait(process, tmp_path / "ray.txt"))
    assert sum(mine) == 16
    assert len(mine) == 4
    assert max(mine) <= 8
    assert trees(tmp_path / "ray") == explored


def test_a_search_that_is_stopped_on_a_cluster_goes_on_without_it(nodes, explored, tmp_path):
    process = explore(tmp_path, "trees", f"--config.ray={nodes.address}", "--config.engines=1")
    wait(process, tmp_path / "trees.txt", lambda: finished(tmp_path / "trees") >= 2)
    process.terminate()
    assert process.wait(60) == 143
    lines = (tmp_path / "trees.txt").read_text().splitlines()
    assert lines[-1] == "stopped; finished tasks are kept; the same command continues"
    before = finished(tmp_path / "trees")
    assert 2 <= before < 16
    assert f"mcts on 16 tasks, {before} done before" in wait(explore(tmp_path, "trees"), tmp_path / "trees.txt")
    assert trees(tmp_path / "trees") == explored


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (
            ("--config.engines=99",),
            r"error: 99 engines with 1 environment workers each need 99 CPUs.* lower --config\.engines.*",
        ),
        (
            ("--config.policy=mine:broken",),
            r"error: mine:broken fails: ValueError: no such thing \(.*mine\.py, line 9\)",
        ),
        (
            ("--config.policy=mine:deadly",),
            r"error: 3 engines were lost one after the other, and no task was finished in between; the last one: .*",
        ),
    ],
)
def test_what_the_cluster_cannot_do_is_said_in_one_line_and_leaves_nothing(options, error, nodes, tmp_path):
    process = explore(tmp_path, "ray", f"--config.ray={nodes.address}", "--config.engines=1", *options)
    assert process.wait(120) == 2
    said = (tmp_path / "ray.txt").read_text()
    assert re.findall(r"^(?:error: .*|Traceback.*)$", said, re.MULTILINE) == [re.search(error, said)[0]], said
    assert not (tmp_path / "ray").exists()


def test_a_node_that_dies_costs_what_it_had_in_flight_and_nothing_finished(nodes, judged, alone, tmp_path):
    workdir, said = tmp_path / "judge", tmp_path / "said.txt"
    on_ray = (f"--config.ray={nodes.address}", "--config.engines=3", "--config.concurrency=2")
    process = start("judge", workdir, *judged, *on_ray, said=said)
    running = wait(process, said, lambda: finished(workdir) and set(hosts(said.read_text()).values()) & set(nodes.ids))
    engine, node = next((engine, node) for engine, node in hosts(running).items() if node in nodes.ids)
    before = (workdir / "tasks.jsonl").read_text()
    nodes.kill(nodes.ids.index(node))
    end = wait(process, said)
    lost = re.findall(r"^engine (\d+) is lost \(.*\); tasks tried elsewhere: (\d+)$", end, re.MULTILINE)
    assert engine in dict(lost)
    assert {hosts(end).get(number, node) for number, _ in lost} == {node}
    assert 1 <= sum(int(count) for _, count in lost) <= 2 * len(lost)
    assert (workdir / "tasks.jsonl").read_text().startswith(before)
    assert_the_same(workdir, alone)
    assert sum(shares(end)) == COUNT


def test_trees_of_a_users_policy_are_the_same_though_a_node_dies(nodes, explored, tmp_path):
    process = explore(tmp_path, "ray", f"--config.ray={nodes.address}", "--config.engines=3")
    wait(process, tmp_path / "ray.txt", lambda: finished(tmp_path / "ray") >= 2)
    nodes.kill(min({0, 1} - nodes.killed))
    assert sum(shares(wait(process, tmp_path / "ray.txt"))) == 16
    assert trees(tmp_path / "ray") == explored


def test_a_cluster_that_is_not_there_is_said_at_once():
    with pytest.raises(
        UserError, match=r"--config\.ray=127\.0\.0\.1:1: no Ray cluster is found there .* ray start --head"
    ):
        fleet._connect("127.0.0.1:1")


ON_GPUS = [{"Alive": True, "Resources": {"CPU": 32.0, "GPU": 8.0}}] * 2
ON_TPUS = [{"Alive": True, "Resources": {"CPU": 16.0, "TPU": 4.0}}] * 3
ON_CPUS = [{"Alive": alive, "Resources": {"CPU": 8.0}} for alive in (True, True, True, False)]


@pytest.mark.parametrize(
    ("cluster", "engines", "tensor", "count", "needs"),
    [
        (ON_GPUS, 0, 1, 16, {"num_gpus": 1}),
        (ON_GPUS, 0, 3, 4, {"num_gpus": 3}),  # two on each node: an engine lies on one
        (ON_GPUS, 5, 2, 5, {"num_gpus": 2}),
        (ON_TPUS, 0, 4, 3, {"resources": {"TPU": 4}}),
        (ON_CPUS, 0, 1, 3, {}),
        (ON_CPUS, 7, 1, 7, {}),
    ],
)
def test_there_is_an_engine_for_every_group_of_accelerators(cluster, engines, tensor, count, needs, monkeypatch):
    monkeypatch.setattr(fleet.ray, "nodes", lambda: cluster)
    found, place = fleet._places(config(engines, tensor, 2))
    assert found == count
    assert place == {"num_cpus": 0, "scheduling_strategy": "SPREAD", **needs}


@pytest.mark.parametrize(
    ("cluster", "engines", "workers", "said"),
    [
        (ON_GPUS, 9, 1, r"--config\.engines=9: the cluster has accelerators for 8 engines of 2; 0 takes them all"),
        (
            ON_CPUS,
            13,
            2,
            r"13 engines with 2 environment workers each need 26 CPUs, .* the cluster has 24, and up to 8 on",
        ),
        (ON_CPUS, 1, 9, r"each need 9 CPUs, 9 of them on one node; the cluster has 24, and up to 8 on one node; lower"),
    ],
)
def test_more_engines_than_a_cluster_has_room_for_are_refused(cluster, engines, workers, said, monkeypatch):
    monkeypatch.setattr(fleet.ray, "nodes", lambda: cluster)
    with pytest.raises(UserError, match=said):
        fleet._places(config(engines, 2, workers))


def config(engines: int, tensor: int, workers: int) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict({"engines": engines, "engine": {"tensor": tensor}, "env": {"workers": workers}})


def test_what_a_lost_engine_had_spent_stays_spent():
    """A task is charged what its last search cost; the sum is of all engines there were."""
    task, other = make_task(3), make_task(4)
    meter = fleet.FleetMeter()
    meter.take(0, Finished(other, None, "it hung", 1.0, Cost(policy_tokens=3), Cost(policy_tokens=8), {}))
    meter.take(1, Finished(task, None, "it hung", 1.0, Cost(policy_tokens=5), Cost(policy_tokens=5), {}))
    assert meter.tasks[task.key].policy_tokens == 5
    assert meter.total().policy_tokens == 13  # five of them lost, with what engine 0 had in flight
