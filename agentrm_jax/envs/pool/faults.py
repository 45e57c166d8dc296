"""Environments that break on purpose, to see what the pool makes of it.

    specs = {"toy": faulty(toy_env.SPEC, crash=0.01, hang=0.01, seed=7, once_in=directory)}
    EnvironmentPool({"toy": {}}, workers=2, step_timeout=1.0, specs=specs)

Where an environment breaks depends on the seed, the task and the commands given so far, not on time or process: the same step breaks
again when it is tried again, for good, unless `once_in` names a directory in which all workers note what already happened.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agentrm_jax.envs.spec import EnvSpec, Options
from agentrm_jax.types import EngineStep, Environment, Expert, Start, Task

KINDS = ("hang", "crash", "error", "garbage", "drift")


class DeliberateError(Exception):
    """Raised by an environment that was told to."""


def faulty(
    spec: EnvSpec,
    *,
    hang: float = 0.0,
    crash: float = 0.0,
    error: float = 0.0,
    garbage: float = 0.0,
    drift: float = 0.0,
    slow_start: float = 0.0,
    slow_starts: float = 1.0,
    seed: int = 0,
    once_in: str | None = None,
) -> EnvSpec:
    """`spec` with an engine that breaks.

    Args:
      spec: any environment made of module-level functions.
      hang, crash, error, garbage, drift: probability per step that the engine sleeps for ever, ends its process, raises, answers
        something that is no EngineStep, answers with a different observation every time; their sum is at most 1.
      slow_start: seconds that building an engine takes, if it is a slow one.
      slow_starts: share of engines that are slow to build; below 1 it needs `once_in`, where builds are numbered over all workers.
      seed: of the places where it breaks.
      once_in: an existing directory; each place then breaks only once, and leaves a file `KIND-PLACE` there.
    """
    rates = {"hang": hang, "crash": crash, "error": error, "garbage": garbage, "drift": drift}
    if sum(rates.values()) > 1 + 1e-9 or min(rates.values()) < 0:
        raise ValueError(f"fault rates must be probabilities with a sum of at most 1, but are {rates}")
    if slow_starts < 1 and once_in is None:
        raise ValueError("a share of slow starts needs once_in, the directory in which builds are counted")
    make = functools.partial(_make, spec, rates, (slow_start, slow_starts), seed, once_in)
    expert = functools.partial(_expert, spec.expert) if spec.expert else None
    return dataclasses.replace(spec, make=make, expert=expert)


def fault_at(rates: Mapping[str, float], seed: int, path: tuple[str, ...]) -> str | None:
    """What breaks in the step that ends `path`, the task's key and the commands so far: one of `KINDS`, or None."""
    draw = int.from_bytes(_digest(seed, path), "big") / 2**64
    for kind in KINDS:
        draw -= rates.get(kind, 0.0)
        if draw < 0:
            return kind
    return None


class FaultyEnvironment:
    """Passes everything on to `inner`, and breaks where it should."""

    def __init__(self, inner: Environment, rates: Mapping[str, float], seed: int, once_in: str | None):
        self.inner = inner
        self._rates, self._seed, self._once_in = rates, seed, once_in
        self._path: tuple[str, ...] = ()

    def reset(self, task: Task) -> Start:
        self._path = (task.key,)
        return self.inner.reset(task)

    def step(self, command: str) -> EngineStep:
        self._path += (command,)
        kind = self._fault()
        if kind == "hang":
            time.sleep(1e6)
        if kind == "crash":
            os._exit(3)
        if kind == "error":
            raise DeliberateError(f"told to fail after {self._path!r:.200}")
        answer = self.inner.step(command)
        if kind == "garbage":
            return "garbage"  # type: ignore[return-value]
        if kind == "drift":
            return dataclasses.replace(answer, observation=f"{answer.observation} {os.urandom(8).hex()}")
        return answer

    def snapshot(self) -> Any:
        return self.inner.snapshot(), self._path

    def restore(self, snapshot: Any) -> None:
        inner, self._path = snapshot
        self.inner.restore(inner)

    def close(self) -> None:
        self.inner.close()

    def _fault(self) -> str | None:
        kind = fault_at(self._rates, self._seed, self._path)
        return kind if kind and self._first_time(f"{kind}-{_digest(self._seed, self._path).hex()}") else None

    def _first_time(self, place: str) -> bool:
        if self._once_in is None:
            return True
        try:
            (Path(self._once_in) / place).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def _digest(seed: int, path: tuple[str, ...]) -> bytes:
    return hashlib.blake2b(repr((seed, path)).encode(), digest_size=8).digest()


def _make(
    spec: EnvSpec,
    rates: Mapping[str, float],
    slow: tuple[float, float],
    seed: int,
    once_in: str | None,
    options: Options,
) -> FaultyEnvironment:
    seconds, share = slow
    if share == 1 or _is_slow(share, seed, Path(str(once_in))):
        time.sleep(seconds)
    return FaultyEnvironment(spec.make(options), rates, seed, once_in)


def _is_slow(share: float, seed: int, folder: Path) -> bool:
    """Whether this build, the next one by number, is a slow one; notes it in `folder` as `slow-NUMBER` if it is."""
    for number in itertools.count():
        drawn = int.from_bytes(_digest(seed, ("build", str(number))), "big") / 2**64
        place = folder / f"{'slow' if drawn < share else 'built'}-{number}"
        with contextlib.suppress(FileExistsError):
            place.touch(exist_ok=False)
            return drawn < share
    raise AssertionError("an endless count ended")


def _expert(expert: Expert, env: Environment, task: Task) -> Iterator[tuple[str, str]]:
    # an expert may look into its own environment, which it would not recognise behind the wrapper
    return expert(env.inner if isinstance(env, FaultyEnvironment) else env, task)
