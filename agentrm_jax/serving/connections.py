"""Connections that are slow, broken or left alone are ended; what is no HTTP is answered in one line."""

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from agentrm_jax.serving.faults import error_json
from agentrm_jax.serving.limits import Limits


def protocol(limits: Limits) -> type[H11Protocol]:
    """The class of connections with the time limits of a server."""
    return type("Connection", (Connection,), {"limits": limits})


class Connection(H11Protocol):
    """One connection. A request's head must arrive in time, and a client that does not read what it asked for is let go."""

    limits: Limits

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._arriving: asyncio.TimerHandle | None = None  # until then a request must have begun
        self._stalled: asyncio.TimerHandle | None = None  # until then the client must read on

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except (h11.ProtocolError, UnicodeDecodeError, ValueError):
            self.send_400_response("no HTTP request that can be read")
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self._stalled or self.loop.call_later(self.limits.stall, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled:
            self._stalled.cancel()
            self._stalled = None

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP, in the form of all other errors."""
        body = json.dumps(error_json(400, msg)).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"connection", b"close"),
            (b"content-length", b"%d" % len(body)),
        ]
        try:
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # an answer is under way already
            self.transport.abort()
        self.transport.close()

    def _watch(self) -> None:
        """Counts time while a request is awaited that has not begun: from its first byte, however slowly the others come."""
        waiting = (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing()
        if not waiting:
            if self._arriving:
                self._arriving.cancel()
                self._arriving = None
        elif self._arriving is None:
            self._arriving = self.loop.call_later(self.limits.arrival, self.transport.close)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._arriving:
            self._arriving.cancel()
            self._arriving = None

    def _stop(self) -> None:
        for timer in (self._arriving, self._stalled):
            if timer:
                timer.cancel()
        self._arriving = self._stalled = None
