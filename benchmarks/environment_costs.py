"""What environments cost: steps a second alone and through the pool, forks, memory, and whether replays come out the same.

    python -m benchmarks.environment_costs [TASK ...] [--seconds 2] [--workers 2] [--json FILE]

The expert's episodes on a few tasks are played over and over: alone (one engine, its own process, no pool), then through the pool with
1, 2, 8 and 64 episodes at a time (what is unfinished when the time is up counts for speed only). `fork` is what it takes to get back to
the middle of an episode and on: snapshot and restore where the engine can, a reset and half the steps otherwise. `same` is the share of
episodes whose every answer was the same in the pool's processes as alone. `MB` is the resident memory (with child processes, such as a
JVM) after making the engine, `+MB` its growth over the run.
"""

import argparse
import asyncio
import hashlib
import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentrm_jax.envs.catalogue import find
from agentrm_jax.envs.pool.episode import Episode
from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.replies import render_action
from agentrm_jax.testing.demonstrated import LIGHT, Demonstration, demonstrations, installed
from agentrm_jax.types import Action, Outcome, State, UserError

_AT_ONCE = (1, 2, 8, 64)
_TASKS = 6


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("env", nargs="*", metavar="TASK", help="environments; all that are installed by default")
    parser.add_argument("--seconds", type=float, default=2.0, help="budget of every single measurement")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/environment_costs.json"))
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # what the child process is told
    arguments = parser.parse_args(argv)
    if arguments.alone:
        print(json.dumps(_alone(arguments.env[0], _read(sys.stdin.read()), arguments.seconds)))
        return 0
    rows = []
    at_once = "".join(f"{f'pool {n}':>9}" for n in _AT_ONCE)
    print(f"steps/s           alone{at_once}   reset ms   fork ms     MB    +MB   same", flush=True)
    for name in arguments.env or installed():
        row = _measure(name, arguments.seconds, arguments.workers)
        rows.append(row)
        pool = "".join(f"{row['pool'][str(n)]['steps_per_second']:9.0f}" for n in _AT_ONCE)
        print(
            f"{name:15} {row['steps_per_second']:7.0f}{pool} {row['reset_ms']:10.2f} {row['fork_ms']:9.3f}"
            f"{' ' if row['snapshots'] else '*'}{row['megabytes']:6.0f} {row['megabytes_grown']:6.1f} {row['same']:6.1%}",
            flush=True,
        )
    if not all(row["snapshots"] for row in rows):
        print("* no snapshots: by reset and replay of half an episode")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"workers": arguments.workers, "tasks": rows}, indent=1) + "\n")
    return 0


def _measure(name: str, seconds: float, workers: int) -> dict[str, Any]:
    demonstrated = demonstrations(name, _TASKS)
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.environment_costs", name, "--alone", f"--seconds={seconds}"],
        input=_write(demonstrated),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    alone = json.loads(child.stdout.splitlines()[-1])
    digests = alone.pop("digests")
    pooled, same, episodes = {}, 0, 0
    for n in _AT_ONCE:
        found, rate = asyncio.run(_pooled(name, demonstrated, n, seconds, workers))
        pooled[str(n)] = rate
        same += sum(digests[key] == digest for key, digest in found)
        episodes += len(found)
    return {"task": name, **alone, "pool": pooled, "same": same / max(1, episodes), "episodes_compared": episodes}


def _alone(name: str, demonstrated: Sequence[Demonstration], seconds: float) -> dict[str, Any]:
    """One engine in this process: speeds, fork cost, memory, and a digest of every task's episode."""
    spec = find(name)
    begin = time.perf_counter()
    episode = Episode(spec.make(LIGHT.get(name, {})), spec)
    make_seconds = time.perf_counter() - begin
    digests = {d.task.key: _digest(_answers(episode, d)) for d in demonstrated}  # also warms up
    megabytes = _megabytes()
    steps, step_seconds, resets, reset_seconds = 0, 0.0, 0, 0.0
    end = time.perf_counter() + seconds
    for d in itertools.cycle(demonstrated):
        begin = time.perf_counter()
        if begin >= end and resets:
            break
        episode.reset(d.task)
        middle = time.perf_counter()
        for command in d.commands:
            if episode.progress.done:
                break
            episode.step(render_action("", command))
            steps += 1
        step_seconds += time.perf_counter() - middle
        reset_seconds += middle - begin
        resets += 1
    snapshots, fork = _fork(episode, demonstrated, seconds / 2)
    grown = _megabytes() - megabytes
    episode.close()
    return {
        "make_seconds": make_seconds,
        "steps_per_second": steps / step_seconds,
        "reset_ms": 1e3 * reset_seconds / resets,
        "fork_ms": 1e3 * fork,
        "snapshots": snapshots,
        "megabytes": megabytes,
        "megabytes_grown": grown,
        "steps": steps,
        "digests": digests,
    }


