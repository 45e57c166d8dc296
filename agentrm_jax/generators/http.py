"""Requests to a model server that may be slow, busy or broken: tried again with growing pauses, bounded in number and in time.

What becomes of an answer:

    2xx, a JSON object that makes sense             it is returned
    400, 413, 422 and other 4xx                     `Refused`: the request is at fault, the caller may ask for less
    401, 402, 403, 404, 405, a redirect, no quota   `UserError`: no request will fare better, the run ends at once
    408, 409, 425, 429, 5xx, a broken answer        tried again; then `GenerationFailure`, which costs one task or step
    nobody accepts the connection                   tried again; then `UserError`: the server is gone, and not the task's fault
"""

import asyncio
import contextlib
import dataclasses
import email.utils
import importlib.util
import json
import math
import os
import random
import time
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from agentrm_jax.generators.generator import GenerationFailure
from agentrm_jax.text import clean
from agentrm_jax.types import JSON, UserError

T = TypeVar("T")
_MAX_BYTES = 1 << 26
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds before the second try; twice as long before each further one
_LONGEST_WAIT = 600.0  # seconds that a server's Retry-After is honoured
_AGAIN = (408, 409, 425, 429)
_FINAL = (401, 402, 403, 404, 405)


class Refused(Exception):
    """The server will not do what this request asks for; `message` is its reason, on one line."""

    def __init__(self, status: int, message: str):
        super().__init__(f"status {status}: {message}")
        self.status, self.message = status, message


class GoneError(UserError):
    """There is no such path at the server, or no such model."""


class BrokenAnswer(Exception):
    """An answer that makes no sense; another try may bring a better one."""


class _Again(Exception):
    """This try brought nothing; `wait` is how long the server asks to be left alone, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0, *, unreachable: bool = False):
        super().__init__(reason)
        self.wait, self.unreachable = wait, unreachable


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a server is asked.

    Attributes:
      key_variable: environment variable that holds the key; without it no key is sent.
      timeout: seconds that one try may take.
      retries: further tries after the first.
      concurrency: requests in flight.
    """

    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 120.0
    retries: int = 6
    concurrency: int = 32


