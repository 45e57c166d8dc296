"""How every benchmark measures: ours, its baseline and a plain matrix product in turn, many times, in one process.

Times on a shared machine drift by more than what is compared, so only figures of one run are set side by side, every pass of ours
has its baseline right after it, and the rate of a matrix product in between says what the machine gave at that time.
"""

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.models.config import NANO, ModelConfig
from agentrm_jax.testing.tiny import TINY

Pass = Callable[[int], float]  # number of the repeat -> amount of work done (tokens, states, steps)


@dataclasses.dataclass(frozen=True)
class Size:
    """How large a run is: `nano` for figures, `toy` to see that the benchmarks work."""

    name: str
    model: ModelConfig
    histories: int
    context: int
    new_tokens: int
    turns: int
    matrix: int


NANO_SIZE = Size("nano", NANO, 64, 400, 32, 6, 1024)
TOY_SIZE = Size("toy", TINY, 3, 30, 4, 2, 64)


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median of the repeats, and the smallest and largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison: work per second of ours and of a named baseline, and the median of their ratios, repeat by repeat."""

    benchmark: str
    case: str
    unit: str
    ours: Spread
    baseline: str
    theirs: Spread
    ratio: float
    gflops: Spread
    repeats: int

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def compare(
    benchmark: str, case: str, unit: str, ours: Pass, baseline: str, theirs: Pass, *, size: Size, seconds: float
) -> Row:
    """Runs both in turn until `seconds` are over, at least three times; the first pass of each compiles and does not count."""
    product = matrix_product(size.matrix)
    for run in (ours, theirs, product):
        run(0)
    rates: dict[str, list[float]] = {"ours": [], "theirs": [], "gflops": []}
    begin = time.perf_counter()
    repeat = 0
    while repeat < 3 or time.perf_counter() - begin < seconds:
        repeat += 1
        for name, run in (("gflops", product), ("ours", ours), ("theirs", theirs)):
            start = time.perf_counter()
            amount = run(repeat)
            rates[name].append(amount / (time.perf_counter() - start))
    return Row(
        benchmark,
        case,
        unit,
        Spread.of(rates["ours"]),
        baseline,
        Spread.of(rates["theirs"]),
        statistics.median(a / b for a, b in zip(rates["ours"], rates["theirs"], strict=True)),
        Spread.of(rates["gflops"]),
        repeat,
    )


def matrix_product(size: int) -> Pass:
    """A float32 product of two square matrices; its amount is in GFLOP."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), jnp.float32)
    multiply = jax.jit(jnp.matmul)

    def run(repeat: int) -> float:
        multiply(x, x).block_until_ready()
        return 2 * size**3 / 1e9

    return run


def tokens(count: int, size: Size, *seed: int) -> np.ndarray:
    """Random ids, int32[count], the same for the same seed."""
    return np.random.default_rng(seed).integers(4, size.model.vocab_size, count).astype(np.int32)


def machine() -> dict[str, Any]:
    """What the figures depend on, without anything that names the machine."""
    model = ""
    try:
        with open("/proc/cpuinfo") as f:
            model = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), "")
    except OSError:
        model = platform.processor()
    device = jax.local_devices()[0]
    return {
        "cpu": model,
        "cores": jax_cores(),
        "flags": " ".join(flags()) or "unknown",
        "load": f"{os.getloadavg()[0]:.2f}",
        "device": f"{jax.local_device_count()} x {device.device_kind}",
        "system": platform.system(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def flags() -> list[str]:
    """What the processor has of the instruction sets that matter here."""
    try:
        with open("/proc/cpuinfo") as f:
            has = next((line.split(":", 1)[1].split() for line in f if line.startswith("flags")), [])
    except OSError:
        has = []
    return [flag for flag in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16") if flag in has]


def jax_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def table(rows: list[Row]) -> str:
    """Markdown; every figure with its range over the repeats."""
    lines = [
        "| benchmark | case | ours | baseline | ratio | matrix product |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        lines.append(
            f"| {r.benchmark} | {r.case} | {_figure(r.ours)} {r.unit} | {r.baseline}: {_figure(r.theirs)} {r.unit} "
            f"| {r.ratio:.2f} | {_figure(r.gflops)} GFLOP/s |"
        )
    return "\n".join(lines)


def _figure(s: Spread) -> str:
    return f"{_short(s.median)} ({_short(s.low)} to {_short(s.high)})"


def _short(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"
