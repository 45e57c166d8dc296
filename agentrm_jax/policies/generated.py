"""Policies that a generator writes: on its token ids where we have its tokenizer, else on chat messages."""

from collections import Counter
from collections.abc import Mapping

from agentrm_jax import prompts
from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.generators.generator import Generator, Usage
from agentrm_jax.models.card import Card
from agentrm_jax.prompts import Encoder
from agentrm_jax.types import Action, State, TooLong
from agentrm_jax.window import Window


class TokenPolicy:
    """Implements `Policy`: every turn is tokenised once, and what was sampled is read again as it was sampled.

    A history that is longer than `limit` tokens loses its oldest turns, never its prompt: see `window`.
    """

    def __init__(self, generator: Generator, encoder: Encoder, limit: int, card: Card | None = None):
        self.generator, self._encoder, self.card = generator, encoder, card
        self.window = Window(limit)

    @property
    def dropped_turns(self) -> Mapping[str, int]:
        """Task key -> oldest turns that were left out of what the model read."""
        return self.window.dropped_turns

    @property
    def usage(self) -> Mapping[str, Usage] | None:
        """Task key -> tokens given and written, as a server counts them; None for an engine of our own."""
        return getattr(self.generator, "usage", None)

    async def propose(self, state: State, n: int, *, temperature: float, seed: int) -> list[Action]:
        """`n` samples for the turn after `state`. Raises TooLong if prompt and last turn alone do not fit."""
        path = self.window.path(self._encoder.history(state), state.task.key)
        return await self.generator.generate(path, n, temperature=temperature, seed=seed, name=state.task.key)

    async def aclose(self) -> None:
        """Ends what the generator has open."""
        await _close(self.generator)


class MessagePolicy:
    """Implements `Policy`: a conversation is sent as chat messages, and the model's own template renders it.

    Where it turns out to be too long, the oldest quarter of its turns is left out until it fits, and counted.
    """

    card = None

    def __init__(self, generator: Generator, specs: Mapping[str, EnvSpec], max_new: int, examples: int = 0):
        self.generator, self._specs, self._max_new, self._examples = generator, specs, max_new, examples
        self.dropped_turns: Counter[str] = Counter()

    @property
    def usage(self) -> Mapping[str, Usage] | None:
        """Task key -> tokens given and written, as a server counts them; None for an engine of our own."""
        return getattr(self.generator, "usage", None)

    async def propose(self, state: State, n: int, *, temperature: float, seed: int) -> list[Action]:
        """`n` samples for the turn after `state`. Raises TooLong if prompt and last turn alone do not fit."""
        spec, name, last = self._specs[state.task.env], state.task.key, state.depth
        while True:
            conversation = prompts.messages(state, spec, examples=self._examples, last=last)
            try:
                if not self.generator.fits(conversation, self._max_new):
                    raise TooLong(f"the history of {name} is too long for the model, also with its last turn alone")
                found = await self.generator.generate(conversation, n, temperature=temperature, seed=seed, name=name)
            except TooLong:
                if last <= 1:
                    raise
                last = last * 3 // 4
            else:
                self.dropped_turns[name] += state.depth - last
                return found

    async def aclose(self) -> None:
        """Ends what the generator has open."""
        await _close(self.generator)


async def _close(generator: Generator) -> None:
    if close := getattr(generator, "aclose", None):
        await close()
