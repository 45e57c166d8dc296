"""Where numbers of a run go: metrics.jsonl, TensorBoard, and one line on the terminal."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agentrm_jax.files import finite, replacing, write_atomically
from agentrm_jax.types import JSON, UserError


class MetricWriter:
    """Appends rows to `metrics.jsonl` and TensorBoard event files in a workdir; only one process should.

    Rows after step `done` (if given), written by a run that was killed after its last checkpoint, are dropped: they will come again.
    So are lines that are no rows.
    """

    def __init__(self, workdir: Path, *, done: int | None = None, enabled: bool = True):
        from tensorboardX import SummaryWriter

        path = workdir / "metrics.jsonl"
        if enabled and done is not None and path.exists():
            lines = path.read_bytes().split(b"\n")[:-1]
            kept = [line for line in lines if 0 <= _step(line) <= done]
            write_atomically(path, b"".join(line + b"\n" for line in kept))
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
        self._file.write(json.dumps(finite({"step": step, **row})) + "\n")
        self._file.flush()
        for name, value in row.items():
            if isinstance(value, int | float):
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()


def _step(line: bytes) -> int:
    """The step of a row; -1 if the line is none."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return -1
    return step if isinstance(step, int) else -1


class StepLog:
    """Metrics of the steps since the last row, and the tokens of all steps. Its `state` goes into checkpoints, so that the rows of a
    run that was stopped are those of one that was not.

    Args:
      state: from the checkpoint that a run goes on from; empty at its beginning.
      step: the step it goes on from.
      faults: folder for the batch of a step whose loss or gradient is not finite; None: it is not kept.
    """

    def __init__(self, state: Mapping[str, JSON], step: int, faults: Path | None = None):
        self._tokens: int = state.get("tokens", 0)
        self._window: list[dict[str, float]] = list(state.get("window", ()))
        self._waiting: list[
            tuple[Mapping[str, Any], Mapping[str, Any]]
        ] = []  # of steps that may still be running, with batches
        self._faults = faults
        self._step, self._timed_from = step, len(self._window)
        self._clock, self._compile_seconds, self._compiled = time.monotonic(), 0.0, False

    def add(self, metrics: Mapping[str, Any], batch: Mapping[str, Any] | None = None) -> None:
        """Takes the metrics of one more step, scalars on the device: those of the step before are waited for (and of the first step).

        `batch` is what this process read in the step, arrays of the host.

        Raises:
          UserError: a loss or gradient is not finite; the batch lies in `faults`.
        """
        self._waiting.append((metrics, batch or {}))
        self._read(all_but=1 if self._compiled else 0)
        if not self._compiled:
            self._compile_seconds, self._clock = time.monotonic() - self._clock, time.monotonic()
            self._compiled, self._timed_from = True, len(self._window)

    def row(self) -> dict[str, float]:
        """Means over the steps since the last row, with `tokens_seen`, `tokens_per_second` (without the step that compiles) and
        `compile_seconds`.

        Raises:
          UserError: a loss is not finite.
        """
        self._read()
        row = {name: sum(m[name] for m in self._window) / len(self._window) for name in self._window[0]}
        timed = sum(m["tokens"] for m in self._window[self._timed_from :])
        row |= {
            "tokens_seen": self._tokens,
            "tokens_per_second": timed / max(time.monotonic() - self._clock, 1e-9),
            "compile_seconds": self._compile_seconds,
        }
        self._window, self._timed_from, self._clock = [], 0, time.monotonic()
        return row

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A block whose time is not that of steps, an evaluation for instance; the steps so far are waited for first."""
        self._read()
        begin = time.monotonic()
        yield
        self._clock += time.monotonic() - begin

    def state(self) -> dict[str, JSON]:
        """What a checkpoint of the last step needs to hold: `tokens`, and `window`, the steps since the last row.

        Raises:
          UserError: a loss is not finite; such a state is not worth keeping.
        """
        self._read()
        return {"tokens": self._tokens, "window": self._window}

    def _read(self, all_but: int = 0) -> None:
        import jax

        ready = self._waiting[: len(self._waiting) - all_but]
        self._waiting = self._waiting[len(ready) :]
        for metrics, (_, batch) in zip(jax.device_get([metrics for metrics, _ in ready]), ready, strict=True):
            self._step += 1
            self._window.append({name: float(value) for name, value in metrics.items()})
            self._tokens += int(metrics["tokens"])
            for name, what in (("loss", "loss"), ("gradient_norm", "gradient")):
                if not math.isfinite(metrics.get(name, 0.0)):
                    kept = self._keep(batch)
                    raise UserError(
                        f"the {what} is not finite at step {self._step}; {kept}lower --config.learning_rate"
                    )

    def _keep(self, batch: Mapping[str, Any]) -> str:
        """Writes the batch of the present step, whose update was not made; what a message says of it."""
        if self._faults is None or not batch:
            return ""
        import jax
        import numpy as np

        process = f"-process-{jax.process_index()}" if jax.process_count() > 1 else ""
        path = self._faults / f"not-finite-step-{self._step}{process}.npz"
        with replacing(path) as draft, draft.open("wb") as file:
            np.savez_compressed(file, **batch)
        return f"no update was made of its batch, which lies in {path}; "


class ProgressLine:
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
