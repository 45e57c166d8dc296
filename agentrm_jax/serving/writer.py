"""The policy behind the endpoints: paths in, samples out, whole or as they are written."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import numpy as np

from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.requests import Completion, GenerateRequest, SamplingParams
from agentrm_jax.engine.sequence import Lane
from agentrm_jax.engine.service import EngineService
from agentrm_jax.models.card import Card
from agentrm_jax.serving.faults import ServingError
from agentrm_jax.serving.texts import Texts

Snapshot = Mapping[int, Completion]  # sample -> what there is of it so far, or all of it


class StreamingEngine(Engine):
    """An engine that tells, after every step, how far the samples are that somebody listens to."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._listeners: dict[int, Callable[[Snapshot], object]] = {}

    def listen(self, request: GenerateRequest, hear: Callable[[Snapshot], object]) -> None:
        """Calls `hear` (on the thread that steps the engine) with all samples of a request under way, until `ignore`."""
        self._listeners[id(request)] = hear

    def ignore(self, request: GenerateRequest) -> None:
        """Ends what `listen` began."""
        self._listeners.pop(id(request), None)

    def step(self) -> bool:
        """As `Engine.step`."""
        worked = super().step()
        if self._listeners:
            found: dict[int, dict[int, Completion]] = {}
            for _, _, sequence in self.scheduler.running():
                request, job = sequence.job.request, sequence.job
                if isinstance(request, GenerateRequest) and id(request) in self._listeners:
                    most = request.params.logprobs
                    under_way = {lane.index: _so_far(lane, most) for lane in sequence.lanes if lane.tokens}
                    found.setdefault(id(request), dict(job.samples)).update(under_way)
            for key, snapshot in found.items():
                if hear := self._listeners.get(key):
                    hear(snapshot)
        return worked


def _so_far(lane: Lane, most: int) -> Completion:
    """What there is of a sample, with the `most` likeliest tokens at every place."""
    top = None
    if most and lane.top:
        top = (np.array([ids[:most] for ids, _ in lane.top]), np.array([p[:most] for _, p in lane.top]))
    return Completion(np.array(lane.tokens, np.int32), np.array(lane.logprobs, np.float32), False, None, top)


class Writer:
    """A policy that is served."""

    def __init__(self, name: str, engine: StreamingEngine, texts: Texts, card: Card | None = None):
        self.name, self.engine, self.texts, self.card = name, engine, texts, card
        self.limit = engine.config.context[-1]
        self._service = EngineService(engine)

    def room(self, path: np.ndarray, asked: int | None, default: int | None = None) -> int:
        """Tokens that a sample after `path` may have: what was asked for, else `default`, else all that is left.

        Raises:
          ServingError: there is no room for them.
        """
        left = self.limit - len(path)
        if left < (asked or 1):
            raise ServingError(
                400,
                f"a prompt of {len(path)} tokens leaves no room for {asked or 1} more: the maximum context length is {self.limit}",
                param="max_tokens" if asked else None,
            )
        return asked or min(default or left, left)

    async def generate(self, path: np.ndarray, params: SamplingParams) -> list[Completion]:
        """`params.n` samples after a path.

        Raises:
          RequestError: they cannot be drawn.
        """
        return await self._service.generate(GenerateRequest(path, params))

    async def stream(self, path: np.ndarray, params: SamplingParams) -> AsyncGenerator[tuple[Snapshot, bool], None]:
        """The same samples as they are written: what there is of all of them, and whether that is all.

        Raises:
          RequestError: they cannot be drawn.
        """
        request, loop = GenerateRequest(path, params), asyncio.get_running_loop()
        latest: dict[int, Completion] = {}  # a slow reader gets the last of the snapshots that it has missed
        news = asyncio.Event()

        def hear(snapshot: Snapshot) -> None:
            latest.update(snapshot)
            news.set()

        self.engine.listen(request, lambda snapshot: loop.call_soon_threadsafe(hear, snapshot))
        whole = asyncio.ensure_future(self._service.generate(request))
        whole.add_done_callback(lambda _: news.set())
        try:
            while await news.wait() and not whole.done():
                news.clear()
                yield dict(latest), False
            yield dict(enumerate(await whole)), True
        finally:
            self.engine.ignore(request)
            whole.cancel()
