"""The life of an environment server: the pool, the socket, the end."""

import asyncio
import contextlib
import dataclasses
import math
import signal
import threading
from collections.abc import AsyncIterator, Callable

from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.envs.serve.http import Server
from agentrm_jax.envs.serve.sessions import Offer, Sessions
from agentrm_jax.envs.spec import Options
from agentrm_jax.types import EnvironmentFault, UserError


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an environment is served.

    Attributes:
      host, port: where to listen; port 0 is any that is free.
      workers: processes that engines run in.
      sessions: episodes that may be under way at once.
      session_timeout: seconds after which a session that nobody uses is closed.
      step_timeout: seconds one step may take.
      grace: seconds that requests under way have when the server ends.
    """

    host: str = "127.0.0.1"
    port: int = 0
    workers: int = 2
    sessions: int = 64
    session_timeout: float = 600.0
    step_timeout: float = 30.0
    grace: float = 10.0


def serve(place: str, offer: Offer, options: Options, settings: Settings, started: Callable[[str], None]) -> None:
    """Serves an environment until SIGTERM or SIGINT, then ends once what is under way is answered.

    Args:
      place: name or import path, by which workers find the environment.
      started: told the address once it answers.

    Raises:
      UserError: the environment cannot be built, or the address cannot be used.
    """
    asyncio.run(_serve(place, offer, options, settings, started))


async def _serve(
    place: str, offer: Offer, options: Options, settings: Settings, started: Callable[[str], None]
) -> None:
    async with serving(place, offer, options, settings) as server:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        try:
            started(server.url)
            await stop.wait()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)


@contextlib.asynccontextmanager
async def serving(place: str, offer: Offer, options: Options, settings: Settings) -> AsyncIterator[Server]:
    """A server that answers within the block. Arguments and errors as of `serve`."""
    live = max(8, math.ceil(settings.sessions / settings.workers))
    async with EnvironmentPool({place: options}, settings.workers, settings.step_timeout, live=live) as pool:
        try:  # what is missing is said now, not to the first who asks
            await pool.reset(offer.tasks[offer.default][0])
        except EnvironmentFault as error:
            raise UserError(f"{offer.spec.name} cannot be played: {error}") from error
        sessions = Sessions(pool, offer, most=settings.sessions, timeout=settings.session_timeout)
        try:
            server = Server((settings.host, settings.port), sessions, asyncio.get_running_loop())
        except (OSError, OverflowError) as error:
            raise UserError(f"--host {settings.host} --port {settings.port}: {error}") from error
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        closing = asyncio.create_task(_expire(sessions))
        try:
            yield server
        finally:
            closing.cancel()
            await asyncio.to_thread(server.end, settings.grace)
            thread.join(1.0)


async def _expire(sessions: Sessions) -> None:
    while True:
        await asyncio.sleep(min(5.0, sessions.timeout / 2))
        sessions.expire()
