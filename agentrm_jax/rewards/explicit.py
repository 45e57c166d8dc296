"""The explicit reward model: a value head, read at the end of a state's last action."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from agentrm_jax import tree
from agentrm_jax.engine.engine import Engine, local_mesh, make_engine
from agentrm_jax.engine.service import EngineService
from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.models.opening import load_model
from agentrm_jax.prompts import Encoder
from agentrm_jax.types import State, UserError


class ExplicitRewardModel:
    """Implements `RewardModel`. A state is scored once; a path that was scored before costs its new turns only.

    `tokens` counts what the model has read, for budgets.
    """

    def __init__(self, engine: Engine, encoder: Encoder):
        self._engine, self._encoder = engine, encoder
        self._room = engine.config.context[-1]
        self._service = EngineService(engine)
        self.dropped_turns = 0

    @property
    def tokens(self) -> int:
        return self._engine.stats.read_tokens

    async def score(self, states: Sequence[State]) -> list[float]:
        paths = []
        for state in states:
            try:
                segments, dropped = tree.truncate(self._encoder.turn(state), self._room)
            except ValueError as error:
                raise UserError(f"{state.task.key}: {error}; raise the last of --config.engine.context") from error
            self.dropped_turns += dropped
            paths.append(np.concatenate([s.tokens for s in segments]))
        return await self._service.score(paths)


def load_reward_model(
    place: Path | str, specs: Mapping[str, EnvSpec], engine: Any, *, template: str = ""
) -> ExplicitRewardModel:
    """The explicit reward model of a training workdir, a Hugging Face folder or a preset, on an engine of the configured sizes.

    Raises:
      UserError: the workdir holds a model without a value head.
    """
    mesh = local_mesh(engine.get("tensor", 1))
    loaded = load_model(place, template=template, mesh=mesh, dtype=jnp.dtype(engine["dtype"]))
    if not hasattr(loaded.model, "value_d"):
        raise UserError(f"{place} holds a model without a value head; train one with configs/explicit.py")
    encoder = Encoder(loaded.chat, specs, "reward")
    return ExplicitRewardModel(make_engine(loaded.model, engine, end_id=loaded.chat.end_id), encoder)
