"""Searches on a real Ray cluster of three nodes on this machine, with one, two and four engines, and with a node killed in mid-run."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_mains import ENGINE, ROOT, TINY, run, sft, start  # noqa: F401

pytest.importorskip("ray", reason="Ray is not installed: pip install 'agentrm-jax[ray]'")
COUNT = 12
SEARCH = (*TINY, *ENGINE, f"--config.env.count={COUNT}", "--config.search.n=3", "--config.log_seconds=0")

# A cluster in a process of its own, which is told node by node what to do: `kill N` kills one as a machine dies, `add` adds one.
_CLUSTER = """
import sys
from ray.cluster_utils import Cluster
node = {"num_cpus": 4, "object_store_memory": 10**8}
cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
nodes = [cluster.add_node(**node) for _ in range(2)]
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.remove_node(nodes[int(line)], allow_graceful=False)
    print("killed", flush=True)
cluster.shutdown()
"""


class Nodes:
    """A running cluster: `address`, and nodes 0 and 1, which may be killed; its head may not."""

    def __init__(self, log: Path):
        pipe = subprocess.PIPE
        quiet = {"RAY_enable_worker_prestart": "0", "RAY_prestart_worker_first_driver": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        # engines need the package, as they have it on a cluster
        env = os.environ | quiet | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", _CLUSTER]
        self._log = log.open("w")
        self._process = subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=self._log, text=True)
        self.address = self._line()

    def kill(self, number: int) -> None:
        assert self._process.stdin is not None
        print(number, file=self._process.stdin, flush=True)
        assert self._line() == "killed"

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._log.close()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, Path(self._log.name).read_text()[-3000:]
        return line


@pytest.fixture(scope="module")
def nodes(tmp_path_factory) -> Iterator[Nodes]:
    cluster = Nodes(tmp_path_factory.mktemp("ray") / "log.txt")
    yield cluster
    cluster.close()


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


def trajectories(workdir: Path) -> list[str]:
    """All trajectories, with the token ids that were drawn and the scores of the reward model."""
    return sorted(json.dumps(row, sort_keys=True) for row in rows(workdir / "trajectories.jsonl"))


def assert_the_same(workdir: Path, alone: Path) -> None:
    assert records(workdir) == records(alone)
    assert trajectories(workdir) == trajectories(alone)
    assert all(len(row["samples"]) == 3 and row["notes"]["judge"] for row in records(alone).values())
    mine, theirs = (json.loads((folder / "results.json").read_text()) for folder in (workdir, alone))
    for name in ("overall", "environments", "judge"):
        assert mine.get(name) == theirs.get(name)
    for name in ("policy_tokens", "env_steps"):
        assert mine["budget"][name] == theirs["budget"][name]


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


def test_a_node_that_dies_costs_what_it_had_in_flight_and_nothing_finished(nodes, judged, alone, tmp_path):
    workdir = tmp_path / "judge"
    on_ray = (f"--config.ray={nodes.address}", "--config.engines=3", "--config.concurrency=1")
    process = start("search.py", "judge", workdir, *judged, *on_ray)
    tasks = workdir / "tasks.jsonl"
    while not tasks.exists() or tasks.read_text().count("\n") < 3:
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.05)
    before = tasks.read_text()
    nodes.kill(0)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    assert tasks.read_text().startswith(before)
    assert_the_same(workdir, alone)
    assert sum(shares(out)) == COUNT
    assert "is lost" in err or "environments" in err
