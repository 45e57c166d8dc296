"""Our engine as a generator."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from agentrm_jax.chat import Chat
from agentrm_jax.engine.engine import Engine, local_mesh, make_engine
from agentrm_jax.engine.requests import GenerateRequest, LogprobsRequest, SamplingParams
from agentrm_jax.engine.service import EngineService
from agentrm_jax.generators.generator import Answer, Prompt
from agentrm_jax.models.opening import load_model
from agentrm_jax.models.transformer import value_map
from agentrm_jax.types import Action, TooLong, UserError


class EngineGenerator:
    """Implements `Generator`: all requests in flight are served together."""

    def __init__(self, engine: Engine, chat: Chat):
        self._engine, self._chat = engine, chat
        self._service = EngineService(engine)

    @property
    def tokens(self) -> int:
        return self._engine.stats.read_tokens + self._engine.stats.sampled_tokens

    def fits(self, prompt: Prompt, new_tokens: int) -> bool:
        return len(self._ids(prompt)) + new_tokens <= self._engine.config.context[-1]

    async def generate(
        self,
        prompt: Prompt,
        n: int = 1,
        *,
        temperature: float,
        seed: int,
        max_tokens: int | None = None,
        name: str = "",
    ) -> list[Action]:
        path = self._checked(self._ids(prompt), max_tokens or self._engine.config.max_new)
        params = SamplingParams(temperature=temperature, n=n, seed=seed, max_tokens=max_tokens)
        samples = await self._service.generate(GenerateRequest(path, params))
        return [
            Action(
                self._chat.decode(s.tokens.tolist()),
                tuple(s.tokens.tolist()),
                s.logprob,
                "stop" if s.finished else "length",
            )
            for s in samples
        ]

    async def choose(self, prompt: Prompt, options: Sequence[str], *, name: str = "") -> Answer:
        """As `Generator.choose`; options that begin with one another are read with the end of the turn, so that they are told apart."""
        start = self._ids(prompt)
        tails = [self._chat.encode(self._chat.lead + option, after=self._chat.header) for option in options]
        if any(a is not b and np.array_equal(a, b[: len(a)]) for a in tails for b in tails):
            tails = [np.append(tail, np.int32(self._chat.end_id)) for tail in tails]
        self._checked(start, max(map(len, tails)))
        requests = [LogprobsRequest(np.concatenate([start, tail]), len(start)) for tail in tails]
        found = await asyncio.gather(*map(self._service.logprobs, requests))
        return Answer(tuple(float(logprobs.sum(dtype=np.float64)) for logprobs in found), "logprobs")

    def _ids(self, prompt: Prompt) -> np.ndarray:
        return prompt if isinstance(prompt, np.ndarray) else self._chat.prompt(prompt).tokens

    def _checked(self, path: np.ndarray, new_tokens: int) -> np.ndarray:
        limit = self._engine.config.context[-1]
        if len(path) + new_tokens > limit:
            raise TooLong(f"a prompt of {len(path)} tokens leaves no room for {new_tokens} more in {limit}")
        return path


def load_engine_generator(place: Path | str, engine: Any, *, template: str = "", date: str = "") -> EngineGenerator:
    """The language model of a training workdir, a Hugging Face folder or a preset, on an engine of the configured sizes.

    Raises:
      UserError: there is none, or it writes no text (a reward model).
    """
    mesh = local_mesh(engine.get("tensor", 1))
    loaded = load_model(place, template=template, date=date, mesh=mesh, dtype=jnp.dtype(engine["dtype"]))
    if value_map(loaded.model) is not None or (loaded.card and not loaded.card.lm_head):
        raise UserError(f"{place} holds a reward model, which writes no text; name a policy")
    return EngineGenerator(make_engine(loaded.model, engine, end_id=loaded.chat.end_id), loaded.chat)
