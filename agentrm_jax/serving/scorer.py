"""The reward model behind the endpoints: trajectories and paths in, the numbers of `python -m agentrm_jax.score` out.

All requests in flight share one engine (an implicit model has two), so a path that was read before costs its new tokens only.
"""

import asyncio
import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from agentrm_jax.data.conversations import Conversation
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.requests import LogprobsRequest
from agentrm_jax.engine.service import EngineService
from agentrm_jax.models.card import Card, ReadAt
from agentrm_jax.prompts import Representation
from agentrm_jax.scoring import PathSteps, Prepared, Scored, check_state, prepare, scored
from agentrm_jax.serving.faults import ServingError
from agentrm_jax.serving.texts import Texts


@dataclasses.dataclass(frozen=True)
class Ratio:
    """What an implicit reward model does with log-ratios; see `scoring.LogRatio`."""

    beta: float
    accumulated: bool


class Scorer:
    """A reward model that is served.

    Args:
      engines: of the model; of an implicit one, those of the tuned policy and of its reference.
      aggregate: how step scores become a trajectory's score, unless a request says otherwise.
      longest: tokens that the model could read if it was let to.
      state: what it reads of a conversation (`prompts.Representation`).

    Raises:
      UserError: it reads what conversations do not keep.
    """

    def __init__(
        self,
        name: str,
        engines: Sequence[Engine],
        texts: Texts,
        *,
        read_at: ReadAt,
        aggregate: str,
        longest: int,
        state: Representation = "default",
        card: Card | None = None,
        ratio: Ratio | None = None,
    ):
        self.name, self.engines, self.texts, self.card, self.ratio = name, engines, texts, card, ratio
        check_state(state)
        self.read_at, self.aggregate, self._state = read_at, aggregate, state
        self.limit, self._longest = engines[0].config.context[-1], longest
        self._services = [EngineService(engine) for engine in engines]

    async def score(self, conversations: Sequence[Conversation], aggregate: str | None = None) -> list[Scored]:
        """The scores of trajectories, in order; one that cannot be scored says why."""

        def read() -> list[Prepared]:
            how = self.texts.chat, self.limit, self._longest, self.read_at, self._state
            return [prepare(one, *how) for one in conversations]

        how = (self.ratio.beta, self.ratio.accumulated) if self.ratio else (1.0, False)
        prepared = await self.texts.on_thread(read)
        steps = [steps for one in prepared for steps in one.readings]
        found = iter(await (self._ratios(steps) if self.ratio else self._values(steps)))
        out = []
        for one in prepared:
            numbers = [number for _ in one.readings for number in next(found)]
            answer = scored(one, numbers, aggregate or self.aggregate, *how)
            out.append(dataclasses.replace(answer, error=_here(answer.error)))
        return out

    async def values(self, paths: Sequence[np.ndarray]) -> list[float]:
        """The value at the end of every path, NaN where the model gives none.

        Raises:
          ServingError: the reward model is an implicit one, which values turns.
          RequestError: a path cannot be read.
        """
        if self.ratio:
            raise ServingError(400, f"{self.name} is an implicit reward model, which values turns: send messages")
        return [v if math.isfinite(v) else math.nan for v in await self._services[0].score(paths)]

    async def _values(self, steps: Sequence[PathSteps]) -> list[list[float]]:
        paths = [one.flat.tokens[: end + 1] for one in steps for end in one.at]
        values = iter(await self._services[0].score(paths))
        return [[next(values) for _ in one.at] for one in steps]

    async def _ratios(self, steps: Sequence[PathSteps]) -> list[list[float]]:
        return await asyncio.gather(*map(self._ratios_of, steps))

    async def _ratios_of(self, steps: PathSteps) -> list[float]:
        """log pi - log pi_ref of each step on a path, in nats."""
        if not len(steps.at):
            return []
        firsts = steps.at - steps.sizes + 1
        request = LogprobsRequest(steps.flat.tokens[: steps.at[-1] + 1], int(firsts[0]))
        tuned, reference = await asyncio.gather(*(service.logprobs(request) for service in self._services))
        ratios = tuned - reference
        spans = zip(firsts - firsts[0], steps.at + 1 - firsts[0], strict=True)
        return [float(ratios[first:after].sum(dtype=np.float64)) for first, after in spans]


def _here(message: str) -> str:
    """A message of the library, with the server's name of an option."""
    return message.replace("--config.chat_template", "--chat-template")
