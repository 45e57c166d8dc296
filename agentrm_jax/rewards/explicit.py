"""The explicit reward model: a value head, read at the end of a state's last action."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from agentrm_jax.engine.engine import Engine, local_mesh, make_engine
from agentrm_jax.engine.service import EngineService
from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.models.card import Card, ReadAt, reward_specs
from agentrm_jax.models.opening import load_model
from agentrm_jax.models.transformer import value_map
from agentrm_jax.prompts import Encoder
from agentrm_jax.rewards.ensemble import Pessimism
from agentrm_jax.types import State, TooLong, UserError
from agentrm_jax.window import Window

PROPOSING = ("beam", "dvts", "sharing_beam")  # searches that score actions before they execute them


class ExplicitRewardModel:
    """Implements `RewardModel`. A state is scored once; a path that was scored before costs its new turns only.

    `tokens` counts what the model has read, for budgets. A state that is too long even without its oldest turns has no score
    (NaN); see `window` for what was left out.

    Args:
      read_at: where a value is read; see `models.card.Card`.
      pessimism: k of several value heads: a score is their mean less k standard deviations.
    """

    def __init__(
        self,
        engine: Engine,
        encoder: Encoder,
        card: Card | None = None,
        read_at: ReadAt = "end_of_turn",
        *,
        pessimism: float = 0.0,
    ):
        self._engine, self._encoder, self.card = engine, encoder, card
        self._pessimism = Pessimism(pessimism)
        self.notes = self._pessimism.notes
        self._closing = encoder.chat.closing if read_at == "last_token" else None
        self.window = Window(engine.config.context[-1])
        self._service = EngineService(engine)

    @property
    def tokens(self) -> int:
        return self._engine.stats.read_tokens

    @property
    def dropped_turns(self) -> Mapping[str, int]:
        """Task key -> oldest turns that were left out of what the model read."""
        return self.window.dropped_turns

    async def score(self, states: Sequence[State]) -> list[float]:
        """float[len(states)]: the value of every state; NaN where there is none."""
        found = await self.opinions(states)
        return [
            self._pessimism.score(values, state.task.key) if len(values) > 1 else float(values[0])
            for values, state in zip(found, states, strict=True)
        ]

    async def opinions(self, states: Sequence[State]) -> list[np.ndarray]:
        """float32[e] for every state: what each value head says; one NaN where there is no value."""
        paths = [self._path(state) for state in states]
        found = iter(await self._service.score([path for path in paths if path is not None]))
        return [np.array([math.nan], np.float32) if p is None else np.atleast_1d(next(found)) for p in paths]

    def _path(self, state: State) -> np.ndarray | None:
        try:
            return self.window.path(self._encoder.turn(state), state.task.key, self._closing)
        except TooLong:
            return None


def load_explicit(
    place: Path | str,
    specs: Mapping[str, EnvSpec],
    engine: Any,
    *,
    template: str = "",
    date: str = "",
    pessimism: float = 0.0,
    method: str = "",
) -> ExplicitRewardModel:
    """The explicit reward model of a training workdir, a Hugging Face folder or a preset, on an engine of the configured sizes.

    It is told about an environment what its card says it was told in training; `specs` speak for those that are new to it.

    Args:
      pessimism: as in `ExplicitRewardModel`.
      method: the search that will ask it, if it is known.

    Raises:
      UserError: the workdir holds a model without a value head, or one that cannot score what the method will ask about.
    """
    mesh = local_mesh(engine.get("tensor", 1))
    loaded = load_model(place, template=template, date=date, mesh=mesh, dtype=jnp.dtype(engine["dtype"]))
    if value_map(loaded.model) is None:
        raise UserError(f"{place} holds a model without a value head; train one with configs/explicit.py")
    if loaded.state == "last_observation" and method in PROPOSING:
        raise UserError(
            f"{place} reads what was observed after an action, but {method} scores actions before it executes them; use best_of_n, or "
            "train one without --config.state=last_observation"
        )
    encoder = Encoder(loaded.chat, reward_specs(loaded.card, specs), "reward", state=loaded.state)
    engine_ = make_engine(loaded.model, engine, end_id=loaded.chat.end_id)
    return ExplicitRewardModel(engine_, encoder, loaded.card, loaded.read_at, pessimism=pessimism)
