"""The explicit reward model: a value head, read at the end of a state's last action."""

from collections.abc import Sequence

import numpy as np

from agentrm_jax import tree
from agentrm_jax.engine.engine import Engine, ScoreRequest
from agentrm_jax.engine.service import Batcher
from agentrm_jax.prompts import Encoder
from agentrm_jax.types import State


class ExplicitRewardModel:
    """Implements `RewardModel`. A state is scored once; a path that was scored before costs its new turns only.

    `tokens` counts what the model has read, for budgets.
    """

    def __init__(self, engine: Engine, encoder: Encoder):
        self._engine, self._encoder = engine, encoder
        self._room = engine.config.context[-1]
        self._batcher: Batcher[tuple[ScoreRequest, ...], np.ndarray] = Batcher(self._run, most=engine.config.rows[-1])
        self.dropped_turns = 0

    @property
    def tokens(self) -> int:
        return self._engine.stats.read_tokens

    async def score(self, states: Sequence[State]) -> list[float]:
        requests = []
        for state in states:
            segments, dropped = tree.truncate(self._encoder.turn(state), self._room)
            self.dropped_turns += dropped
            requests.append(ScoreRequest(tuple(segments)))
        return [float(v) for v in await self._batcher.ask(tuple(requests))]

    def _run(self, batch: Sequence[tuple[ScoreRequest, ...]]) -> list[np.ndarray]:
        values = self._engine.score([request for requests in batch for request in requests])
        ends = np.cumsum([len(requests) for requests in batch])
        return np.split(values, ends[:-1])
