"""Worker processes end with their parent, however it ends, and carry no accelerator code."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def comes_true(condition, within=60.0):
    """Whether the condition holds at last; the bound is only there for the test to end."""
    end = time.monotonic() + within
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def gone(pid):
    """The process has ended (or is a zombie that nobody has collected yet)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


PARENT = """
import asyncio, sys, time
from agentrm_jax.envs.pool.faults import faulty
from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.testing import toy_env
from agentrm_jax.types import Action

TOY = "agentrm_jax.testing.toy_env"

async def main():
    specs = {{"toy": faulty(toy_env.SPEC, hang={hang})}}
    pool = EnvironmentPool({{TOY: {{}}}}, workers=2, specs=specs)
    roots = [await pool.reset(t) for t in toy_env.tasks("train", {{}})[:2]]
    print(*pool.pids, flush=True)
    steps = [asyncio.ensure_future(pool.step(r, Action("Action: a"))) for r in roots]
    await asyncio.sleep(0.2)
    {end}

asyncio.run(main())
"""


FROZEN_AFTER = """
import dataclasses
from agentrm_jax.envs.pool import pool as pool_module
made = pool_module.Settings
pool_module.Settings = lambda *a: dataclasses.replace(made(*a), frozen_after=4.0)

"""


@pytest.mark.parametrize(
    ("end", "hang"),
    [("time.sleep(60)", 0.0), ("time.sleep(60)", 1.0), ("sys.exit(0)", 1.0)],
    ids=["killed", "killed while a step hangs", "left while a step hangs"],
)
def test_no_process_and_no_folder_outlives_its_parent(end, hang, tmp_path):
    code = PARENT.format(end=end, hang=hang)
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    with parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(list(tmp_path.glob("agentrm-worker-*"))) == 2
        if "sleep" in end:
            time.sleep(0.3)
            parent.kill()
    assert len(pids) == 2
    assert comes_true(lambda: all(gone(pid) for pid in pids))
    assert comes_true(lambda: not list(tmp_path.iterdir()))


@pytest.mark.slow
def test_a_worker_stuck_in_native_code_does_not_outlive_its_parent(tmp_path):
    """The parent is killed once both workers have said that they are about to enter the code that lets no thread run."""
    (tmp_path / "native_env.py").write_text(
        "import dataclasses, os, pathlib, re\n"
        "from agentrm_jax.envs.pool import worker\n"
        "from agentrm_jax.testing import toy_env\n"
        "worker._GUARD_PERIOD = 0.1  # a live worker winds up its timer that often\n"
        "class Native(toy_env.ToyEnv):\n"
        "    def step(self, command):\n"
        f"        pathlib.Path({str(tmp_path)!r}, f'stuck-{{os.getpid()}}').touch()\n"
        "        re.match('(a+)+$', 'a' * 60 + 'b')  # hours, and no other thread runs meanwhile\n"
        "SPEC = dataclasses.replace(toy_env.SPEC, make=Native)\n"
    )
    code = PARENT.format(end="time.sleep(600)", hang=0.0)
    code = code.replace("faulty(toy_env.SPEC, hang=0.0)", "__import__('native_env').SPEC")
    # The pool's own limits stay generous; only the worker's timer is short, and what is left of it decides nothing here.
    code = code.replace("async def main", FROZEN_AFTER + "async def main", 1)
    (tmp_path / "tmp").mkdir()  # such a worker cannot remove its folder
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "TMPDIR": str(tmp_path / "tmp")}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        stuck = comes_true(lambda: len(list(tmp_path.glob("stuck-*"))) == 2)
        parent.kill()
    assert stuck
    assert {path.name for path in tmp_path.glob("stuck-*")} == {f"stuck-{pid}" for pid in pids}
    ended = comes_true(lambda: all(gone(pid) for pid in pids))
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert ended


def test_workers_and_their_owners_do_not_import_jax():
    code = (
        "import agentrm_jax.envs.pool.worker, agentrm_jax.envs.pool.pool, agentrm_jax.envs.experts, agentrm_jax.envs.pool.faults, sys\n"
        "sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
