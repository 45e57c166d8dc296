"""Thousands of mixed requests with cancellations: nothing may leak, and nothing may be compiled after warm-up.

    python -m benchmarks.soak [--requests 5000] [--seed 0]

A tiny model serves samples, scores and log-probabilities of paths that share beginnings, with a cache that holds a fraction of
them; a tenth of the requests is given up at some time. The exit code is 1 if a slot or a lock was lost, a request was never
answered, or a program was compiled in the second half.
"""

import argparse
import sys
import time

import numpy as np

from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.requests import (
    EngineConfig,
    GenerateRequest,
    LogprobsRequest,
    Request,
    SamplingParams,
    ScoreRequest,
)
from agentrm_jax.engine.sequence import Job
from agentrm_jax.testing.tiny import tiny_model

SIZES = EngineConfig(
    cache_tokens=700, rows=(2, 8), batch_tokens=(64, 256), new_tokens=(16, 64), context=(64, 128), samples=3, max_new=12
)
_AT_ONCE = 24


def random_request(rng: np.random.Generator) -> Request:
    """A request whose path begins with one of a few trunks."""
    trunk = np.random.default_rng(int(rng.integers(6))).integers(4, 97, 40).astype(np.int32)
    path = np.concatenate([trunk[: rng.integers(1, 41)], rng.integers(4, 97, rng.integers(0, 60)).astype(np.int32)])
    kind = rng.integers(4)
    if kind == 0:
        return ScoreRequest(path)
    if kind == 1:
        return LogprobsRequest(path, int(rng.integers(1, len(path) + 1)))
    shaped = rng.random() < 0.2
    tokens = int(rng.integers(1, 25))
    params = SamplingParams(
        n=int(rng.integers(1, 5)),
        seed=int(rng.integers(99)),
        max_tokens=tokens,
        top_k=5 if shaped else 0,
        logprobs=2 if shaped else 0,
    )
    return GenerateRequest(path, params)


def soak(engine: Engine, requests: int, seed: int) -> dict[str, int]:
    """Serves `requests` random requests, some at a time; what became of them and of the engine."""
    rng = np.random.default_rng(seed)
    jobs: list[Job] = []
    running: list[Job] = []
    while len(jobs) < requests or running:
        while len(running) < _AT_ONCE and len(jobs) < requests:
            running.append(engine.submit(random_request(rng)))
            jobs.append(running[-1])
        if rng.random() < 0.05:
            engine.cancel(running[int(rng.integers(len(running)))])
        if rng.random() < 0.02:
            engine.preempt(running[int(rng.integers(len(running)))])
        engine.step()
        running = [job for job in running if not (job.done or job.cancelled)]
    return {
        "answered": sum(job.done for job in jobs),
        "cancelled": sum(job.cancelled for job in jobs),
        "locks": engine.cache.locked,
        "lost slots": engine.config.cache_tokens - engine.cache.free - engine.cache.held,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    engine = Engine(tiny_model(), SIZES, end_id=3)
    half = arguments.requests // 2
    start = time.perf_counter()
    first = soak(engine, half, arguments.seed)
    compiled = engine.compilations
    second = soak(engine, arguments.requests - half, arguments.seed + 1)
    late = engine.compilations - compiled
    for found in (first, second):
        print(", ".join(f"{name} {count}" for name, count in found.items()))
    print(
        f"{compiled} programs, {late} of them in the second half; {time.perf_counter() - start:.0f} s; {engine.stats}"
    )
    lost = first["locks"] + second["locks"] + second["lost slots"] + late
    return int(lost > 0 or first["answered"] + first["cancelled"] < half)


if __name__ == "__main__":
    sys.exit(main())
