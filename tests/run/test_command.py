"""How commands end: one line and an exit code, whatever ends them."""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentrm_jax.run import command, lock, stopping
from agentrm_jax.types import UserError

ROOT = Path(__file__).parents[2]


def raising(error: BaseException):
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "code", "said"),
    [
        (lambda: None, 0, ""),
        (lambda: 1, 1, ""),
        (raising(UserError("no\n  such thing")), 2, "error: no such thing\n"),
        (raising(KeyboardInterrupt()), 130, "\nstopped; all is kept\n"),
        (raising(command.Stopped("stopped at step 3; saved")), 130, "\nstopped at step 3; saved\n"),
    ],
)
def test_codes_and_lines(work, code, said, capsys):
    assert command.exit_code(work, kept="all is kept") == code
    assert capsys.readouterr().err == said


def test_what_is_not_the_users_to_mend_shows_where_it_happened(capsys):
    assert command.exit_code(raising(ZeroDivisionError("oh"))) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "ZeroDivisionError: oh"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_an_event_loop_in_order(number, capsys):
    """The loop's tasks are cancelled and may clean up, whichever signal it is."""
    closed = []

    async def wait() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.sleep(60)
        finally:
            closed.append(True)

    before = signal.getsignal(signal.SIGTERM)
    assert command.exit_code(lambda: asyncio.run(wait()), kept="finished tasks are kept") == 128 + number
    assert closed == [True]
    assert capsys.readouterr().err == "\nstopped; finished tasks are kept\n"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_that_a_script_started_in_the_background(number):
    """Such a process is started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:

        async def wait() -> None:
            os.kill(os.getpid(), number)
            await asyncio.sleep(1)

        assert command.exit_code(lambda: asyncio.run(wait())) == 128 + number
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_loop_is_asked_first_and_interrupted_second(capsys):
    steps = []

    def work() -> None:
        with stopping.requests() as stop:
            for step in range(10):
                steps.append(step)
                if step == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
                if stop.agreed(meeting=False):
                    raise command.Stopped("saved")

    assert command.exit_code(work) == 143
    assert steps == [0, 1, 2, 3]
    assert capsys.readouterr().err.splitlines()[-1] == "saved"

    def stubborn() -> None:
        with stopping.requests():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    assert command.exit_code(stubborn) == 130


def test_locks_are_given_back_however_a_command_ends(tmp_path):
    for error in (UserError(), KeyboardInterrupt(), ZeroDivisionError()):

        def work(error: BaseException = error) -> None:
            lock.acquire(tmp_path)
            raise error

        command.exit_code(work)
        assert not list(tmp_path.iterdir())


def test_a_reader_that_has_seen_enough_is_no_error():
    code = (
        "from agentrm_jax.run import command\n"
        "command.run(lambda: [print('x' * 100, flush=True) for _ in range(10000)] and None)"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], env=env, **pipes) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_a_parser_raises_what_it_refuses():
    parser = command.Parser(prog="python -m agentrm_jax.score")
    parser.add_argument("--rows", type=int)
    with pytest.raises(
        UserError, match=r"argument --rows: invalid int value: 'x'; see python -m agentrm_jax\.score --help"
    ):
        parser.parse_args(["--rows", "x"])
    assert isinstance(parser, argparse.ArgumentParser)
