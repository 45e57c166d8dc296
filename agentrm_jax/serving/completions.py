"""The endpoints of a policy: /v1/chat/completions and /v1/completions, whole or streamed, as OpenAI has them."""

import asyncio
import dataclasses
import secrets
import time
from collections.abc import AsyncGenerator, Sequence

import numpy as np
from starlette.requests import Request

from agentrm_jax.data.messages import read_messages
from agentrm_jax.engine.requests import Completion, SamplingParams
from agentrm_jax.serving.contracts import ChatCompletion, Sampled, TextCompletion, read
from agentrm_jax.serving.exchange import Answer, Stream, body_of
from agentrm_jax.serving.faults import ServingError
from agentrm_jax.serving.limits import Limits
from agentrm_jax.serving.replies import Style, Unsent, choice, usage
from agentrm_jax.serving.texts import paths_of
from agentrm_jax.serving.values import require_model
from agentrm_jax.serving.writer import Writer
from agentrm_jax.types import JSON, Message

_GREEDY = 1e-5  # a temperature below this is 0: dividing by it would overflow
_SHORT = 16  # tokens of a sample of /v1/completions unless more are asked for, as OpenAI has it


@dataclasses.dataclass(frozen=True)
class Order:
    """Samples that are to be drawn: of every path `params.n`, with as many tokens as its entry of `params` says."""

    paths: Sequence[np.ndarray]
    params: Sequence[SamplingParams]
    style: Style
    head: dict[str, JSON]
    stream: bool
    with_usage: bool

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.paths))


class Completions:
    """What is asked of the policy."""

    def __init__(self, writer: Writer, limits: Limits):
        self._writer, self._limits = writer, limits

    async def chat(self, request: Request, ident: str) -> Answer:
        """Replies to a conversation."""
        asked = read(ChatCompletion, await body_of(request))
        require_model(asked.model, self._writer.name)
        if asked.top_logprobs and not asked.logprobs:
            raise ServingError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
        messages = conversation(asked.messages)
        texts = self._writer.texts
        path = await texts.on_thread(lambda: texts.chat.prompt(messages).tokens)
        style = Style.of(asked, chat=True, logprobs=bool(asked.logprobs), top=asked.top_logprobs or 0)
        room = self._writer.room(path, asked.max_completion_tokens or asked.max_tokens)
        return await self._answer(self._order([path], [room], asked, style, f"chatcmpl-{ident}"))

    async def complete(self, request: Request, ident: str) -> Answer:
        """Continuations of texts or token ids."""
        asked = read(TextCompletion, await body_of(request))
        require_model(asked.model, self._writer.name)
        prompts = paths_of(asked.prompt, "prompt", self._limits.items)
        texts, limit = self._writer.texts, self._writer.limit
        add = asked.add_special_tokens is not False

        def encode() -> list[np.ndarray]:
            return [texts.ids(p, add_special=add, limit=limit) if isinstance(p, str) else p for p in prompts]

        paths = await texts.on_thread(encode)
        if any(not len(path) for path in paths):
            raise ServingError(400, "a prompt without tokens cannot be continued", param="prompt")
        rooms = [self._writer.room(path, asked.max_tokens, _SHORT) for path in paths]
        style = Style.of(asked, chat=False, logprobs=asked.logprobs is not None, top=asked.logprobs or 0)
        return await self._answer(self._order(paths, rooms, asked, style, f"cmpl-{ident}"))

    def _order(
        self, paths: Sequence[np.ndarray], rooms: Sequence[int], asked: Sampled, style: Style, ident: str
    ) -> Order:
        n = asked.n or 1
        if n * len(paths) > self._limits.items:
            raise ServingError(
                400, f"{n * len(paths)} samples; at most {self._limits.items} are drawn at once", param="n"
            )
        if len(style.stops) > 16 or any(not 1 <= len(stop) <= 1000 for stop in style.stops):
            raise ServingError(400, "stop: expected up to 16 texts of 1 to 1000 characters", param="stop")
        ends = tuple(asked.stop_token_ids or ())
        if any(not 0 <= end < 2**31 for end in ends):
            raise ServingError(400, "stop_token_ids: expected token ids", param="stop_token_ids")
        temperature = 1.0 if asked.temperature is None else asked.temperature
        seed = secrets.randbits(31) if asked.seed is None else asked.seed
        params = SamplingParams(
            temperature=0.0 if temperature < _GREEDY else temperature,
            n=n,
            seed=seed,
            stop_token_ids=ends if asked.ignore_eos else (self._writer.engine.end_id, *ends),
            stop=style.stops,
            top_k=max(asked.top_k or 0, 0),
            top_p=1.0 if asked.top_p is None else asked.top_p,
            min_p=asked.min_p or 0.0,
            repetition_penalty=asked.repetition_penalty or 1.0,
            logprobs=style.top,
        )
        kind = "chat.completion" if style.chat else "text_completion"
        head = {"id": ident, "object": kind, "created": int(time.time()), "model": self._writer.name}
        options = asked.stream_options
        return Order(
            paths,
            [dataclasses.replace(params, max_tokens=room) for room in rooms],
            style,
            head,
            bool(asked.stream),
            bool(options and options.include_usage),
        )

    async def _answer(self, order: Order) -> Answer:
        if order.stream:
            return Stream(self._events(order))
        drawn = await asyncio.gather(
            *(self._writer.generate(path, params) for path, params in zip(order.paths, order.params, strict=True))
        )
        samples = [sample for several in drawn for sample in several]
        texts, style = self._writer.texts, order.style
        choices = [choice(i, sample, texts, style) for i, sample in enumerate(samples)]
        rest = {"system_fingerprint": None, "usage": usage(order.prompt_tokens, samples)}
        return {**order.head, "choices": choices, **rest}

    async def _events(self, order: Order) -> AsyncGenerator[JSON, None]:
        """The chunks of a stream, prompt after prompt."""
        head = order.head | ({"object": "chat.completion.chunk"} if order.style.chat else {})
        rest: dict[str, JSON] = {"usage": None} if order.with_usage else {}
        samples: list[Completion] = []
        for p, (path, params) in enumerate(zip(order.paths, order.params, strict=True)):
            unsent = [Unsent(p * params.n + i, self._writer.texts, order.style) for i in range(params.n)]
            async for snapshot, whole in self._writer.stream(path, params):
                for i, sample in snapshot.items():
                    for row in unsent[i].news(sample, last=whole):
                        yield {**head, "choices": [row], **rest}
                if whole:
                    samples += snapshot.values()
        if order.with_usage:
            yield {**head, "choices": [], "usage": usage(order.prompt_tokens, samples)}


def conversation(value: JSON) -> list[Message]:
    """The messages of a request.

    Raises:
      ServingError: there are none.
      UserError: one is no message.
    """
    messages = list(read_messages(value, "messages"))
    if not messages:
        raise ServingError(400, "messages is an empty list; expected at least one message", param="messages")
    return messages
