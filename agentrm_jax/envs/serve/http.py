"""The HTTP side of the environment server: one thread a connection, every size and wait bounded, every error one line of JSON."""

import asyncio
import contextlib
import http.server
import json
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any, TypeVar

from agentrm_jax.envs import websocket
from agentrm_jax.envs.serve import agentgym, openenv
from agentrm_jax.envs.serve.sessions import Full, Session, Sessions
from agentrm_jax.types import JSON

BODY_LIMIT = 1 << 20  # bytes of a request or a message; a command has at most 10,000 characters
_CONNECTIONS_BESIDE = 32  # connections that may be open beyond one a session
_FAREWELL = 2.0  # seconds that connections have to close, once nothing is under way
_REQUEST_TIMEOUT = 60.0  # seconds a request may take to arrive, and a connection may be idle
_T = TypeVar("_T")


class Server(http.server.ThreadingHTTPServer):
    """Listens; answers from `sessions`, which live in `loop`.

    Raises:
      OSError: the address cannot be used.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], sessions: Sessions, loop: asyncio.AbstractEventLoop):
        self.sessions, self.loop = sessions, loop
        self.ending = threading.Event()
        self.episode_ids: dict[int, str] = {}
        self._room = threading.Semaphore(sessions.most + _CONNECTIONS_BESIDE)
        self._busy, self._idle = 0, threading.Condition()
        self._sockets: set[socket.socket] = set()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://[{host!s}]:{port}" if ":" in str(host) else f"http://{host!s}:{port}"

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Runs a coroutine in the loop of the sessions, from any thread; an end of the server waits for it."""
        with self._idle:
            self._busy += 1
        try:
            return asyncio.run_coroutine_threadsafe(work, self.loop).result()
        finally:
            with self._idle:
                self._busy -= 1
                self._idle.notify_all()

    def end(self, grace: float) -> None:
        """Lets nobody in any more, waits up to `grace` seconds for what is under way, and closes every connection."""
        self.ending.set()
        self.shutdown()
        with self._idle:
            self._idle.wait_for(lambda: not self._busy, grace)
        for sock in list(self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RD)  # what was answered just now is still sent
        end = time.monotonic() + _FAREWELL
        while self._sockets and time.monotonic() < end:
            time.sleep(0.01)
        self.server_close()

    # Connections

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            line = json.dumps({"error": "too many connections are open"}).encode()
            head = f"HTTP/1.1 503 Busy\r\nContent-Length: {len(line)}\r\nConnection: close\r\n\r\n"
            request.settimeout(1.0)
            with contextlib.suppress(OSError):
                request.sendall(head.encode() + line)
            self.shutdown_request(request)
            return
        self._sockets.add(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._sockets.discard(request)
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if not isinstance(error, OSError):  # connections break
            print(f"error: a connection ended: {type(error).__name__}: {error}", file=sys.stderr)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = _REQUEST_TIMEOUT
    disable_nagle_algorithm = True  # answers are small, and clients wait for each
    wbufsize = -1

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        if url.path == "/ws":
            self._talk()
        elif url.path in openenv.PAGES:
            self._reply(200, openenv.page(self.server.sessions.offer, url.path))
        elif url.path == "/":
            self._reply(200, agentgym.description(self.server.sessions.offer))
        elif url.path in ("/observation", "/list_envs"):
            query = urllib.parse.parse_qsl(url.query)
            self._answer(url.path, {key: int(value) if value.isdecimal() else value for key, value in query})
        else:
            self._refuse(404, f"there is no page {url.path[:100]}")

    def do_POST(self) -> None:
        path = urllib.parse.urlsplit(self.path).path
        body = self._body()
        if body is None:
            return
        if path not in agentgym.PATHS:
            self._refuse(404, f"there is no page {path[:100]}")
            return
        try:
            fields = json.loads(body or b"{}")
        except (ValueError, RecursionError):
            self._refuse(422, "the body is not JSON")
            return
        if not isinstance(fields, dict):
            self._refuse(422, "the body must be a JSON object")
        elif path in ("/reset", "/step", "/close") and not fields.keys() & {"id", "env_idx"}:
            self._refuse(422, "id (or env_idx) is missing; sessions of OpenEnv are WebSockets, at /ws")
        else:
            self._answer(path, fields)

    def _answer(self, path: str, fields: dict[str, JSON]) -> None:
        """Answers as an AgentGym server."""
        if self.server.ending.is_set():
            self._refuse(503, "the server is ending")
            return
        try:
            self._reply(200, self.server.run(agentgym.answer(self.server.sessions, path, fields)))
        except Full as error:
            self._refuse(503, str(error))

    def _body(self) -> bytes | None:
        """The request's body; None where it was refused."""
        if self.headers.get("Origin"):  # a page in somebody's browser
            self._refuse(403, "requests of web pages are not answered")
        elif self.headers.get("Transfer-Encoding"):
            self._refuse(411, "send the body with a Content-Length")
        else:
            length = self.headers.get("Content-Length", "0")
            if not length.isdecimal():
                self._refuse(400, "Content-Length is no number")
            elif int(length) > BODY_LIMIT:
                self._refuse(413, f"a body has at most {BODY_LIMIT} bytes")
            else:
                body = self.rfile.read(int(length))
                if len(body) == int(length):
                    return body
                self.close_connection = True
        return None

    def _talk(self) -> None:
        """A session of OpenEnv's, for as long as the connection lasts."""
        self.close_connection = True
        key = self.headers.get("Sec-WebSocket-Key")
        if self.headers.get("Upgrade", "").lower() != "websocket" or not key:
            self._refuse(426, "this is a WebSocket")
            return
        if self.headers.get("Origin"):
            self._refuse(403, "requests of web pages are not answered")
            return
        self.send_response_only(101)
        for name, value in (("Upgrade", "websocket"), ("Connection", "Upgrade")):
            self.send_header(name, value)
        self.send_header("Sec-WebSocket-Accept", websocket.accepted(key))
        self.end_headers()
        self.wfile.flush()
        server, sessions = self.server, self.server.sessions
        self.connection.settimeout(sessions.timeout)
        talk = websocket.WebSocket(self.connection, self.rfile, client=False, limit=BODY_LIMIT)
        try:
            session = server.run(_made(sessions))
        except Full as error:
            talk.send(json.dumps(openenv.full(error)))
            talk.close()
            return
        try:
            while (message := talk.receive()) is not None and not server.ending.is_set():
                reply = server.run(openenv.answer(sessions, session, server.episode_ids, message))
                if reply is None:
                    break
                talk.send(json.dumps(reply))
        except (websocket.WebSocketError, TimeoutError):
            pass  # gone, or silent for as long as a session may be
        finally:
            talk.close(websocket.GOING_AWAY if server.ending.is_set() else websocket.NORMAL)
            server.episode_ids.pop(session.id, None)
            server.run(_closed(sessions, session))

    # Answers

    def _reply(self, status: int, answer: JSON) -> None:
        data = json.dumps(answer).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if self.server.ending.is_set():
            self.close_connection = True
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def _refuse(self, status: int, reason: str) -> None:
        self.close_connection = True  # what follows of the request is not read
        self._reply(status, {"error": reason, "detail": reason})

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class says of requests that are none."""
        self._refuse(int(code), message or HTTPStatus(code).phrase)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing of a request is logged."""


async def _made(sessions: Sessions) -> Session:
    return sessions.create()


async def _closed(sessions: Sessions, session: Session) -> None:
    sessions.close(session)