def _answers(episode: Episode, demonstration: Demonstration) -> list[object]:
    start = episode.reset(demonstration.task)
    answers: list[object] = [start.observation]
    for command in demonstration.commands:
        if episode.progress.done:
            break
        answers.append(_fields(episode.step(render_action("", command))))
    return answers


def _fork(episode: Episode, demonstrated: Sequence[Demonstration], seconds: float) -> tuple[bool, float]:
    """(whether the engine can copy its state, seconds to get back to the middle of an episode)."""
    spent, forks, copied = 0.0, 0, True
    end = time.perf_counter() + seconds
    for d in itertools.cycle(demonstrated):
        if time.perf_counter() >= end and forks:
            break
        half = [render_action("", command) for command in d.commands[: len(d.commands) // 2]]
        begin = time.perf_counter()
        episode.reset(d.task)
        for turn in half:
            episode.step(turn)
        try:
            middle = time.perf_counter()
            episode.restore(episode.snapshot())
            spent += time.perf_counter() - middle
        except NotImplementedError:
            copied = False
            spent += middle - begin
        forks += 1
    return copied, spent / forks


async def _pooled(
    name: str, demonstrated: Sequence[Demonstration], at_once: int, seconds: float, workers: int
) -> tuple[list[tuple[str, str]], dict[str, float]]:
    """Digests of finished episodes by task, and what the pool did while `at_once` episodes were played all the time."""
    found: list[tuple[str, str]] = []
    live = min(8, -(-at_once // workers))  # an environment without snapshots holds an engine per episode
    async with EnvironmentPool({name: LIGHT.get(name, {})}, workers, 60.0, live=live) as pool:

        async def episode(d: Demonstration, end: float) -> State | None:
            """The last state, or None if the time was up before."""
            state = await pool.reset(d.task)
            for command in d.commands:
                if state.done:
                    break
                if time.perf_counter() >= end:
                    return None
                state = await pool.step(state, Action(render_action("", command)))
            return state

        # starts the workers and all engines that will be used, and fills their caches
        engines = max(workers, min(at_once, live * workers))
        await asyncio.gather(*(episode(demonstrated[0], math.inf) for _ in range(engines)))
        before, begin = pool.stats.steps, time.perf_counter()
        end = begin + seconds

        async def play(first: int) -> None:
            for i in itertools.count(first):
                if time.perf_counter() >= end:
                    return
                d = demonstrated[i % len(demonstrated)]
                if (last := await episode(d, end)) is not None:
                    found.append((d.task.key, _digest(_path(last))))

        await asyncio.gather(*(play(i) for i in range(at_once)))
        spent = time.perf_counter() - begin
        steps, stats = pool.stats.steps - before, pool.stats
    return found, {"steps_per_second": steps / spent, "replayed_steps": stats.replayed_steps, "steps": steps}


def _path(state: State) -> list[object]:
    outcomes = [s.outcome for s in state.path() if s.outcome is not None]
    return [outcomes[0].observation, *map(_fields, outcomes[1:])]


def _fields(outcome: Outcome) -> list[object]:
    return [getattr(outcome, name) for name in outcome.__slots__]


def _digest(answers: list[object]) -> str:
    return hashlib.blake2b(json.dumps(answers).encode(), digest_size=16).hexdigest()


def _megabytes() -> float:
    """Resident memory of this process and its descendants; 0 where there is no /proc."""
    parents: dict[int, int] = {}
    resident: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            pid = int(status.parent.name)
            parents[pid], resident[pid] = int(fields["PPid"]), int(fields.get("VmRSS", "0 kB").split()[0])
        except (OSError, ValueError, KeyError):
            continue
    own = {int(Path("/proc/self").resolve().name)} if parents else set()
    while more := {pid for pid, parent in parents.items() if parent in own} - own:
        own |= more
    return sum(resident.get(pid, 0) for pid in own) / 1024


def _write(demonstrated: Sequence[Demonstration]) -> str:
    """The demonstrations for the child process."""
    return json.dumps([[d.task.id, d.task.split, d.commands] for d in demonstrated] + [demonstrated[0].task.env])


def _read(text: str) -> list[Demonstration]:
    *rows, name = json.loads(text)
    known = {t.id: t for split in {row[1] for row in rows} for t in find(name).tasks(split, LIGHT.get(name, {}))}
    return [Demonstration(known[row[0]], tuple(row[2])) for row in rows]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
