"""Opening a model behind a server: its settings, and whether it answers, before a run begins."""

import asyncio
import concurrent.futures
from pathlib import Path
from typing import Any

from agentrm_jax import places
from agentrm_jax.chat import Chat, load_chat
from agentrm_jax.generators.http import Client, Settings
from agentrm_jax.generators.openai import ServerGenerator
from agentrm_jax.models.pretrained import open_pretrained
from agentrm_jax.tokenizer import load_tokenizer
from agentrm_jax.types import UserError


def load_server_generator(
    place: places.Server, settings: Any, *, max_tokens: int, template: str = "", date: str = ""
) -> ServerGenerator:
    """The model at a server, which must answer now.

    Args:
      settings: a config's `server` group (key_variable, timeout, retries, concurrency, context, tokenizer); what it lacks has its
        default.
      max_tokens: tokens of a reply.
      template, date: of the tokenizer's chat template, where the config names a tokenizer.

    Raises:
      UserError: the server does not answer, refuses the key, or has no such model; or the tokenizer cannot be opened.
    """
    given = dict(settings or {})
    tokenizer, context = given.pop("tokenizer", ""), given.pop("context", 0)
    chat = _chat(tokenizer, template, date) if tokenizer else None
    client = Client(place.url, Settings(**given))
    generator = ServerGenerator(place.model, client, max_tokens=max_tokens, chat=chat, context=context)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:  # the caller may be inside an event loop
        thread.submit(asyncio.run, generator.check()).result()
    if chat and not generator.context:
        raise UserError(
            f"{place.url} does not say how much {place.model} reads; set --config.server.context to its tokens, or leave "
            "--config.server.tokenizer out"
        )
    return generator


def _chat(place: str, template: str, date: str) -> Chat:
    """The chat template of a workdir, a folder with tokenizer files, a GGUF file or a preset."""
    folder = Path(place).expanduser()
    if (folder / "tokenizer").is_dir():
        folder = folder / "tokenizer"
    tokenizer = load_tokenizer(folder) if folder.is_dir() else open_pretrained(place).tokenizer()
    return load_chat(tokenizer, template, date=date)
