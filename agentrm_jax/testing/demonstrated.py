"""Something to do in any environment: tasks with their expert's commands, and a policy that wanders off them and back.

For tests and benchmarks that run the same thing in every environment and know none of them.
"""

import asyncio
import dataclasses
import functools
import random
from collections.abc import Mapping, Sequence

from agentrm_jax.envs.catalogue import find, names
from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.envs.spec import EnvSpec, Options
from agentrm_jax.testing.scripted import ScriptedPolicy, commands_of
from agentrm_jax.types import Environment, EnvironmentFault, State, Task, UserError

NONSENSE = "sing a song"

# Kinds of task that are short and quick to solve; an environment that is not named here needs no choice.
LIGHT: dict[str, Options] = {
    "sciworld": {"tasks": ["find-animal", "find-non-living-thing", "lifespan-longest-lived"], "variations": 4},
    "pddl": {"domains": ["gripper", "blockworld"]},
}


@dataclasses.dataclass(frozen=True, slots=True)
class Demonstration:
    """A task, and the commands with which the expert ended it."""

    task: Task
    commands: tuple[str, ...]


def installed() -> list[str]:
    """Environments that can be built here without options and have an expert, by name."""
    return [name for name in names() if find(name).expert is not None and is_installed(name)]


def is_installed(name: str) -> bool:
    """Whether the engine can be built without options; builds it to find out."""
    try:
        find(name).make(LIGHT.get(name, {})).close()
    except UserError:
        return False
    return True


def by_name(name: str) -> EnvSpec:
    """The environment's spec with an engine that is looked up by name where it is built: it pickles whatever its `make` is."""
    return dataclasses.replace(find(name), make=functools.partial(_make, name))


def _make(name: str, options: Options) -> Environment:
    return find(name).make(options)


def demonstrations(
    name: str,
    count: int,
    *,
    split: str = "test",
    options: Options | None = None,
    max_steps: int = 1000,
    time_limit: float = 60.0,
    workers: int = 1,
) -> list[Demonstration]:
    """Expert commands of `count` tasks spread over the split, fewer if the expert fails on some.

    Tasks are those of `options`, of `LIGHT` where none are given. `max_steps` cuts them short (not the commands, which may then lead
    beyond the end of the episode).
    Raises EnvironmentFault if the expert fails on all.
    """
    options = LIGHT.get(name, {}) if options is None else options
    every = find(name).tasks(split, options)
    count = min(count, len(every))
    chosen = [every[i * len(every) // count] for i in range(count)]

    errors: list[str] = []

    async def one(pool: EnvironmentPool, task: Task) -> Demonstration | None:
        try:
            trajectory = await pool.demonstrate(task, time_limit=time_limit)
        except EnvironmentFault as error:
            errors.append(str(error))
            return None
        commands = tuple(s.outcome.parsed for s in trajectory.steps if s.outcome.parsed)
        shorter = dataclasses.replace(task, max_steps=min(task.max_steps, max_steps))
        return Demonstration(shorter, commands) if commands else None

    async def go() -> list[Demonstration | None]:
        async with EnvironmentPool({name: options}, workers, time_limit, live=1, retries=0) as pool:
            return await asyncio.gather(*(one(pool, task) for task in chosen))

    found = [d for d in asyncio.run(go()) if d is not None]
    if not found:
        raise EnvironmentFault(f"the expert of {name} did nothing on {len(chosen)} tasks: {'; '.join(errors[:1])}")
    return found


def wandering_policy(demonstrated: Sequence[Demonstration], *, follow: float = 0.7) -> ScriptedPolicy:
    """Takes the expert's command for this turn with probability `follow`, otherwise any of its commands, or nonsense.

    What it does depends on the seed, the sample and the history only; at temperature 0 it is the expert's command.
    """
    known: Mapping[str, Sequence[str]] = {d.task.key: d.commands for d in demonstrated}

    def choose(state: State, n: int, temperature: float, seed: int) -> list[str]:
        commands = known[state.task.key]
        planned = commands[state.depth % len(commands)]
        if temperature == 0:
            return [planned] * n
        draws = [random.Random(repr((seed, i, state.task.key, commands_of(state)))) for i in range(n)]
        return [planned if draw.random() < follow else draw.choice([*commands, NONSENSE]) for draw in draws]

    return ScriptedPolicy(choose)
