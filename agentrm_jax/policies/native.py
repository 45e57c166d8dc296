"""A policy that runs on our engine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from agentrm_jax.engine.engine import Engine, local_mesh, make_engine
from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.generators.native import EngineGenerator
from agentrm_jax.models.card import Card
from agentrm_jax.models.opening import load_model
from agentrm_jax.policies.generated import TokenPolicy
from agentrm_jax.prompts import Encoder


class NativePolicy(TokenPolicy):
    """Implements `Policy`: proposals of all tasks in flight are sampled together."""

    def __init__(self, engine: Engine, encoder: Encoder, card: Card | None = None):
        limit = engine.config.context[-1] - engine.config.max_new
        super().__init__(EngineGenerator(engine, encoder.chat), encoder, limit, card)
        self._engine = engine


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
