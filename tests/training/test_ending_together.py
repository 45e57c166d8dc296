"""When one of several processes cannot go on, all end with one line: it with its own, the others naming it.

Run as a script with a case, this file is one of the processes.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentrm_jax import parallel
from agentrm_jax.run import command
from agentrm_jax.types import UserError

ROOT = Path(__file__).parents[2]


@parallel.together()
def main(case: str) -> None:
    parallel.start_distributed()
    process = jax.process_index()
    if case == "the first, while the other waits to enter":
        with parallel.first_process_first("data"):
            if process == 0:
                raise UserError("there are\nno trees")
    elif case == "the second, while the first computes with it":
        mesh = parallel.make_mesh()
        with parallel.first_process_first("data"):
            if process == 1:
                raise UserError("there are\nno trees")
        x = parallel.put_batch({"x": np.ones(1, np.float32)}, mesh)["x"]
        jax.jit(jnp.sum)(x).block_until_ready()
    elif case == "a broken program":
        if process == 1:
            raise ValueError("there are no trees")
        parallel.barrier("never")
    elif case == "both":
        parallel.batch_rows(3, parallel.make_mesh())
    elif case == "none":
        parallel.barrier("end")
        assert parallel.all_agree("all", True)
        assert not parallel.all_agree("some", process == 0)
        print("well")


def two(case: str) -> list[tuple[int, str, str]]:
    """Exit code, output and lines of the standard error of both processes."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    env = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_NUM_CPU_DEVICES": "1"}
    env["PYTHONPATH"] = str(ROOT)
    pipe = subprocess.PIPE
    both = [
        subprocess.Popen(
            [sys.executable, __file__, case], env=env | {"JAX_PROCESS_ID": str(i)}, stdout=pipe, stderr=pipe, text=True
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=120) for process in both]
    return [(process.returncode, out, err) for process, (out, err) in zip(both, said, strict=True)]


@pytest.mark.parametrize(
    ("case", "who"),
    [("the first, while the other waits to enter", 0), ("the second, while the first computes with it", 1)],
)
def test_an_error_of_one_ends_all_with_one_line(case, who):
    ended = two(case)
    assert [code for code, _, _ in ended] == [2, 2], ended
    assert ended[who][2] == "error: there are no trees\n"
    assert ended[1 - who][2] == f"error: process {who} ended: there are no trees\n"


def test_a_crash_of_one_is_a_line_of_the_others():
    ended = two("a broken program")
    assert ended[0] == (2, "", "error: process 1 ended: ValueError: there are no trees\n")
    assert ended[1][0] == 1
    assert "Traceback" in ended[1][2]


def test_what_is_wrong_for_all_is_one_line_of_each():
    for code, _, err in two("both"):
        assert code == 2
        (line,) = err.splitlines()
        assert line == "error: batch of 3 rows does not divide over 2 devices and 2 processes"


def test_a_run_without_error_ends_in_peace():
    assert [(code, out.splitlines()[-1], err) for code, out, err in two("none")] == [(0, "well", "")] * 2


if __name__ == "__main__":
    command.run(lambda: main(sys.argv[1]))
