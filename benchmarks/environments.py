"""Environment steps: through the pool at several numbers of episodes at once, against one engine called directly."""

import asyncio
import itertools
from collections.abc import Iterator

from agentrm_jax.envs.catalogue import find
from agentrm_jax.envs.pool.episode import Episode
from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.replies import render_action
from agentrm_jax.testing.demonstrated import Demonstration, demonstrations
from agentrm_jax.types import Action
from benchmarks.measure import Pass, Row, Size, compare

_WORKERS = 2


def run(size: Size, seconds: float) -> Iterator[Row]:
    toy = size.name == "toy"
    for name in ("babyai", "maze"):
        demonstrated = demonstrations(name, 2 if toy else 8)
        for at_once in (2,) if toy else (1, 2, 8, 64):
            steps = 20 if toy else 300
            with asyncio.Runner() as runner:
                pool = runner.run(_open(name))
                try:
                    yield compare(
                        "environments",
                        f"{name}, {at_once} at once, {_WORKERS} workers",
                        "steps/s",
                        _pooled(runner, pool, demonstrated, at_once, steps),
                        "one engine, called directly",
                        _direct(name, demonstrated, steps),
                        size=size,
                        seconds=seconds / 5,
                    )
                finally:
                    runner.run(pool.close())


async def _open(name: str) -> EnvironmentPool:
    return EnvironmentPool({name: {}}, _WORKERS, 60.0)


def _direct(name: str, demonstrated: list[Demonstration], least: int) -> Pass:
    spec = find(name)
    episode = Episode(spec.make({}), spec)

    def run(repeat: int) -> float:
        steps = 0
        for d in itertools.cycle(demonstrated):
            if steps >= least:
                break
            episode.reset(d.task)
            for command in d.commands:
                if episode.progress.done:
                    break
                episode.step(render_action("", command))
                steps += 1
        return steps

    return run


def _pooled(
    runner: asyncio.Runner, pool: EnvironmentPool, demonstrated: list[Demonstration], at_once: int, least: int
) -> Pass:
    async def play(first: int) -> int:
        steps = 0
        for i in itertools.count(first):
            if steps >= least / at_once:
                return steps
            d = demonstrated[i % len(demonstrated)]
            state = await pool.reset(d.task)
            for command in d.commands:
                if state.done:
                    break
                state = await pool.step(state, Action(render_action("", command)))
                steps += 1
        raise AssertionError("an endless count ended")

    async def all_of_them() -> int:
        return sum(await asyncio.gather(*(play(i) for i in range(at_once))))

    def run(repeat: int) -> float:
        return runner.run(all_of_them())

    return run
