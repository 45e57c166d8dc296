"""The HTTP side of AgentGym's environment servers: one `Session` is one environment on a server, from create to close.

The servers agree on the paths (create, reset, step, observation, close) and on little else; `Dialect` says where one differs. They
report errors with status 200 and `{"error": ...}`, and one that is full may hand out an environment that somebody else is using.

What a bad network costs. A request that nobody accepted, or that was turned away, is sent again with growing pauses for as long as
`patience` says; so is one that may have been seen, if a second one does no harm (all but steps). A step that may have been seen is not
sent again, since it might be executed twice: it raises `ConnectionLost`, and the pool makes a new session and replays the episode
there. Steps of a replay are sent again, because their answers are known: one that was executed twice would be noticed.
"""

import contextlib
import dataclasses
import http.client
import json
import math
import random
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

from agentrm_jax.envs.pool.episode import TransientError
from agentrm_jax.types import JSON, UserError

_MAX_BYTES = 1 << 24
_WRONG_ADDRESS = (404, 405, 422)  # no such path, or fields it does not expect
_BUSY = (429, 503)  # turned away before anything was done
_PAUSE, _LONGEST_PAUSE = (
    0.1,
    2.0,
)  # seconds before the second try; twice as long before each further one, up to the longest
_CLOSE_TIMEOUT = 2.0


class ServerError(Exception):
    """A server lost the environment, reported an error, or answered something that makes no sense."""


class ConnectionLost(ServerError, TransientError):
    """A request got no answer, or the answer of a server that is not well (5xx): it may have been executed or not."""


class Unreachable(ConnectionLost):
    """Nothing accepted the connection, or the request was turned away, so nothing was done."""


