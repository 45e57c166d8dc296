"""Where numbers of a run go: metrics.jsonl, TensorBoard, and one line on the terminal."""

import json
import sys
import time
from pathlib import Path

from agentrm_jax.types import JSON


class MetricWriter:
    """Appends rows to `metrics.jsonl` and TensorBoard event files in a workdir; only one process should.

    Rows after step `done` (if given), written by a run that was killed after its last checkpoint, are dropped: they will come again.
    """

    def __init__(self, workdir: Path, *, done: int | None = None, enabled: bool = True):
        from tensorboardX import SummaryWriter

        path = workdir / "metrics.jsonl"
        if enabled and done is not None and path.exists():
            lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            path.write_text("".join(line for line in lines if json.loads(line)["step"] <= done))
        self._file = path.open("a") if enabled else None
        self._board = (
            SummaryWriter(str(workdir), flush_secs=30, purge_step=None if done is None else done + 1)
            if enabled
            else None
        )

    def write(self, step: int, row: dict[str, JSON]) -> None:
        """Adds one row at `step`; numbers only in TensorBoard, everything in the JSON lines."""
        if self._file is None or self._board is None:
            return
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()
        for name, value in row.items():
            if isinstance(value, int | float):
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()


class Progress:
    """One line that says how far a run is, how fast, and how long it will take; rewritten on a terminal, appended elsewhere."""

    def __init__(self, total: int, *, done: int = 0, name: str = "step", enabled: bool = True, period: float = 10.0):
        self._total, self._first, self._name = total, done, name
        self._enabled, self._period = enabled, period
        self._start = self._last = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def show(self, done: int, *parts: str, final: bool = False) -> None:
        """Prints the line, at most once a period away from a terminal (always if `final`)."""
        now = time.monotonic()
        if not self._enabled or (not self._terminal and not final and now - self._last < self._period):
            return
        self._last = now
        spent = now - self._start
        speed = (done - self._first) / spent if spent > 0 else 0.0
        left = f"{format_seconds((self._total - done) / speed)} left" if speed > 0 and done < self._total else ""
        line = "  ".join(p for p in (f"{self._name} {done}/{self._total}", *parts, format_seconds(spent), left) if p)
        end = "\n" if final or not self._terminal else ""
        print(("\r\x1b[K" if self._terminal else "") + line, end=end, file=sys.stderr, flush=True)


def format_seconds(seconds: float) -> str:
    """`42s`, `3m10s` or `1h05m`."""
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    return f"{s // 60}m{s % 60:02d}s" if s < 3600 else f"{s // 3600}h{s % 3600 // 60:02d}m"
