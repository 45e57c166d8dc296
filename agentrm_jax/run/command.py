"""How every command line ends: the line that is printed and the exit code."""

import argparse
import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from agentrm_jax.run import lock
from agentrm_jax.types import UserError

BAD_INPUT = 2


class Stopped(KeyboardInterrupt):
    """A run was asked to stop (SIGINT, SIGTERM) and has saved its work; the text says what is kept."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are `UserError`s."""

    def error(self, message: str) -> NoReturn:
        program = " ".join(self.prog.split()[:3])  # python -m MODULE, without the name of a subcommand
        raise UserError(f"{message}; see {program} --help")


def run(work: Callable[[], int | None], *, kept: str = "") -> NoReturn:
    """Runs a command and ends the process with its exit code (`exit_code`)."""
    code = exit_code(work, kept=kept)
    sys.stdout.flush()
    sys.stderr.flush()
    if code in (0, BAD_INPUT):
        sys.exit(code)
    os._exit(code)  # background threads of a broken or stopped run must not keep it alive


def exit_code(work: Callable[[], int | None], *, kept: str = "") -> int:
    """Runs a command; returns its exit code, having printed on standard error why it is not 0.

    The code is what `work` returns (None is 0), 2 for input that the user can mend, 130 or 143 after SIGINT or SIGTERM, and 1 for
    any other error, with its traceback.

    Args:
      kept: what is left of the work of a command that is interrupted, e.g. "the same command continues".
    """
    with _signals() as received:
        try:
            return work() or 0
        except UserError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            return BAD_INPUT
        except Stopped as stopped:
            print(f"\n{stopped}", file=sys.stderr)
        except KeyboardInterrupt:
            print("\nstopped" + (f"; {kept}" if kept else ""), file=sys.stderr)
        except BrokenPipeError:  # whoever reads our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception:
            traceback.print_exc()
            return 1
        finally:
            lock.release_all()
        return 128 + (received[0] if received else signal.SIGINT)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Within the block SIGTERM and SIGHUP do what SIGINT does, also to a running event loop; yields those that came."""
    received: list[int] = []

    def forward(number: int, _: Any) -> None:
        received.append(number)
        signal.raise_signal(signal.SIGINT)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        # A shell script starts what it puts in the background with SIGINT ignored; what is forwarded has to end it all the same.
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            before[int(signal.SIGINT)] = signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (int(signal.SIGTERM), int(signal.SIGHUP)):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
                before[number] = signal.signal(number, forward)
    try:
        yield received
    finally:
        for changed, handler in before.items():
            signal.signal(changed, handler)
