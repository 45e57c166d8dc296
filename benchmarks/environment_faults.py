"""A thousand faults: every installed environment breaks all over the place, and nothing may be lost or changed.

    python -m benchmarks.environment_faults [TASK ...] [--faults 1000] [--step-timeout 2] [--workers 2] [--json FILE]

Random episodes are played undisturbed first, then again with hangs, crashes, exceptions and nonsense thrown in, each of them once, and
with a share of the engines taking longer to start than a step may take (on top of the faults asked for). Prints a line per environment
with the faults that happened; exit code 1 if an episode was lost or came out differently.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentrm_jax.envs.pool.faults import fault_at, faulty
from agentrm_jax.envs.pool.pool import EnvironmentPool, PoolStats
from agentrm_jax.search import rollout
from agentrm_jax.testing.demonstrated import LIGHT, Demonstration, by_name, demonstrations, installed, wandering_policy
from agentrm_jax.types import EnvironmentFault, State, UserError

# Hangs cost the step timeout each, so there are fewer of them.
RATES = {"hang": 0.02, "crash": 0.06, "error": 0.08, "garbage": 0.08}
_SLOW_STARTS = 0.1
_TASKS = 12
_MAX_STEPS = 15
_MAX_SAMPLES = 400  # an environment may have too few different steps
_IN_FLIGHT, _LIVE = 8, 4  # an environment without snapshots holds an engine for every episode in flight
_SEED = 1


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("env", nargs="*", metavar="TASK", help="environments; all that are installed by default")
    parser.add_argument("--faults", type=int, default=1000, help="faults in all, spread over the environments")
    parser.add_argument("--step-timeout", type=float, default=2.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/environment_faults.json"))
    arguments = parser.parse_args(argv)
    logging.getLogger("agentrm_jax.envs.pool.pool").setLevel(logging.ERROR)  # it would tell of every fault
    names = arguments.env or installed()
    each = -(-arguments.faults // len(names))
    print(
        f"{'task':15} episodes  steps  hangs crashes errors nonsense   slow  restarts replayed   lost changed  seconds"
    )
    rows = []
    for name in names:
        row = _measure(name, each, arguments.step_timeout, arguments.workers)
        rows.append(row)
        print(
            f"{name:15} {row['episodes']:8} {row['steps']:6}  {row['hang']:5} {row['crash']:7} {row['error']:6} "
            f"{row['garbage']:8} {row['slow']:6}  {row['restarts']:8} {row['replayed_steps']:8}  {row['lost']:5} {row['changed']:7} "
            f"{row['seconds']:8.1f}",
            flush=True,
        )
    print(f"{sum(row['faults'] for row in rows)} faults, {sum(row['lost'] for row in rows)} episodes lost, ", end="")
    print(f"{sum(row['changed'] for row in rows)} changed")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"rates": RATES, "tasks": rows}, indent=1) + "\n")
    return 1 if any(row["lost"] or row["changed"] for row in rows) else 0


def _measure(name: str, wanted: int, step_timeout: float, workers: int) -> dict[str, Any]:
    """Episodes until `wanted` faults are due, undisturbed and disturbed."""
    demonstrated = demonstrations(name, _TASKS, split="train", max_steps=_MAX_STEPS)
    samples, expected, steps = 0, Counter[str](), 0
    undisturbed: list[State | None] = []
    while expected.total() < wanted and samples < _MAX_SAMPLES:
        samples += 4
        undisturbed, _ = _play(name, demonstrated, samples, workers=workers)
        due = _steps(undisturbed)
        expected, steps = Counter(kind for step in due if (kind := fault_at(RATES, _SEED, step))), len(due)
        samples = max(samples, min(_MAX_SAMPLES, int(samples * wanted / max(1, expected.total()))) - 4)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        late = {"slow_start": step_timeout + 1.0, "slow_starts": _SLOW_STARTS}
        spec = faulty(by_name(name), **RATES, **late, seed=_SEED, once_in=folder)
        count = len(undisturbed) // len(demonstrated)
        disturbed, stats = _play(
            name, demonstrated, count, workers=workers, step_timeout=step_timeout, specs={name: spec}
        )
        happened = Counter(path.name.rpartition("-")[0] for path in Path(folder).iterdir())
    pairs = list(zip(undisturbed, disturbed, strict=True))
    return {
        "task": name,
        "episodes": len(pairs),
        "steps": steps,
        **{kind: happened[kind] for kind in (*RATES, "slow")},
        "due": expected.total(),
        "faults": sum(happened[kind] for kind in (*RATES, "slow")),
        "restarts": stats.restarts,
        "timeouts": stats.timeouts,
        "replayed_steps": stats.replayed_steps,
        "lost": sum(after is None for _, after in pairs),
        "changed": sum(
            before is not None and after is not None and _outcomes(before) != _outcomes(after)
            for before, after in pairs
        ),
        "seconds": time.perf_counter() - begin,
    }


def _play(
    name: str, demonstrated: Sequence[Demonstration], samples: int, **arguments: Any
) -> tuple[list[State | None], PoolStats]:
    """The last states of `samples` wandering episodes of every task; None for a lost one."""
    policy = wandering_policy(demonstrated)

    async def go() -> tuple[list[State | None], PoolStats]:
        free = asyncio.Semaphore(_IN_FLIGHT)
        async with EnvironmentPool({name: LIGHT.get(name, {})}, retries=6, live=_LIVE, **arguments) as pool:

            async def one(demonstration: Demonstration, sample: int) -> State | None:
                async with free:
                    with contextlib.suppress(EnvironmentFault):
                        return await rollout(demonstration.task, policy, pool, temperature=1.0, sample=sample)
                return None

            ends = await asyncio.gather(*(one(d, sample) for d in demonstrated for sample in range(samples)))
            return list(ends), pool.stats

    return asyncio.run(go())


def _steps(ends: Sequence[State | None]) -> set[tuple[str, ...]]:
    """Every different step that reached an engine, as `fault_at` knows it."""
    steps: set[tuple[str, ...]] = set()
    for end in ends:
        path = end.path() if end else []
        commands = [s.outcome.parsed for s in path[1:] if s.outcome and s.outcome.parsed is not None]
        steps |= {(path[0].task.key, *commands[: i + 1]) for i in range(len(commands))}
    return steps


def _outcomes(end: State) -> list[object]:
    return [state.outcome for state in end.path()]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
