"""The scripts of cluster/ are sound as far as they can be without a cluster: they parse, and what they name exists."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SCRIPTS = [*(ROOT / "cluster").glob("*.sbatch"), *(ROOT / "cluster").glob("*.sh")]
EVERYTHING = [*SCRIPTS, *(ROOT / "cluster").glob("*.yaml")]


def run(script: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", str(script), *arguments], capture_output=True, text=True, env=os.environ | env)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_a_script_parses_and_says_what_it_lacks(script):
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0
    bare = run(script)
    assert bare.returncode != 0
    assert re.search(r"set (WORKDIR|PROJECT) to", bare.stderr)


@pytest.mark.parametrize("name", ["slurm.sbatch", "slurm-search.sbatch"])
@pytest.mark.parametrize(("code", "requeued"), [(0, False), (143, True), (2, False)])
def test_a_job_that_was_told_to_stop_queues_itself_again(tmp_path, name, code, requeued):
    for tool, body in (
        ("srun", f'echo "$@" > {tmp_path}/ran; exit {code}'),
        ("scontrol", f'echo "$@" > {tmp_path}/again'),
    ):
        (tmp_path / tool).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / tool).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = run(ROOT / "cluster" / name, "train.py", "--config=a b", PATH=path, WORKDIR="/w", SLURM_JOB_ID="7")
    assert done.returncode == code
    assert (tmp_path / "ran").read_text().endswith("train.py --config=a b --workdir=/w\n")
    assert (tmp_path / "again").exists() == requeued
    if requeued:
        assert (tmp_path / "again").read_text() == "requeue 7\n"


def test_a_command_line_reaches_virtual_machines_as_it_was_typed(tmp_path):
    (tmp_path / "gcloud").write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {tmp_path}/asked\n')
    (tmp_path / "gcloud").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PROJECT": "p", "ZONE": "z"}
    assert run(ROOT / "cluster" / "tpu-vm.sh", "run", "train", "--config.run_name=a b", **env).returncode == 0
    command = (tmp_path / "asked").read_text().splitlines()[-1].removeprefix("--command=")
    assert command.startswith("JAX_COORDINATOR_ADDRESS=auto ")
    assert command.endswith(r"env/bin/agentrm train --config.run_name=a\ b ")


@pytest.mark.parametrize("file", sorted((ROOT / "cluster").glob("*.yaml")), ids=lambda p: p.name)
def test_a_description_parses(file):
    assert yaml.safe_load(file.read_text())


@pytest.mark.parametrize("file", EVERYTHING, ids=lambda p: p.name)
def test_configs_that_are_named_exist(file):
    for config in re.findall(r"--config=(configs/\w+\.py)", file.read_text()):
        assert (ROOT / config).is_file()
