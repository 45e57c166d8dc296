"""How much is taken on at once, from whom, and for how long."""

import asyncio
import contextlib
import dataclasses
import hmac
import math
from collections.abc import Iterator, Mapping

from agentrm_jax.serving.faults import ServingError

_SMOOTHING = 0.1  # weight of the newest request in the mean time of one
_LONGEST_WAIT = 60  # seconds that a client is asked to stay away at most


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server takes on.

    Attributes:
      concurrency: requests that are worked on; further ones are refused (429).
      connections: connections that are open; further ones are refused (503).
      body: bytes of a request.
      items: trajectories, texts, prompts or samples of a request.
      seconds: that a request may take, from when all of it was read.
      arrival: seconds in which a request must arrive, its head and then its body.
      stall: seconds that an answer may wait for a client to read on.
      idle: seconds that a connection may stay open between requests.
      drain: seconds for what is under way when the server is asked to end.
    """

    concurrency: int = 64
    connections: int = 1024
    body: int = 8 << 20
    items: int = 256
    seconds: float = 300.0
    arrival: float = 20.0
    stall: float = 30.0
    idle: float = 30.0
    drain: float = 30.0


class Gate:
    """Lets in as many requests as are worked on at once.

    Attributes:
      inside: requests that are in.
      draining: nobody is let in any more.
    """

    def __init__(self, most: int):
        self.most, self.inside, self.draining = most, 0, False
        self._mean = 1.0  # seconds of a request

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """Room for one request within the block.

        Raises:
          ServingError: there is none (429, with the time in which there may be some), or the server is about to end (503).
        """
        if self.draining:
            raise ServingError(503, "the server is about to end", retry_after=5)
        if self.inside >= self.most:
            wait = min(_LONGEST_WAIT, max(1, math.ceil(self._mean)))
            raise ServingError(429, f"{self.inside} requests are being worked on already", retry_after=wait)
        self.inside += 1
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            yield
        finally:
            self.inside -= 1
            self._mean += _SMOOTHING * (clock() - began - self._mean)


def check_key(headers: Mapping[str, str], key: str) -> None:
    """Raises ServingError if there is a key and a request does not bring it as its bearer token."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    fine = scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), key.encode())
    if key and not fine:
        raise ServingError(401, "this server wants its key as `Authorization: Bearer KEY`")
