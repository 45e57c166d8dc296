"""From an HTTP request to an answer: who asks, whether there is room, what is asked, for how long; and what becomes of failures."""

import asyncio
import contextlib
import json
import re
import sys
import time
import traceback
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from agentrm_jax.data import fields
from agentrm_jax.serving.contracts import Contract
from agentrm_jax.serving.faults import ServingError, error_json
from agentrm_jax.serving.limits import Gate, Limits, check_key
from agentrm_jax.serving.metrics import Metrics
from agentrm_jax.types import JSON, TaskFailure, UserError

T = TypeVar("T")
_ID = re.compile(r"[\x21-\x7e]{1,128}")
_PATIENCE = 4  # what is too large is read, and dropped, up to so many times the limit: who still writes hears no answer
_GONE = 499  # the client went away: nobody reads the answer, the count of them is of interest


class Stream:
    """An answer that is sent event by event (server-sent events)."""

    def __init__(self, events: AsyncGenerator[JSON, None]):
        self.events = events


class Lines:
    """An answer of several JSON values, one a line."""

    def __init__(self, rows: list[JSON]):
        self.rows = rows


Answer = JSON | Stream | Lines
Work = Callable[[Request, str], Awaitable[Answer]]  # (request, with its body read; its id) -> the answer


class Exchange:
    """How all endpoints of a server take requests and answer them."""

    def __init__(self, limits: Limits, gate: Gate, metrics: Metrics, key: str):
        self.limits, self.gate, self.metrics, self._key = limits, gate, metrics, key

    def post(self, app: FastAPI, path: str, work: Work, contract: type[Contract], purpose: str) -> None:
        """Serves `work` at a path; `contract` and `purpose` are for the description at /openapi.json."""

        async def answer(request: Request) -> Response:
            return await self._answer(path, request, work)

        schema = {"requestBody": {"content": {"application/json": {"schema": contract.model_json_schema()}}}}
        name = path.strip("/").replace("/", "_")
        how: dict[str, Any] = {"methods": ["POST"], "openapi_extra": schema, "name": name, "summary": purpose}
        app.add_api_route(path, answer, **how)

    def get(
        self, app: FastAPI, path: str, work: Callable[[Request], Response], purpose: str, *, open_: bool = False
    ) -> None:
        """Serves what `work` gives at once; without a key if it is open to all."""

        async def answer(request: Request) -> Response:
            ident = _request_id(request)
            try:
                if not open_:
                    check_key(request.headers, self._key)
                response = work(request)
            except ServingError as error:
                response = JSONResponse(error.to_json(), error.status, error.headers)
            response.headers["X-Request-Id"] = ident
            return response

        name = path.strip("/").replace("/", "_")
        app.add_api_route(path, answer, methods=["GET"], name=name, summary=purpose)

    async def _answer(self, endpoint: str, request: Request, work: Work) -> Response:
        ident, began = _request_id(request), time.monotonic()
        held = contextlib.ExitStack()
        streams = False
        try:
            check_key(request.headers, self._key)
            await self._read(request)
            held.enter_context(self.gate.enter())
            found = await self._attended(request, work(request, ident))
            if isinstance(found, Stream):
                streams = True
                return self._streamed(endpoint, ident, found, held, began)
            if isinstance(found, Lines):
                text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in found.rows)
                response: Response = Response(text, media_type="application/x-ndjson")
            else:
                response = JSONResponse(found)
        except (Exception, asyncio.CancelledError) as error:
            fault = self._fault(error, ident)
            response = JSONResponse(fault.to_json(), fault.status, fault.headers)
        finally:
            if not streams:
                held.close()
        self.metrics.count(endpoint, response.status_code, time.monotonic() - began)
        response.headers["X-Request-Id"] = ident
        return response

    def _fault(self, error: BaseException, ident: str) -> ServingError:
        """What a client is told of a failure; one that is ours leaves its place, and nothing of the request, on standard error."""
        match error:
            case ServingError():
                return error
            case UserError() | TaskFailure():  # the engine's RequestError too
                return ServingError(400, str(error))
            case ClientDisconnect():
                return ServingError(_GONE, "the client went away")
            case TimeoutError():
                return ServingError(504, f"not done within {self.limits.seconds:g} s", retry_after=1)
            case asyncio.CancelledError():
                return ServingError(503, "the server is about to end", retry_after=5)
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{type(error).__name__} at {last.filename}:{last.lineno}"
        print(f"request {ident} failed: {place}", file=sys.stderr, flush=True)
        return ServingError(500, f"the server failed ({type(error).__name__}); request {ident}")

    async def _read(self, request: Request) -> None:
        """Reads the body, so that `request.body()` has it."""
        body, size, most = bytearray(), 0, self.limits.body
        said = request.headers.get("content-length", "")
        if said.isdecimal() and int(said) > _PATIENCE * most:
            raise self._too_large()
        try:
            async with asyncio.timeout(self.limits.arrival):
                async for part in request.stream():
                    size += len(part)
                    if size <= most:
                        body += part
                    elif size > _PATIENCE * most:
                        raise self._too_large()
        except TimeoutError:
            raise ServingError(408, f"the request did not arrive within {self.limits.arrival:g} s") from None
        if size > most:
            raise self._too_large()
        request._body = bytes(body)

    def _too_large(self) -> ServingError:
        return ServingError(413, f"a request of more than {self.limits.body} bytes")

    async def _attended(self, request: Request, work: Awaitable[T]) -> T:
        """What work brings; it is given up when the client goes away or time is over."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_goes_away(request))
        try:
            async with asyncio.timeout(self.limits.seconds):
                await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
                if not task.done():
                    raise ClientDisconnect
                return task.result()
        finally:
            for one in (task, gone):
                one.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    def _streamed(
        self, endpoint: str, ident: str, found: Stream, held: contextlib.ExitStack, began: float
    ) -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            status = _GONE
            try:
                async with contextlib.aclosing(found.events) as coming:
                    while True:
                        async with asyncio.timeout(began + self.limits.seconds - time.monotonic()):
                            event = await anext(coming, None)
                        if event is None:
                            break
                        yield f"data: {json.dumps(event, allow_nan=False)}\n\n"
                status = 200
            except Exception as error:
                fault = self._fault(error, ident)
                status = fault.status
                yield f"data: {json.dumps(fault.to_json())}\n\n"
            finally:
                held.close()
                self.metrics.count(endpoint, status, time.monotonic() - began)
            yield "data: [DONE]\n\n"

        headers = {"X-Request-Id": ident, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return _Held(events(), held, media_type="text/event-stream", headers=headers)


class _Held(StreamingResponse):
    """A stream that gives back its room also when the client goes away before it has begun."""

    def __init__(self, content: AsyncIterator[str], held: contextlib.ExitStack, **options: Any):
        super().__init__(content, **options)
        self._events, self._held = content, held

    async def __call__(self, *arguments: Any) -> None:
        try:
            await super().__call__(*arguments)
        except ClientDisconnect:
            pass
        finally:
            await self._events.aclose()  # type: ignore[attr-defined]
            self._held.close()


async def body_of(request: Request) -> JSON:
    """The JSON value of a request's body.

    Raises:
      ServingError: it holds none.
    """
    try:
        return fields.parse(await request.body(), "the body")
    except UserError as error:
        raise ServingError(400, str(error)) from None


def install_errors(app: FastAPI) -> None:
    """Answers requests for what does not exist in the form of all other errors."""

    async def nowhere(request: Request, error: Exception) -> Response:
        known = sorted({path for route in app.routes if "{" not in (path := getattr(route, "path", "{"))})
        return JSONResponse(error_json(404, f"there is nothing at this path; there is {', '.join(known)}"), 404)

    async def otherwise(request: Request, error: Exception) -> Response:
        allowed = getattr(error, "headers", None) or {}
        return JSONResponse(
            error_json(405, f"another method is wanted here: {allowed.get('Allow', 'POST')}"), 405, allowed
        )

    app.add_exception_handler(404, nowhere)
    app.add_exception_handler(405, otherwise)


async def _goes_away(request: Request) -> None:
    """Waits for the end of a connection whose request was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _request_id(request: Request) -> str:
    """The client's own, if it sends one that can be repeated; else a new one."""
    given = request.headers.get("x-request-id", "")
    return given if _ID.fullmatch(given) else uuid.uuid4().hex
