"""Expert episodes: what the environments' own solvers do, written as assistant turns.

Solvers run in worker processes, each task under a time limit, so that one that loops or dies costs its task only.
"""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

from agentrm_jax.envs.catalogue import find
from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.envs.spec import EnvSpec, Options
from agentrm_jax.types import EnvironmentFault, Task, Trajectory, UserError


@dataclasses.dataclass
class ExpertCounts:
    """What became of the tasks so far: solved; ended without success; hung, died or raised (`errors` says how).

    Attributes:
      total: tasks in all.
      errors: task key -> one line, for every broken task.
    """

    total: int = 0
    solved: int = 0
    failed: int = 0
    broken: int = 0
    errors: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def finished(self) -> int:
        return self.solved + self.failed + self.broken


async def stream_expert_trajectories(
    spec: EnvSpec,
    tasks: Sequence[Task],
    options: Options,
    *,
    time_limit: float,
    workers: int = 2,
    progress: Callable[[ExpertCounts], None] | None = None,
) -> AsyncGenerator[Trajectory, None]:
    """The solved expert episodes of `tasks`, in the order of `tasks` whatever order they finish in.

    Args:
      time_limit: seconds the expert may take for one task; engine start comes on top.
      workers: tasks at a time, each in its own process.
      progress: called after every task with the counts so far (the same object every time).

    Raises:
      UserError: the environment has no expert, or cannot be built.
    """
    if spec.expert is None:
        raise UserError(f"environment {spec.name!r} has no expert; use one of its trajectory files instead")
    counts = ExpertCounts(total=len(tasks))
    waiting = asyncio.Semaphore(workers)
    pool = EnvironmentPool({spec.name: options}, workers, time_limit, live=1, retries=0, specs=_override(spec))

    async def one(task: Task) -> Trajectory | None:
        trajectory = None
        async with waiting:
            try:
                trajectory = await pool.demonstrate(task, time_limit=time_limit)
            except EnvironmentFault as e:
                counts.broken += 1
                counts.errors[task.key] = str(e)
        if trajectory is not None:
            counts.solved += trajectory.last.success
            counts.failed += not trajectory.last.success
        if progress is not None:
            progress(counts)
        return trajectory if trajectory is not None and trajectory.last.success else None

    async with pool:
        running = [asyncio.create_task(one(task)) for task in tasks]
        try:
            for task in running:
                trajectory = await task
                if trajectory is not None:
                    yield trajectory
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


def expert_trajectories(
    spec: EnvSpec,
    tasks: Sequence[Task],
    options: Options,
    *,
    time_limit: float = 60.0,
    workers: int = 1,
    progress: Callable[[ExpertCounts], None] | None = None,
) -> Iterator[Trajectory]:
    """`stream_expert_trajectories` for callers without an event loop; leaving the loop over it early ends its workers."""
    stream = stream_expert_trajectories(spec, tasks, options, time_limit=time_limit, workers=workers, progress=progress)

    async def following() -> Trajectory | None:
        return await anext(stream, None)

    with asyncio.Runner() as runner:
        try:
            while (trajectory := runner.run(following())) is not None:
                yield trajectory
        finally:
            runner.run(stream.aclose())


def _override(spec: EnvSpec) -> dict[str, EnvSpec]:
    """What a pool must be told so that `spec.name` means `spec`: nothing if a worker finds it by that name."""
    try:
        return {} if find(spec.name) is spec else {spec.name: spec}
    except UserError:
        return {spec.name: spec}
