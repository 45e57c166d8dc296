"""Thousands of mixed requests with cancellations: nothing may leak, and nothing may be compiled after warm-up.

    python -m benchmarks.soak [--size tiny|nano] [--requests 5000] [--seed 0]

A model serves samples (drafts included), scores and log-probabilities of paths that share beginnings, with a cache that holds a
fraction of them; a tenth of the requests is given up at some time. The exit code is 1 if a slot or a lock was lost, a request was
never answered, or a program was compiled after warm-up.
"""

import argparse
import itertools
import sys
import time
from typing import Any

import numpy as np
from flax import nnx

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
from agentrm_jax.models.config import NANO
from agentrm_jax.models.transformer import Transformer
from agentrm_jax.testing.tiny import tiny_model

SIZES = EngineConfig(
    cache_tokens=700,
    rows=(2, 8),
    batch_tokens=(64, 256),
    new_tokens=(16, 64),
    context=(64, 128),
    samples=3,
    max_new=12,
    draft=2,
)
_AT_ONCE = 24
_END = 3


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
        temperature=float(rng.integers(2)),
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


def warm_up(engine: Engine) -> int:
    """Serves requests until all programs have been compiled: every kind, of every length, by few, by many, and by ever more.

    Returns: how many requests that took.
    """
    sizes, rng, served, before = engine.config, np.random.default_rng(0), 0, -1
    while before != engine.compilations:
        before = engine.compilations
        for kind, length, (few, more) in itertools.product(
            _KINDS, sizes.context, ((1, 0), (sizes.rows[-1], 0), (2, 7))
        ):
            last = 10 if more else 0  # the first of ever more is still there when the others come
            jobs = [engine.submit(_request_of(kind, length, last + i, rng)) for i in range(few)]
            engine.step()  # the prefill
            engine.step()
            jobs += [engine.submit(_request_of(kind, length, i, rng)) for i in range(more)]
            while not all(job.done for job in jobs):
                engine.step()
            served += len(jobs)
        soak(engine, 200, seed=1000 + served)
        served += 200
    return served


_KINDS = ("score", "logprobs", *itertools.product((1, 3), (False, True)))


def _request_of(kind: Any, length: int, number: int, rng: np.random.Generator) -> Request:
    """A request by kind: score, log-probabilities, or samples (how many, and whether from a shaped distribution)."""
    path = rng.integers(4, 97, length - 30).astype(np.int32)
    if kind == "score":
        return ScoreRequest(path)
    if kind == "logprobs":
        return LogprobsRequest(path, 1)
    n, shaped = kind
    return GenerateRequest(path, SamplingParams(n=n, max_tokens=8 + 2 * number, top_k=5 if shaped else 0))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=("tiny", "nano"), default="tiny")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model = tiny_model() if arguments.size == "tiny" else Transformer(NANO, rngs=nnx.Rngs(0), value_head=True)
    engine = Engine(model, SIZES, end_id=_END)
    start = time.perf_counter()
    print(f"warm after {warm_up(engine)} requests, {time.perf_counter() - start:.0f} s", flush=True)
    compiled, start = engine.compilations, time.perf_counter()
    found = soak(engine, arguments.requests, arguments.seed)
    late = engine.compilations - compiled
    print(", ".join(f"{name} {count}" for name, count in found.items()))
    print(f"{compiled} programs, {late} more after warm-up; {time.perf_counter() - start:.0f} s; {engine.stats}")
    lost = found["locks"] + found["lost slots"] + late
    return int(lost > 0 or found["answered"] + found["cancelled"] < arguments.requests)


if __name__ == "__main__":
    sys.exit(main())
