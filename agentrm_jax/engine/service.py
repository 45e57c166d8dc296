"""Lets many coroutines share engines: what is asked for while a batch runs becomes the next batch."""

import asyncio
import concurrent.futures
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Q = TypeVar("Q")
R = TypeVar("R")

# Engines of one process take turns on one thread: they share the device, and neither gains from overlapping.
_device_thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")


class Batcher(Generic[Q, R]):
    """Collects requests and runs them together on the device thread, so the event loop (and environments) go on.

    Args:
      run: a batch of requests -> their results, in order; blocking.
      most: requests in a batch.
      patience: seconds to wait for more requests before a batch that is not full is sent off.
    """

    def __init__(self, run: Callable[[Sequence[Q]], Sequence[R]], *, most: int, patience: float = 0.003):
        self._run, self._most, self._patience = run, most, patience
        self._waiting: list[tuple[Q, asyncio.Future[R]]] = []
        self._pump: asyncio.Task[None] | None = None

    async def ask(self, request: Q) -> R:
        """The result for one request. An error of the batch is raised in everyone who is in it."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.get_running_loop().create_task(self._work())
        return await future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            seen = 0
            while seen < len(self._waiting) < self._most:  # as long as more keep coming
                seen = len(self._waiting)
                await asyncio.sleep(self._patience)
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            batch = [(q, f) for q, f in batch if not f.cancelled()]
            if not batch:
                continue
            try:
                results = await loop.run_in_executor(_device_thread, self._run, [q for q, _ in batch])
                for (_, future), result in zip(batch, results, strict=True):
                    if not future.cancelled():
                        future.set_result(result)
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
