"""Running a per-task search over many tasks at once."""

import dataclasses
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Generic, TypeVar

from agentrm_jax.search.concurrency import together
from agentrm_jax.types import Task, TaskFailure

R = TypeVar("R")


@dataclasses.dataclass(frozen=True, slots=True)
class Done(Generic[R]):
    """One task's end.

    Attributes:
      result: what the method returned; None if the task failed.
      fault: why it failed (an `TaskFailure`); None otherwise.
      seconds: wall time of the task, which it shared with the others in flight.
    """

    task: Task
    result: R | None
    fault: str | None
    seconds: float


async def run_tasks(
    tasks: Iterable[Task],
    method: Callable[[Task], Coroutine[Any, Any, R]],
    *,
    concurrency: int,
    on_done: Callable[[Done[R]], None],
) -> int:
    """Runs `method(task)` for all tasks, at most `concurrency` at once, and hands over each end as it comes.

    Tasks start in order (the iterable is read lazily) and end in any; nothing is kept, so write results in `on_done`
    and leave finished tasks out when resuming. A task that raises `TaskFailure` ends as failed and the others go
    on. Any other error, also from `on_done`, and cancellation end the whole run after the coroutines in flight have
    been cancelled.

    Returns: number of failed tasks.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, got {concurrency}")
    pending = iter(tasks)
    failed = 0

    async def worker() -> None:
        nonlocal failed
        for task in pending:
            begin = time.perf_counter()
            result, fault = None, None
            try:
                result = await method(task)
            except TaskFailure as error:
                failed += 1
                fault = str(error) or type(error).__name__
            on_done(Done(task, result, fault, time.perf_counter() - begin))

    await together(worker() for _ in range(concurrency))
    return failed
