"""One process at a time writes a workdir."""

import json
import os
import socket
import subprocess
import sys

import pytest

from agentrm_jax.run import lock
from agentrm_jax.types import UserError


@pytest.fixture(autouse=True)
def _unlocked():
    yield
    lock.release_all()


def owner(**changes) -> str:
    """A lock as a process wrote it: this one's parent, which is alive, unless said otherwise."""
    pid = os.getppid()
    row = {"pid": pid, "host": socket.gethostname(), "since": "2026-01-01T00:00:00+00:00"}
    return json.dumps(row | {"started": lock._started(pid)} | changes)


def test_it_says_who_holds_it_and_is_given_back(tmp_path):
    lock.acquire(tmp_path)
    lock.acquire(tmp_path)  # the same process may ask twice
    row = json.loads((tmp_path / "lock.json").read_text())
    assert (row["pid"], row["host"]) == (os.getpid(), socket.gethostname())
    lock.release_all()
    assert not list(tmp_path.iterdir())


def test_a_second_process_is_refused_with_who_and_since_when(tmp_path):
    lock.acquire(tmp_path)
    code = f"from pathlib import Path; from agentrm_jax.run import lock; lock.acquire(Path({str(tmp_path)!r}))"
    second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = second.stderr.splitlines()[-1]
    assert f"is in use by process {os.getpid()} on {socket.gethostname()} since 2" in last
    assert "wait for it, or choose another --workdir" in last


@pytest.mark.parametrize(
    "content",
    [
        owner(pid=2**22 + 1),  # no process has that number
        owner(started="another boot 12"),  # the number belongs to a later process now
        owner(pid="x"),
        "",
        '{"pid": 12',
        "[1]",
    ],
)
def test_a_stale_one_is_taken_over(tmp_path, content):
    (tmp_path / "lock.json").write_text(content)
    lock.acquire(tmp_path)
    assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()


def test_one_that_is_alive_or_out_of_sight_is_not(tmp_path):
    (tmp_path / "lock.json").write_text(owner())
    with pytest.raises(UserError, match=r"is in use by process \d+ on .* wait for it"):
        lock.acquire(tmp_path)
    (tmp_path / "lock.json").write_text(owner(host="another-host"))
    with pytest.raises(UserError, match=r"on another-host since .* if that process is gone, remove .*lock\.json"):
        lock.acquire(tmp_path)


def test_of_many_at_once_one_gets_it(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from agentrm_jax.run import lock\n"
        "sys.stdin.readline()\n"
        f"lock.acquire(Path({str(tmp_path)!r})); print('mine', flush=True); time.sleep(60)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    (tmp_path / "lock.json").write_text(owner(pid=2**22 + 1))  # a stale one, which all of them want to take over
    several = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(4)]
    try:
        for process in several:
            process.stdin.write("\n")
            process.stdin.flush()
        refused = 0
        while refused < 3:
            refused = sum(process.poll() == 1 for process in several)
        (winner,) = (process for process in several if process.poll() is None)
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == winner.pid
    finally:
        for process in several:
            process.kill()
            process.communicate()
