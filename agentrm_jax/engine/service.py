"""Lets many coroutines share an engine: whoever asks joins what is running, whoever is cancelled leaves it."""

import asyncio
import concurrent.futures
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.requests import Completion, GenerateRequest, LogprobsRequest, Request, ScoreRequest
from agentrm_jax.engine.sequence import Job

# Engines of one process take turns on one thread: they share the device, and neither gains from overlapping.
_device_thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")


@dataclasses.dataclass(eq=False, slots=True)
class _Ask:
    request: Request
    future: "asyncio.Future[Any]"
    job: Job | None = None
    error: Exception | None = None

    def deliver(self) -> None:
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        elif self.job is not None:
            self.future.set_result(self.job.result)


class EngineService:
    """The engine for coroutines of one event loop at a time. It works on a thread of its own, one step a turn.

    Args:
      max_wait_seconds: how long an engine with nothing to do waits for more requests to begin with, as long as more come.
    """

    def __init__(self, engine: Engine, *, max_wait_seconds: float = 0.003):
        self.engine = engine
        self._max_wait_seconds = max_wait_seconds
        self._inbox: list[_Ask] = []
        self._open: list[_Ask] = []
        self._pump: asyncio.Task[None] | None = None

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """The samples of one request.

        Raises:
          RequestError: it cannot be served; others go on.
        """
        return (await self._ask([request]))[0]

    async def score(self, paths: Sequence[np.ndarray]) -> list[Any]:
        """The value at the end of every path: a float, or float32[e] of several value heads.

        Raises:
          RequestError: a path cannot be scored; what others have asked for goes on.
        """
        return await self._ask([ScoreRequest(path) for path in paths])

    async def logprobs(self, request: LogprobsRequest) -> np.ndarray:
        """float32[len(tokens) - start].

        Raises:
          RequestError: it cannot be served; others go on.
        """
        return (await self._ask([request]))[0]

    async def _ask(self, requests: Sequence[Request]) -> list[Any]:
        loop = asyncio.get_running_loop()
        asks = [_Ask(request, loop.create_future()) for request in requests]
        self._inbox.extend(asks)
        if asks and (self._pump is None or self._pump.done()):
            self._pump = loop.create_task(self._work())
        try:
            return [await ask.future for ask in asks]
        finally:
            for ask in asks:
                if ask.future.done() and not ask.future.cancelled():
                    ask.future.exception()  # seen, even if an earlier one was raised
                ask.future.cancel()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._inbox or self._open:
            seen = 0
            while not self._open and seen < len(self._inbox):
                seen = len(self._inbox)
                await asyncio.sleep(self._max_wait_seconds)
            for ask in await loop.run_in_executor(_device_thread, self._turn):
                ask.deliver()

    def _turn(self) -> list[_Ask]:
        """On the device thread: takes what is new, drops what was given up, does one step. Who can be answered now."""
        inbox = self._inbox[:]
        del self._inbox[: len(inbox)]  # the event loop may add to it meanwhile
        over: list[_Ask] = []
        for ask in inbox:
            if ask.future.cancelled():
                continue
            try:
                ask.job = self.engine.submit(ask.request)
                self._open.append(ask)
            except Exception as error:
                ask.error = error
                over.append(ask)
        wanted: list[_Ask] = []
        for ask in self._open:  # each is looked at once: it may be given up at any moment
            if not ask.future.cancelled():
                wanted.append(ask)
            elif ask.job is not None:
                self.engine.cancel(ask.job)
        self._open = wanted
        try:
            self.engine.step()
        except Exception as error:
            for ask in self._open:
                ask.error = error
                if ask.job is not None:
                    self.engine.cancel(ask.job)
            over, self._open = over + self._open, []
        done = [ask for ask in self._open if ask.job is not None and ask.job.done]
        self._open = [ask for ask in self._open if ask.job is not None and not ask.job.done]
        return over + done
