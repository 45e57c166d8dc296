"""What policies and judges are built on: messages or tokens in, texts with tokens and log-probabilities out."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from agentrm_jax.types import Action, Message, TaskFailure

# A conversation that ends where the model's turn begins: its messages, or int32[t], the ids it is rendered to.
Prompt = Sequence[Message] | np.ndarray


class GenerationFailure(TaskFailure):
    """A generator could not answer one request, also after trying again; others may be answered."""


@dataclasses.dataclass
class Usage:
    """Tokens that were given to a model behind a server, and that it wrote, as the server counts them."""

    prompt: int = 0
    completion: int = 0

    def add(self, prompt: int, completion: int) -> None:
        self.prompt += prompt
        self.completion += completion


@dataclasses.dataclass(frozen=True)
class Answer:
    """Which of several options a model chooses.

    Attributes:
      logprobs: float[c], log-probability of every option as the beginning of the reply (nats, not normalised over options); 0 and
        -inf where only the choice itself is known.
      bounded: options whose log-probability is an upper bound, because a server reports the likeliest tokens only.
      how: what it was read from: log-probabilities, the arguments of a tool call, or the text of the reply.
    """

    logprobs: tuple[float, ...]
    how: Literal["logprobs", "tool", "text"]
    bounded: int = 0


class Generator(Protocol):
    """A language model that writes replies.

    A generator whose tokens are counted by somebody else has an attribute `usage`: name given with a request -> `Usage`.
    """

    @property
    def tokens(self) -> int:
        """Tokens computed so far, given and written ones."""
        ...

    def fits(self, prompt: Prompt, new_tokens: int) -> bool:
        """Whether the prompt leaves room for `new_tokens` more; True where only trying can tell."""
        ...

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
        """`n` independent replies; temperature 0 is greedy decoding.

        Raises:
          TooLong: the prompt is longer than what the model reads.
          GenerationFailure: there is no answer to this request.
        """
        ...

    async def choose(self, prompt: Prompt, options: Sequence[str], *, name: str = "") -> Answer | None:
        """How likely each option (a short text, none the beginning of another's word) is as the reply; None if the reply is none of them.

        Raises:
          TooLong, GenerationFailure: as of `generate`.
        """
        ...
