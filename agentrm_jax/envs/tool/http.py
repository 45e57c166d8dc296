"""Answers of web services over HTTP: asked for, recorded in a folder, or replayed from it without any network.

A service that turns a request down (a 4xx status) has answered, and the answer is recorded like any other. A service that is not there,
too busy or broken has not: it is asked again for a while, and then `ServiceFault` is raised, so that the episode is tried again or lost
as with any other fault, but does not go on with an answer that depends on the day.
"""

import contextlib
import datetime
import email.utils
import hashlib
import http.client
import json
import math
import os
import re
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from agentrm_jax.envs.tool.calls import ToolError
from agentrm_jax.types import JSON, UserError

_MAX_BYTES = 1 << 24
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_NO_ENTRY = (401, 403)
# Seconds before the second try where the service does not say how long; twice as long before each further one.
_PAUSE = 0.5


class ServiceFault(Exception):
    """A service could not be reached, did not answer in time or answered nonsense."""


class Request(NamedTuple):
    """A GET of `path` below a service's base address. Its text is the same for equal requests and holds no key and no host."""

    service: str
    path: str
    params: Mapping[str, str]

    def text(self) -> str:
        return f"{self.service} {self.path}?{urllib.parse.urlencode(sorted(self.params.items()))}"


class Reply(NamedTuple):
    status: int
    body: JSON


class Key(NamedTuple):
    """What lets one in: sent along, never recorded or shown. `name` is where the user keeps it."""

    name: str
    params: Mapping[str, str]
    headers: Mapping[str, str]


class Client:
    """Answers requests, each one once.

    Args:
      mode: `live` asks the services and keeps their answers in memory; `record` asks only for what `folder` lacks, and adds it;
        `recorded` answers from `folder` alone.
      folder: of recordings, one JSON file a request: {"request": ..., "status": ..., "body": ...}.
      timeout: seconds a connection may be silent. Requests that failed are sent again within this time, so that all tries together
        take at most twice as long.
      keys: of the services that want one.
    """

    def __init__(self, mode: str, folder: Path | None, timeout: float, keys: Mapping[str, Key]):
        self.mode, self.folder, self.timeout, self.keys = mode, folder, timeout, keys
        self.known: dict[str, Reply] = {}

    def get(self, request: Request, base: str) -> Reply:
        """The answer of the service at `base`, or the recorded one.

        Raises:
          ToolError: there is no recording.
          ServiceFault: the service does not answer.
          UserError: it does not accept the key, or a recording cannot be read or written.
        """
        text = request.text()
        if text not in self.known:
            file = _file(self.folder, request) if self.folder else None
            reply = _read(file, text) if file else None
            if reply is None and self.mode == "recorded":
                raise ToolError(f"No answer was recorded for {text}.")
            if reply is None:
                reply = _fetch(request, base, self.keys.get(request.service), self.timeout)
                if file:
                    _write(file, text, reply)
            self.known[text] = reply
        return self.known[text]


def _file(folder: Path, request: Request) -> Path:
    readable = re.sub(r"[^a-z0-9]+", "-", request.path.lower()).strip("-")[:60]
    return folder / request.service / f"{readable}-{hashlib.sha256(request.text().encode()).hexdigest()[:24]}.json"


def _read(file: Path, text: str) -> Reply | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["request"] != text:
            raise ValueError(f"it holds the answer to {content['request']!r}")
        return Reply(int(content["status"]), content["body"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"recording {file} cannot be read ({e}); delete it and record it again") from e


def _write(file: Path, text: str, reply: Reply) -> None:
    """Writes a file beside and renames it: several workers may record the same answer at once."""
    content = {"request": text, "status": reply.status, "body": reply.body}
    beside = ""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        number, beside = tempfile.mkstemp(dir=file.parent, prefix=".writing-")
        with open(number, "w", encoding="utf-8") as f:
            json.dump(content, f, ensure_ascii=False, indent=1)
        os.replace(beside, file)
    except OSError as e:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise UserError(
            f"the recording {file} cannot be written ({e.strerror}); set option cassette to a folder"
        ) from e


def _fetch(request: Request, base: str, key: Key | None, timeout: float) -> Reply:
    query = urllib.parse.urlencode({**request.params, **(key.params if key else {})})
    address = f"{base.rstrip('/')}{request.path}" + (f"?{query}" if query else "")
    message = urllib.request.Request(address, headers={"Accept": "application/json", **(key.headers if key else {})})
    end, pause = time.monotonic() + timeout, _PAUSE
    while True:
        try:
            status, data, wait = _once(message, timeout)
            trouble = f"answers {status}"
        except (OSError, http.client.HTTPException) as e:
            status, data, wait = 0, b"", None
            trouble = f"gives no answer ({_reason(e)})"
        if status in _NO_ENTRY and key is not None:
            raise UserError(
                f"{request.service} does not accept the key in {key.name} (status {status}); set a valid one"
            )
        if status and status not in _AGAIN:
            return Reply(status, _content(request, status, data))
        wait = pause if wait is None else wait
        if time.monotonic() + wait >= end:
            later = f", and wants to be asked again in {wait:g} s" if status in _AGAIN and wait > pause else ""
            raise ServiceFault(f"{request.service} at {base} {trouble}{later}")
        time.sleep(wait)
        pause *= 2


def _once(message: urllib.request.Request, timeout: float) -> tuple[int, bytes, float | None]:
    """Status, body, and in how many seconds the service wants to be asked again, if it says so."""
    try:
        with urllib.request.urlopen(message, timeout=timeout) as response:
            return response.status, response.read(_MAX_BYTES), None
    except urllib.error.HTTPError as e:
        with e:
            return e.code, e.read(_MAX_BYTES), _retry_after(e.headers.get("Retry-After"))


def _retry_after(header: str | None) -> float | None:
    """Seconds to wait, from a number of them or a date; None without a readable header."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            then = email.utils.parsedate_to_datetime(header)
        except ValueError:
            return None
        if then.tzinfo is None:
            then = then.replace(tzinfo=datetime.UTC)
        seconds = (then - datetime.datetime.now(datetime.UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _content(request: Request, status: int, data: bytes) -> JSON:
    try:
        return json.loads(data)
    except ValueError as e:
        if status == 200:
            raise ServiceFault(f"{request.service} answers {data[:80]!r}, which is not JSON") from e
        return data.decode(errors="replace")[:300]


def _reason(error: Exception) -> str:
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    return f"{type(inner).__name__}: {inner}" if isinstance(inner, Exception) else str(inner)
