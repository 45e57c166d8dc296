"""A policy behind an OpenAI-compatible server."""

from collections.abc import Mapping
from typing import Any

from agentrm_jax import places
from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.generators.server import load_server_generator
from agentrm_jax.policies.generated import MessagePolicy, TokenPolicy
from agentrm_jax.prompts import Encoder


def load_served_policy(
    place: places.Server,
    specs: Mapping[str, EnvSpec],
    settings: Any,
    *,
    max_new: int,
    examples: int = 0,
    template: str = "",
    date: str = "",
) -> MessagePolicy | TokenPolicy:
    """The policy at a server, which must answer now: on chat messages, or on token ids where the settings name a tokenizer.

    Args:
      settings: a config's `server` group.
      max_new: tokens of a turn.

    Raises:
      UserError: the server does not answer, refuses the key, or has no such model; or the tokenizer cannot be opened.
    """
    generator = load_server_generator(place, settings, max_tokens=max_new, template=template, date=date)
    if generator.chat is None:
        return MessagePolicy(generator, specs, max_new, examples)
    return TokenPolicy(generator, Encoder(generator.chat, specs, "policy", examples), generator.context - max_new)
