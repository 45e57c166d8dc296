"""The process that serves: its socket, its signals, and its end, for which what is under way is waited."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from agentrm_jax.serving import connections
from agentrm_jax.serving.limits import Gate, Limits
from agentrm_jax.types import UserError

_BACKLOG = 512
_LONGEST_HEAD = 32 << 10  # bytes of the head of a request


def bind(host: str, port: int) -> socket.socket:
    """A socket that takes connections at a place of this machine; port 0 for any that is free.

    Raises:
      UserError: it cannot.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        raise UserError(
            f"--host={host} --port={port}: {getattr(error, 'strerror', None) or error}; name another"
        ) from error
    return found


def run(app: Any, listening: socket.socket, limits: Limits, gate: Gate, ready: Callable[[], None]) -> None:
    """Serves an application until SIGTERM or SIGINT: then nobody is let in any more, and what is under way has `limits.drain` seconds.

    A second signal ends it at once.

    Args:
      ready: called once requests are taken.
    """
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    listening.listen(_BACKLOG)
    config = uvicorn.Config(
        app,
        http=connections.protocol(limits),
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        limit_concurrency=limits.connections,
        timeout_keep_alive=max(1, round(limits.idle)),
        timeout_graceful_shutdown=max(1, round(limits.drain)),
        h11_max_incomplete_event_size=_LONGEST_HEAD,
    )
    asyncio.run(_Server(config, gate, ready).serve(sockets=[listening]))


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, gate: Gate, ready: Callable[[], None]):
        super().__init__(config)
        self._gate, self._ready = gate, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self._end)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _end(self) -> None:
        self.force_exit = self.should_exit
        self._gate.draining = self.should_exit = True
