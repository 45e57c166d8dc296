"""Running independent awaits together without leaving strays behind."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterable
from typing import Any, TypeVar

from agentrm_jax.types import TaskFailure

T = TypeVar("T")


async def together(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results of all coroutines, in their order, run concurrently.

    The first error cancels the others, waits until they have ended, and is raised as it is (`asyncio.TaskGroup` would
    wrap it in a group, which hides a `UserError` from the mains; `asyncio.gather` would leave the others running). So
    does cancellation.
    """
    tasks = [asyncio.ensure_future(c) for c in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def closing(*parts: object) -> AsyncIterator[None]:
    """Ends what policies and reward models have open (their coroutine `aclose`, if they have one) when the block ends."""
    try:
        yield
    finally:
        for part in parts:
            if close := getattr(part, "aclose", None):
                await close()


async def attempt(awaitable: Awaitable[T]) -> T | None:
    """The result, or None if it cannot be had (`TaskFailure`: an environment fault, a history that is too long)."""
    try:
        return await awaitable
    except TaskFailure:
        return None