class Client:
    """One server. It may be used from several event loops, one after the other; `aclose` ends its connections.

    The key is read from the environment once; it is in no message and no record.

    Raises:
      UserError: the HTTP library is missing, or the key cannot be one.
    """

    def __init__(
        self,
        url: str,
        settings: Settings,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ):
        if importlib.util.find_spec("httpx2") is None:
            raise UserError("models behind a server need httpx2: pip install 'agentrm-jax[openai]'")
        self.url, self.settings = url, settings
        self._sleep, self._now, self._jitter = sleep, now, jitter
        self._key = os.environ.get(settings.key_variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable()) or " " in self._key:
            raise UserError(
                f"the environment variable {settings.key_variable} holds no key: it has blanks or odd signs in it"
            )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._http: Any = None
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._quiet_until = 0.0  # until then a busy server asked to be left alone, by all requests

    async def ask(
        self,
        path: str,
        payload: Mapping[str, JSON] | None,
        read: Callable[[dict[str, JSON]], T],
        *,
        retries: int | None = None,
    ) -> T:
        """What `read` makes of the answer to one request: POST, or GET without a payload.

        Args:
          read: takes the JSON object; may raise BrokenAnswer.
          retries: further tries; None: as the settings say.

        Raises:
          Refused, UserError, GenerationFailure: see the module's docstring.
        """
        failure = _Again("")
        tries = 1 + (self.settings.retries if retries is None else retries)
        for attempt in range(tries):
            if attempt:
                await self._sleep(self._pause(attempt, failure.wait))
            try:
                async with self._slot():
                    return read(self._object(await self._send(path, payload)))
            except BrokenAnswer as error:
                failure = _Again(str(error))
            except _Again as error:
                failure = error
        text = f"{self.url}{path}: {failure} (tried {tries} times)"
        if failure.unreachable:
            raise UserError(f"{text}; start the server or correct the URL; the same command then goes on")
        raise GenerationFailure(text)

    async def aclose(self) -> None:
        """Ends the connections; the next request makes new ones."""
        http, self._http, self._loop = self._http, None, None
        if http is not None:
            await http.aclose()

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """Room for one request, when the server may be asked again."""
        self._enter_loop()
        async with self._slots:
            while (left := self._quiet_until - self._now()) > 0:
                await self._sleep(left)
            yield

    def _enter_loop(self) -> None:
        import httpx2

        loop = asyncio.get_running_loop()
        if self._http is not None and self._loop is loop:
            return
        local = urllib.parse.urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")
        self._loop = loop
        self._slots = asyncio.Semaphore(self.settings.concurrency)
        self._http = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(self.settings.timeout, pool=None),
            limits=httpx2.Limits(max_connections=self.settings.concurrency),
            trust_env=not local,  # a proxy is for what is far away
        )

    async def _send(self, path: str, payload: Mapping[str, JSON] | None) -> bytes:
        """The body of a good answer. Raises _Again, Refused or UserError for any other."""
        import httpx2

        try:
            async with asyncio.timeout(self.settings.timeout):
                method = "GET" if payload is None else "POST"
                async with self._http.stream(method, self.url + path, json=payload) as response:
                    body = bytearray()
                    async for part in response.aiter_bytes():
                        body += part
                        if len(body) > _MAX_BYTES:
                            raise _Again(f"an answer of more than {_MAX_BYTES:,} bytes")
        except TimeoutError as error:
            raise _Again(f"no answer within {self.settings.timeout:g} s") from error
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise _Again(f"nothing accepts a connection ({_line(str(error))})", unreachable=True) from error
        except httpx2.TimeoutException as error:
            raise _Again(f"no answer within {self.settings.timeout:g} s") from error
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise _Again(f"the connection broke ({type(error).__name__}: {_line(str(error))})") from error
        except httpx2.InvalidURL as error:
            raise UserError(f"{self.url} is no URL: {error}") from error
        if not 200 <= response.status_code < 300:
            self._raise(path, response.status_code, response.headers, self._said(bytes(body)))
        return bytes(body)

    def _raise(self, path: str, status: int, headers: Mapping[str, str], said: str) -> None:
        where = f"{self.url}{path}"
        if status in _FINAL or 300 <= status < 400:
            kind = GoneError if status in (404, 405) else UserError
            raise kind(f"{where} {self._final(status, headers)} (status {status}: {said})")
        if status not in _AGAIN and status < 500:
            raise Refused(status, said)
        if status == 429 and any(
            word in said for word in ("insufficient_quota", "billing", "exceeded your current quota")
        ):
            raise UserError(f"{where} has no quota left for this key (status 429: {said})")
        wait = _retry_after(headers.get("retry-after", ""))
        if status in (429, 503) and wait:
            self._quiet_until = max(self._quiet_until, self._now() + wait)
        raise _Again(f"status {status}: {said}", wait)

    def _final(self, status: int, headers: Mapping[str, str]) -> str:
        variable = self.settings.key_variable
        if status in (404, 405):
            return "does not exist: name the URL up to /chat/completions, mostly it ends in /v1, and the model as the server does"
        if status in (401, 403):
            return (
                f"refuses the key in {variable}"
                if self._key
                else f"wants a key: set the environment variable {variable}"
            )
        if status == 402:
            return "asks for payment"
        return f"redirects to {_line(headers.get('location', 'nowhere'))}: name that URL"

    def _pause(self, attempt: int, wait: float) -> float:
        """Seconds before a further try: doubled each time, the upper half of it by chance, so that many askers come apart."""
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (attempt - 1))
        return wait + pause * (1 + self._jitter()) / 2

    def _object(self, body: bytes) -> dict[str, JSON]:
        try:
            value = json.loads(body.decode("utf-8", errors="replace"), parse_constant=lambda _: None)
        except (ValueError, RecursionError) as error:
            raise BrokenAnswer(f"an answer that is no JSON ({error})") from error
        if not isinstance(value, dict):
            raise BrokenAnswer(f"an answer that is no JSON object but a {type(value).__name__}")
        if isinstance(value.get("error"), dict | str) and "choices" not in value and "data" not in value:
            raise BrokenAnswer(f"an answer that reports an error: {self._said(body)}")
        return value

    def _said(self, body: bytes) -> str:
        """The reason in the body of an error, on one line, without the key."""
        text = body[:100_000].decode("utf-8", errors="replace")
        try:
            value = json.loads(text)
            error = value.get("error", value)
            if isinstance(error, dict):
                parts = [error.get(name) for name in ("message", "detail", "code") if error.get(name)]
                text = "; ".join(str(part) for part in parts) or text
            elif isinstance(error, str):
                text = error
        except (ValueError, AttributeError, RecursionError):
            pass
        return _line(text.replace(self._key, "[key]") if self._key else text)


def _line(text: str) -> str:
    """Text from outside on one line of bounded length."""
    return clean(" ".join(clean(text).split()), 300).replace("\n", " ") or "no reason given"


def _retry_after(text: str) -> float:
    """Seconds that a `Retry-After` header asks to wait (a number, or a date); 0 if it says nothing."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), _LONGEST_WAIT) if math.isfinite(seconds) else 0.0
