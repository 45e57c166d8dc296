"""Requests to stop a loop between two of its steps."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import Any


class StopRequest:
    """Whether somebody wants this run to stop.

    Attributes:
      asked: this process was told to.
    """

    def __init__(self) -> None:
        self.asked = False

    def agreed(self, *, meeting: bool) -> bool:
        """Whether to stop now: the same answer in every process of a run.

        One process stops after any step; several, which must stop after the same one, ask each other only where `meeting` is
        true, which must be the same in all of them.
        """
        import jax

        if jax.process_count() == 1:
            return self.asked
        if not meeting:
            return False
        import numpy as np
        from jax.experimental import multihost_utils

        return bool(multihost_utils.process_allgather(np.array([self.asked])).any())


@contextlib.contextmanager
def requests() -> Iterator[StopRequest]:
    """Within the block the first SIGINT asks to stop, and the second one interrupts at once."""
    request = StopRequest()

    def ask(*_: Any) -> None:
        if request.asked:
            raise KeyboardInterrupt
        request.asked = True
        print("\nstopping after this step; once more to stop at once", file=sys.stderr, flush=True)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, before)
