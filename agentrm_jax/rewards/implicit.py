"""The implicit reward model: beta times the log-ratio of a tuned policy to its reference (paper 3.2.2, arXiv 2412.01981).

The reward of a step is beta * (log pi(a) - log pi_ref(a)), summed over the tokens of its action and given all before it; what is
accumulated is the sum over the steps of a path. Any pair of a policy and the one that it was tuned from is such a model, without
training: the log-ratio of a policy that was trained by reinforcement is the advantage of its steps (arXiv 2606.26080).
"""

import asyncio
import math
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np

from agentrm_jax.engine.engine import Engine, local_mesh, make_engine
from agentrm_jax.engine.requests import LogprobsRequest
from agentrm_jax.engine.service import EngineService
from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.models.card import Card, reward_specs
from agentrm_jax.models.opening import LoadedModel
from agentrm_jax.models.pairs import load_pair
from agentrm_jax.prompts import Encoder
from agentrm_jax.types import State, TooLong, UserError
from agentrm_jax.window import Window

Step = Literal["accumulated", "single"]


class ImplicitRewardModel:
    """Implements `RewardModel`. Steps are read once by each of the two models; a path that was scored before costs its new turns only.

    Args:
      tuned, reference: engines of the two models, which have the same tokens.
      beta: what log-ratios (nats) are multiplied by.
      step: a state's score is the sum over its path (`accumulated`), or the reward of its last step alone (`single`).

    `tokens` counts what both models have read, for budgets. Where a path is too long each step is read without the oldest turns, as
    `window` says; a state with a step that is too long even so has no score (NaN) if it is needed.
    """

    def __init__(
        self,
        tuned: Engine,
        reference: Engine,
        encoder: Encoder,
        *,
        beta: float = 1.0,
        step: Step = "accumulated",
        card: Card | None = None,
    ):
        self._engines, self._encoder, self.card = (tuned, reference), encoder, card
        self._beta, self._step = beta, step
        self.window = Window(min(engine.config.context[-1] for engine in self._engines))
        self._services = (EngineService(tuned), EngineService(reference))
        self._known: weakref.WeakKeyDictionary[State, float] = weakref.WeakKeyDictionary()

    @property
    def tokens(self) -> int:
        return sum(engine.stats.read_tokens for engine in self._engines)

    @property
    def dropped_turns(self) -> Mapping[str, int]:
        """Task key -> oldest turns that were left out of what the models read."""
        return self.window.dropped_turns

    async def score(self, states: Sequence[State]) -> list[float]:
        """float[len(states)]: the reward of every state's last step, or of all steps up to it; NaN where there is none."""
        needed = [state.path()[1:] if self._step == "accumulated" else [state] for state in states]
        new = dict.fromkeys(state for path in needed for state in path if state not in self._known)
        found = await asyncio.gather(*(self._ratio(state) for state in new))
        self._known.update(zip(new, found, strict=True))
        return [self._beta * math.fsum(self._known[state] for state in path) for path in needed]

    async def _ratio(self, state: State) -> float:
        """log pi - log pi_ref of a state's last action, in nats."""
        segments = self._encoder.turn(state)
        try:
            path = self.window.path(segments, state.task.key)
        except TooLong:
            return math.nan
        request = LogprobsRequest(path, len(path) - len(segments[-1].tokens))
        tuned, reference = await asyncio.gather(*(service.logprobs(request) for service in self._services))
        return float(np.sum(tuned.astype(np.float64) - reference.astype(np.float64)))


def load_implicit(
    place: Path | str,
    specs: Mapping[str, EnvSpec],
    engine: Any,
    *,
    template: str = "",
    date: str = "",
    step: Step = "accumulated",
) -> ImplicitRewardModel:
    """The implicit reward model of a training workdir, with the reference that its card names, each on an engine.

    It is told about an environment what its card says it was told in training; `specs` speak for those that are new to it.

    Raises:
      UserError: the reference cannot be opened.
    """
    tuned, reference = load_pair(place, template=template, date=date, **_how(engine))
    card = tuned.card
    assert card is not None
    encoder = Encoder(tuned.chat, reward_specs(card, specs), "reward")
    engines = _engines(tuned, reference, engine)
    return ImplicitRewardModel(*engines, encoder, beta=card.beta or 1.0, step=check_step(step), card=card)


def load_policies(
    tuned: str,
    base: str,
    specs: Mapping[str, EnvSpec],
    engine: Any,
    *,
    template: str = "",
    date: str = "",
    step: Step = "accumulated",
) -> ImplicitRewardModel:
    """The log-ratio of any tuned policy to the one it was tuned from, in nats, as a reward model (progress advantage).

    Both read what a policy reads, without worked examples, in the template and tokens of the tuned one.

    Raises:
      UserError: a model cannot be opened, is no policy, or the two have different tokens.
    """
    both = load_pair(tuned, base, template=template, date=date, **_how(engine))
    encoder = Encoder(both[0].chat, specs, "policy")
    return ImplicitRewardModel(*_engines(*both, engine), encoder, step=check_step(step))


def check_step(step: str) -> Step:
    """Raises UserError if there is no such way to score a step."""
    if step not in get_args(Step):
        raise UserError(f"--config.step_reward={step}: use {' or '.join(get_args(Step))}")
    return step  # type: ignore[return-value]


def _how(engine: Any) -> dict[str, Any]:
    return {"mesh": local_mesh(engine.get("tensor", 1)), "dtype": jnp.dtype(engine["dtype"])}


def _engines(tuned: LoadedModel, reference: LoadedModel, sizes: Any) -> tuple[Engine, Engine]:
    first, second = (make_engine(m.model, sizes, end_id=tuned.chat.end_id) for m in (tuned, reference))
    return first, second