@dataclasses.dataclass(frozen=True, slots=True)
class Dialect:
    """How one kind of server spells the protocol.

    Attributes:
      env_field: what step, reset and observation call the environment's id.
      index_field: what reset calls the task's index.
      reset_fields: what reset wants besides.
      reward_field: where the reward of a step is found.
      full_reward: the reward that counts as 1.
    """

    env_field: str = "id"
    index_field: str = "data_idx"
    reset_fields: Mapping[str, JSON] = dataclasses.field(default_factory=dict)
    reward_field: str = "reward"
    full_reward: float = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What a server said to a step: its text, the reward in units of the full one, at most 1 (below 0 possible), the end."""

    text: str
    reward: float
    done: bool


class Session:
    """One environment on a server.

    Args:
      timeout: seconds a request may take.
      patience: seconds in which a request is sent again if the server does not accept connections or turns requests away.

    Raises:
      UserError: there is no such server at `base_url`, and this process never reached one there.
      ServerError: it made no environment, or one that is already in use.
    """

    def __init__(self, base_url: str, dialect: Dialect, *, timeout: float, patience: float):
        self.base_url, self.dialect, self.timeout, self.patience = base_url.rstrip("/"), dialect, timeout, patience
        self.id: JSON = None
        self._since, self._replaced = time.monotonic(), False
        taken = self._environments()
        # AgentGym's tool servers want an index to create with; the others ignore it
        answer = self._call("/create", {"id": 0})
        made = answer if not isinstance(answer, dict) else answer.get("id", answer.get("env_idx"))
        if isinstance(made, bool) or not isinstance(made, int | str):
            raise ServerError(f"{self.base_url}/create answered {_short(answer)}, which holds no id")
        holder = _held.get((self.base_url, made))
        if holder is not None and made not in taken and _lost_at.get(self.base_url, -math.inf) > holder._since:
            holder._replaced = True  # the server was away since, has started anew, and counts from the beginning
        elif holder is not None or made in taken:
            raise ServerError(
                f"{self.base_url} handed out environment {made}, which is already in use: it is full, restart it or use fewer engines"
            )
        self.id = made
        _held[self.base_url, made] = self

    def reset(self, index: int) -> tuple[str, str]:
        """Starts task number `index`: the first observation, and the goal where the server tells it apart ("" otherwise).

        A description of the task, which some servers give besides, comes before the observation.
        """
        fields = {self.dialect.env_field: self.id, **self.dialect.reset_fields, self.dialect.index_field: index}
        answer = self._call("/reset", fields)
        if isinstance(answer, dict):
            named = answer.get("env_idx", answer.get("id"))
            if isinstance(named, type(self.id)) and named not in (self.id, index):
                raise ServerError(f"{self.base_url}/reset answered for environment {named} instead of {self.id}")
        text = _text(answer)
        if text is None:
            query = urllib.parse.urlencode({self.dialect.env_field: self.id})
            observed = self._call(f"/observation?{query}", None)
            text = _text(observed)
            if text is None:
                raise ServerError(f"{self.base_url}/observation answered {_short(observed)}, which holds no text")
        fields = answer if isinstance(answer, dict) else {}
        goal, first = fields.get("goal"), fields.get("first_observation")  # ours tells them apart
        if isinstance(goal, str) and isinstance(first, str):
            return first, goal
        description = fields.get("task_description")
        return f"{description}\n{text}" if isinstance(description, str) and description not in text else text, ""

    def step(self, action: str) -> Answer:
        """Executes `action`."""
        answer = self._call("/step", {self.dialect.env_field: self.id, "action": action})
        text = _text(answer)
        if not isinstance(answer, dict) or text is None:
            raise ServerError(f"{self.base_url}/step answered {_short(answer)}, which holds no observation")
        ends = [answer[key] for key in ("done", "terminated", "truncated") if key in answer]
        if not ends or not all(isinstance(end, bool | int) for end in ends):
            raise ServerError(f"{self.base_url}/step answered {_short(answer)}, which does not say whether it is done")
        return Answer(text, self._reward(answer), any(ends))

    def close(self) -> None:
        """Gives the environment back, if the server knows how to take it."""
        if self.id is None or self._replaced:
            return
        _held.pop((self.base_url, self.id), None)
        with contextlib.suppress(ServerError, UserError):
            _request(self.base_url, "/close", {self.dialect.env_field: self.id}, _CLOSE_TIMEOUT, 0.0)
        self.id = None

    def _reward(self, answer: Mapping[str, JSON]) -> float:
        value = answer.get(self.dialect.reward_field)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ServerError(
                f"{self.base_url}/step answered {_short(answer)}: no number under {self.dialect.reward_field!r}"
            )
        if value > self.dialect.full_reward * (1 + 1e-6):
            raise UserError(
                f"{self.base_url} gave a reward of {value:g}, above {self.dialect.full_reward:g}; "
                "set option full_reward of agentgym to its highest reward"
            )
        return value / self.dialect.full_reward

    def _call(self, path: str, body: JSON) -> JSON:
        if self._replaced:
            raise ConnectionLost(f"{self.base_url} was started anew and lost environment {self.id}")
        answer = _request(self.base_url, path, body, self.timeout, self.patience)
        if isinstance(answer, dict) and answer.get("error"):
            raise ServerError(f"{self.base_url}{path.partition('?')[0]} reports an error: {_short(answer['error'])}")
        return answer

    def _environments(self) -> list[JSON]:
        """Ids that exist on the server, where it tells (WebShop and the tool servers do)."""
        try:
            answer = _request(self.base_url, "/list_envs", None, self.timeout, self.patience)
            return answer if isinstance(answer, list) else []
        except Unreachable as e:
            if self.base_url in _reached:
                raise
            raise UserError(
                f"{e}; start the AgentGym server, or correct option base_url of agentgym ({self.base_url})"
            ) from e
        except (UserError, ServerError):  # most servers have no such path
            return []


_held: dict[tuple[str, JSON], Session] = {}  # by server and id, the sessions of this process
_reached: set[str] = set()  # servers that have answered this process
_lost_at: dict[str, float] = {}  # when a server last did not answer


def _request(base_url: str, path: str, body: JSON, timeout: float, patience: float) -> JSON:
    """What the server answers, as JSON; a GET if `body` is None. No proxies, no redirects.

    Raises:
      Unreachable: not executed; a server that is busy is tried for `timeout` seconds.
      ConnectionLost: no answer, or nobody there: at once where an environment is named, else after `patience` seconds of trying.
      ServerError: the answer makes no sense.
      UserError: the address is wrong.
    """
    begin, tries = time.monotonic(), 0
    while True:
        try:
            answer = _once(base_url, path, body, timeout)
            _reached.add(base_url)
            return answer
        except ConnectionLost as e:
            _lost_at[base_url] = time.monotonic()
            limit = max(patience, timeout) if isinstance(e, _TurnedAway) else patience
            # A server that was away may have started anew and given this environment's id to another process.
            named = path.startswith(("/step", "/reset", "/observation"))
            repeatable = isinstance(e, _TurnedAway) or not named
            pause = min(_LONGEST_PAUSE, _PAUSE * 2**tries) * random.uniform(0.5, 1.0)
            tries += 1
            left = begin + limit - time.monotonic()
            if not repeatable or left <= 0:
                if tries > 1:
                    raise type(e)(f"{e}, {tries} times within {time.monotonic() - begin:.1f} s") from e
                raise
        time.sleep(min(pause, left))


class _TurnedAway(Unreachable):
    """The server is up and too busy."""


def _once(base_url: str, path: str, body: JSON, timeout: float) -> JSON:
    url = urllib.parse.urlsplit(base_url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UserError(f"option base_url of agentgym must look like http://127.0.0.1:36001, not {base_url!r}")
    make = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    payload = None if body is None else json.dumps(body).encode()
    connection = make(url.hostname, url.port, timeout=timeout)
    with contextlib.closing(connection):
        try:
            connection.connect()
        except OSError as e:
            raise Unreachable(f"{base_url} cannot be reached: {e}") from e
        try:
            method = "GET" if body is None else "POST"
            connection.request(method, url.path + path, payload, {"Content-Type": "application/json"})
            response = connection.getresponse()
            status, data = response.status, response.read(_MAX_BYTES)
        except TimeoutError as e:
            raise ConnectionLost(f"{base_url}{path}: no answer within {timeout:g} s") from e
        except (OSError, http.client.HTTPException) as e:
            raise ConnectionLost(f"{base_url}{path}: the connection was lost: {e!r}") from e
    return _content(f"{base_url}{path}", status, data)


def _content(where: str, status: int, data: bytes) -> JSON:
    text = data.decode(errors="replace")
    if status in _WRONG_ADDRESS:
        raise UserError(f"{where} answers {status} ({_short(text)}); check the options base_url and kind of agentgym")
    if status in _BUSY:
        raise _TurnedAway(f"{where} answers {status}: {_short(text)}")
    if status >= 500:
        raise ConnectionLost(f"{where} answers {status}: {_short(text)}")
    if status != 200:
        raise ServerError(f"{where} answers {status}: {_short(text)}")
    try:
        return json.loads(text)
    except ValueError as e:
        raise ServerError(f"{where} answers {_short(text)}, which is not JSON") from e


def _text(answer: JSON) -> str | None:
    """The observation: the answer itself, the first of a list, or what is called observation or state."""
    if isinstance(answer, list) and answer:
        answer = answer[0]
    if isinstance(answer, dict):
        answer = answer.get("observation", answer.get("state"))
    return answer if isinstance(answer, str) else None


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return " ".join(text[:300].split())
