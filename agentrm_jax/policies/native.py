"""A policy that runs on our engine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from agentrm_jax.engine.engine import Engine, local_mesh, make_engine
from agentrm_jax.engine.requests import GenerateRequest, SamplingParams
from agentrm_jax.engine.service import EngineService
from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.models.card import Card
from agentrm_jax.models.opening import load_model
from agentrm_jax.prompts import Encoder
from agentrm_jax.types import Action, State
from agentrm_jax.window import Window


class NativePolicy:
    """Implements `Policy`: proposals of all tasks in flight are sampled together.

    A history that is too long for the engine loses its oldest turns, never its prompt: see `window`.
    """

    def __init__(self, engine: Engine, encoder: Encoder, card: Card | None = None):
        self._engine, self._encoder, self.card = engine, encoder, card
        self.window = Window(engine.config.context[-1] - engine.config.max_new)
        self._service = EngineService(engine)

    @property
    def dropped_turns(self) -> Mapping[str, int]:
        """Task key -> oldest turns that were left out of what the model read."""
        return self.window.dropped_turns

    async def propose(self, state: State, n: int, *, temperature: float, seed: int) -> list[Action]:
        """`n` samples for the turn after `state`. Raises TooLong if prompt and last turn alone do not fit the engine."""
        path = self.window.path(self._encoder.history(state), state.task.key)
        params = SamplingParams(temperature=temperature, n=n, seed=seed)
        samples = await self._service.generate(GenerateRequest(path, params))
        return [
            Action(
                self._encoder.chat.decode(s.tokens.tolist()),
                tuple(s.tokens.tolist()),
                s.logprob,
                "stop" if s.finished else "length",
            )
            for s in samples
        ]


def load_native_policy(
    place: Path | str,
    specs: Mapping[str, EnvSpec],
    engine: Any,
    *,
    examples: int = 0,
    template: str = "",
    date: str = "",
) -> NativePolicy:
    """The policy of a training workdir, a Hugging Face folder or a preset, on an engine of the configured sizes."""
    mesh = local_mesh(engine.get("tensor", 1))
    loaded = load_model(place, template=template, date=date, mesh=mesh, dtype=jnp.dtype(engine["dtype"]))
    encoder = Encoder(loaded.chat, specs, "policy", examples)
    return NativePolicy(make_engine(loaded.model, engine, end_id=loaded.chat.end_id), encoder, loaded.card)
