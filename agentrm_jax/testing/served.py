"""An environment server in a thread of this process, for tests and benchmarks of what is said over the wire."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from agentrm_jax.envs.catalogue import find, listed
from agentrm_jax.envs.serve.http import Server
from agentrm_jax.envs.serve.server import Settings, serving
from agentrm_jax.envs.serve.sessions import Offer
from agentrm_jax.envs.spec import Options


def offered(place: str, options: Options, split: str = "test") -> Offer:
    """What `serve PLACE --split SPLIT` offers."""
    spec = find(place)
    return Offer(spec.at_threshold(options), {split: listed(place, spec, split, options)}, split)


@contextlib.contextmanager
def served(place: str, options: Options, **settings: Any) -> Iterator[Server]:
    """The server of an environment's test tasks, on a port of its own; `settings` as of `Settings`."""
    ready: threading.Event = threading.Event()
    found: list[Server | BaseException] = []
    stop: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def live() -> None:
        try:
            chosen = Settings(**{"workers": 1, "grace": 2.0, **settings})
            async with serving(place, offered(place, options), options, chosen) as server:
                stop.append((asyncio.get_running_loop(), asyncio.Event()))
                found.append(server)
                ready.set()
                await stop[0][1].wait()
        except BaseException as error:
            found.append(error)
            raise
        finally:
            ready.set()

    thread = threading.Thread(target=lambda: asyncio.run(live()), daemon=True)
    thread.start()
    ready.wait()
    if not isinstance(found[0], Server):
        thread.join()
        raise found[0]
    try:
        yield found[0]
    finally:
        loop, event = stop[0]
        loop.call_soon_threadsafe(event.set)
        thread.join()
