"""A server on this machine that speaks enough of OpenAI's protocol for tests, and misbehaves as it is told."""

import http.server
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

from agentrm_jax.types import JSON

Misbehave = Callable[["_Handler"], None]


class ModelServer:
    """Answers on a free port of 127.0.0.1 while its block runs.

    Attributes:
      models: names it has; None: it does not list them.
      reply: (request) -> the answer to a good one; see `answer`.
      refuses: field of a request -> why a request with it is refused (status 400).
      script: what becomes of the next requests for replies, one each, before `reply` is asked; see `status` and the others below.
      requests: (path, headers, request) of all requests for replies.
    """

    def __init__(self, reply: Callable[[dict[str, JSON]], JSON], *, models: tuple[str, ...] | None = ("stub",)):
        self.reply, self.models = reply, models
        self.context: int | None = None
        self.refuses: dict[str, str] = {}
        self.script: list[Misbehave] = []
        self.requests: list[tuple[str, dict[str, str], dict[str, JSON]]] = []
        self.key = ""  # the key it wants, if it wants one
        self._lock = threading.Lock()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.owner = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def place(self) -> str:
        """What names it in a config."""
        return f"openai:stub@{self.url}"

    @property
    def asked(self) -> list[dict[str, JSON]]:
        """The requests for replies."""
        return [request for _, _, request in self.requests]

    def __enter__(self) -> "ModelServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def next(self, path: str, headers: Mapping[str, str], request: dict[str, JSON]) -> Misbehave:
        """Notes a request and says what becomes of it."""
        with self._lock:
            self.requests.append((path, {k.lower(): v for k, v in headers.items()}, request))
            if self.script:
                return self.script.pop(0)
        if self.key and headers.get("Authorization") != f"Bearer {self.key}":
            return status(401, {"error": {"message": f"bad key {headers.get('Authorization')}"}})
        for field, why in self.refuses.items():
            if field in request:
                return status(400, {"error": {"message": why}})
        return status(200, self.reply(request))


def answer(*texts: str, usage: tuple[int, int] = (7, 3), finish: str = "stop", **more: JSON) -> dict[str, JSON]:
    """An answer of /chat/completions with these replies; `more` goes into each choice."""
    choices = [{"message": {"role": "assistant", "content": t}, "finish_reason": finish, **more} for t in texts]
    return {"choices": choices, "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}}


def first_token(**logprobs: float) -> dict[str, JSON]:
    """Log-probabilities of a reply of one token, with what else it might have been; `_1` is the text 1."""
    tops = [{"token": name.removeprefix("_"), "logprob": p} for name, p in logprobs.items()]
    best = tops[max(range(len(tops)), key=list(logprobs.values()).__getitem__)]
    return {"content": [{**best, "top_logprobs": tops}]}


def status(code: int, body: JSON = None, **headers: str) -> Misbehave:
    """An answer with a status; a `retry_after` goes into its header."""

    def act(handler: "_Handler") -> None:
        handler.send(code, json.dumps(body).encode(), headers)

    return act


def raw(body: bytes, *, length: int | None = None, code: int = 200) -> Misbehave:
    """An answer of these bytes; with `length` it announces more (or fewer) than it sends, and hangs up."""

    def act(handler: "_Handler") -> None:
        handler.send(code, body, {}, length)

    return act


def hang_up(handler: "_Handler") -> None:
    """No answer at all."""
    handler.close_connection = True


def wait_for(event: threading.Event) -> Misbehave:
    """No answer before the event, and a broken one then."""

    def act(handler: "_Handler") -> None:
        event.wait(10)
        handler.close_connection = True

    return act


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        owner: ModelServer = self.server.owner  # type: ignore[attr-defined]
        if owner.key and self.headers.get("Authorization") != f"Bearer {owner.key}":
            self.send(
                401, json.dumps({"error": {"message": f"bad key {self.headers.get('Authorization')}"}}).encode(), {}
            )
        elif self.path != "/v1/models" or owner.models is None:
            self.send(404, b'{"detail": "Not Found"}', {})
        else:
            rows = [{"id": name} | ({"max_model_len": owner.context} if owner.context else {}) for name in owner.models]
            self.send(200, json.dumps({"data": rows}).encode(), {})

    def do_POST(self) -> None:
        owner: ModelServer = self.server.owner  # type: ignore[attr-defined]
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path not in ("/v1/chat/completions", "/v1/completions"):
            self.send(404, b'{"detail": "Not Found"}', {})
        elif owner.models is not None and request["model"] not in owner.models:
            self.send(
                404, json.dumps({"error": {"message": f"The model {request['model']} does not exist."}}).encode(), {}
            )
        else:
            owner.next(self.path, self.headers, request)(self)  # type: ignore[arg-type]

    def send(self, code: int, body: bytes, headers: Mapping[str, str], length: int | None = None) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        if length is not None:
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass
