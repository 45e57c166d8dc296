"""Opening a generator: a model on our engine, or one behind a server."""

from typing import Any

from agentrm_jax import places
from agentrm_jax.generators.generator import Generator


def load_generator(
    place: places.Model | places.Server, engine: Any, server: Any, *, template: str = "", date: str = ""
) -> Generator:
    """The language model at a place.

    Args:
      engine: the sizes of a config's `engine` group; of a server, `max_new` counts.
      server: a config's `server` group, for a server.
      template, date: of the chat template; see `models.opening`.

    Raises:
      UserError: there is no such model, it writes no text, or the server does not answer.
    """
    if isinstance(place, places.Server):
        from agentrm_jax.generators.server import load_server_generator

        return load_server_generator(place, server, max_tokens=engine["max_new"], template=template, date=date)
    from agentrm_jax.generators.native import load_engine_generator

    return load_engine_generator(place.place, engine, template=template, date=date)
