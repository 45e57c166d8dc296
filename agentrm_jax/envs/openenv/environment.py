"""Any environment behind an OpenEnv server: a session is a WebSocket, and what is said on it are a few JSON messages.

The server runs elsewhere (`openenv serve`, a container, or `python -m agentrm_jax.envs serve`); this is a client, and needs no package.
A task is a seed, which goes with `reset`. OpenEnv's rewards belong to single steps: their sum so far, divided by `full_reward` and
clipped to [0, 1], is what the episode is worth; where the server tells the worth itself, `worth_field` names it. Progress is the best
worth so far. There are no snapshots: earlier states are reached by checked replay in a session of their own. A server that hangs,
drops the connection or reports an error costs a replay, too.

Options:
  base_url: of the server, `http://127.0.0.1:8000` or `ws://...`; its session is at `/ws` below.
  seeds: tasks of each split, `{"test": "0-99", "train": 500}`; numbers, ranges or a count. Without split names: of the test split.
  reset: further fields of `reset`, such as `{"split": "test"}` or what the environment takes.
  action_field: the field of an action that holds the command; the only one that the server's schema requires, by default.
  action: further fields of every action.
  text_field: the field of an observation that the agent reads; by default the first of `text`, `observation`, `prompt`, `message`,
    `content`, `result` that is a text, otherwise all fields as JSON.
  goal: what to achieve; the observation's `goal` by default, or the first observation where there is none.
  worth_field: the field of an observation that says what the episode is worth so far; the sum of rewards by default.
  rules: text before the first observation.
  max_steps (30), full_reward (1), timeout (seconds for an answer, 20), patience (seconds to wait for a server that is not up, 10).
"""

import contextlib
import itertools
import json
import math
import time
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from agentrm_jax.envs import indices, websocket
from agentrm_jax.envs.pool.episode import TransientError
from agentrm_jax.envs.spec import EnvSpec, Options, group
from agentrm_jax.types import JSON, EngineStep, Environment, Start, Task, UserError

_OPTIONS = (
    *("base_url", "seeds", "reset", "action_field", "action", "text_field", "goal", "worth_field"),
    *("rules", "max_steps", "full_reward", "timeout", "patience"),
)
_TEXT_FIELDS = ("text", "observation", "prompt", "message", "content", "result")
_LIMIT = 1 << 24  # bytes of an answer
_PAUSE = 0.2  # seconds between tries to reach a server

INSTRUCTION = """You act in a text environment. First you are told its rules and what you see, then the answer to each of your \
commands.
Each turn, write one thought and one command:
Thought: <why>
Action: <command>"""
RM_INSTRUCTION = """An agent acts in a text environment, one command a turn, to reach this goal:
{goal}"""


_reached: set[str] = set()  # servers that have answered this process


class ServerError(Exception):
    """The server reported an error, or answered something that makes no sense."""


class ConnectionLost(ServerError, TransientError):
    """A message got no answer: it may have been executed or not."""


class OpenEnv:
    """One session on a server, reset to one task after another."""

    def __init__(self, options: Options):
        self.options = options
        self.url = _address(options)
        self.timeout = _number(options, "timeout", 20.0)
        self.full_reward = _number(options, "full_reward", 1.0)
        self._talk: websocket.WebSocket | None = None
        self.field = str(options.get("action_field") or self._required_field())
        self.total = self.best = 0.0

    def reset(self, task: Task) -> Start:
        self.close()
        self._connect()
        self.total = self.best = 0.0
        data = self._ask("reset", {"seed": task.args["seed"], **group(self.options, "reset", env="openenv")})
        observation = data["observation"]
        text = self._text(observation)
        goal = self.options.get("goal") or observation.get("goal")
        rules = self.options.get("rules")
        return Start(goal if isinstance(goal, str) else text, f"{rules}\n\n{text}" if rules else text)

    def step(self, command: str) -> EngineStep:
        data = self._ask("step", {**group(self.options, "action", env="openenv"), self.field: command})
        worth = self._worth(data)
        self.best = max(self.best, worth)
        over = data.get("done")
        if not isinstance(over, bool):
            raise ServerError(f"{self.url} does not say whether it is done: {_short(data)}")
        return EngineStep(self._text(data["observation"]), worth, self.best, over)

    def snapshot(self) -> Any:
        raise NotImplementedError("a server cannot copy a state; replay the commands")

    def restore(self, snapshot: Any) -> None:
        raise NotImplementedError("a server cannot copy a state; replay the commands")

    def close(self) -> None:
        if self._talk is not None:
            with contextlib.suppress(websocket.WebSocketError, TimeoutError):
                self._talk.send(json.dumps({"type": "close"}))
            self._drop()

    # The wire

    def _connect(self) -> None:
        """Opens the session, trying for `patience` seconds where nobody answers."""
        end = time.monotonic() + _number(self.options, "patience", 10.0, zero=True)
        for tries in itertools.count(1):
            try:
                self._talk = websocket.connect(f"{self.url}/ws", timeout=self.timeout, limit=_LIMIT)
                _reached.add(self.url)
                return
            except (websocket.WebSocketError, TimeoutError) as error:
                if time.monotonic() >= end:
                    if self.url in _reached:
                        raise ConnectionLost(f"{error} ({tries} tries)") from error
                    raise UserError(
                        f"{error}; start the OpenEnv server, or correct option base_url of openenv"
                    ) from error
                time.sleep(_PAUSE)

    def _ask(self, kind: str, data: JSON) -> dict[str, JSON]:
        """The observation that answers a message; the session ends with any error."""
        if self._talk is None:
            raise ConnectionLost(f"{self.url}: the session was lost")
        end = time.monotonic() + self.timeout
        try:
            self._talk.sock.settimeout(self.timeout)
            self._talk.send(json.dumps({"type": kind, "data": data}))
            text = self._talk.receive()
            if time.monotonic() > end:  # it kept the connection alive, byte by byte
                raise TimeoutError
            answer = None if text is None else json.loads(text)
        except TimeoutError as error:
            self._drop()
            raise ConnectionLost(f"{self.url}: no answer to {kind} within {self.timeout:g} s") from error
        except websocket.WebSocketError as error:
            self._drop()
            raise ConnectionLost(f"{self.url}: {kind}: {error}") from error
        except (ValueError, RecursionError) as error:
            self._drop()
            raise ServerError(f"{self.url} answers {kind} with {_short(text)}, which is not JSON") from error
        found = answer.get("data") if isinstance(answer, dict) else None
        if isinstance(answer, dict) and answer.get("type") == "error" and isinstance(found, dict):
            self._drop()
            raise ServerError(f"{self.url} reports an error: {_short(found.get('message', found))}")
        if not isinstance(found, dict) or not isinstance(found.get("observation"), dict):
            self._drop()
            raise ServerError(f"{self.url} answers {kind} with {_short(answer)}, which holds no observation")
        return found

    def _drop(self) -> None:
        if self._talk is not None:
            self._talk.close()
            self._talk.drop()
            self._talk = None

    def _required_field(self) -> str:
        """The one field that the schema of an action requires. Raises UserError where that does not say which it is."""
        self._connect()  # waits for the server
        self._drop()
        url = self.url.replace("ws", "http", 1) + "/schema"
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=self.timeout) as answer:
                schema = json.loads(answer.read(_LIMIT))["action"]
            fields = list(schema.get("properties", ()))
            required = [f for f in schema.get("required", ()) if f not in group(self.options, "action", env="openenv")]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{url} does not tell what an action is ({error}); set option action_field") from error
        if len(required) != 1:
            known = ", ".join(map(str, fields))
            raise UserError(f"openenv: an action has the fields {known}; set option action_field to the command's")
        return str(required[0])

    # What answers mean

    def _text(self, observation: Mapping[str, JSON]) -> str:
        field = self.options.get("text_field")
        if field:
            text = observation.get(str(field))
            if not isinstance(text, str):
                known = ", ".join(observation)
                raise UserError(f"openenv: option text_field={field}: no text of that name among {known}")
            return text
        texts = [observation[f] for f in _TEXT_FIELDS if isinstance(observation.get(f), str)]
        shown = {k: v for k, v in observation.items() if k != "metadata" or v}
        return texts[0] if texts else json.dumps(shown, ensure_ascii=False)

    def _worth(self, data: Mapping[str, JSON]) -> float:
        field = self.options.get("worth_field")
        value = data["observation"].get(field) if field else data.get("reward")
        if value is None and not field:  # a step may have no reward
            value = 0.0
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ServerError(f"{self.url} gave no number as {field or 'reward'}: {_short(value)}")
        self.total = float(value) if field else self.total + float(value)
        worth = self.total / self.full_reward
        if worth > 1 + 1e-6:
            raise UserError(
                f"{self.url} gave rewards of {self.total:g} in all, above {self.full_reward:g}; set option full_reward of openenv"
            )
        return min(1.0, max(0.0, worth))


def _address(options: Options) -> str:
    """Address of the server for a WebSocket, without `/ws`."""
    url = str(options.get("base_url") or "").rstrip("/")
    scheme, there, rest = url.partition("://")
    if not there or scheme not in ("http", "https", "ws", "wss") or not rest:
        raise UserError(f"openenv: option base_url must look like http://127.0.0.1:8000, not {url!r}")
    return f"{scheme.replace('http', 'ws')}://{rest.removesuffix('/ws')}"


def _number(options: Options, name: str, default: float, *, zero: bool = False) -> float:
    value = options.get(name, default)
    there = (
        isinstance(value, int | float) and not isinstance(value, bool) and (0 < value < 1e9 or (zero and value == 0))
    )
    if not there:
        raise UserError(
            f"openenv: option {name} must be a number {'of at least' if zero else 'above'} 0, not {value!r}"
        )
    return float(value)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return " ".join(text[:300].split())


def make(options: Options) -> Environment:
    return OpenEnv(options)


def tasks(split: str, options: Options) -> Sequence[Task]:
    """The seeds that option `seeds` names."""
    limit = int(_number(options, "max_steps", 30))
    seeds = indices.of_split(options.get("seeds"), split, where="openenv: option seeds")
    return [Task("openenv", f"seed-{seed}", split, limit, {"seed": seed}) for seed in seeds]


SPEC = EnvSpec(
    name="openenv",
    make=make,
    tasks=tasks,
    instruction=INSTRUCTION,
    rm_instruction=RM_INSTRUCTION,
    multiline=True,  # an action may be code
    options=_OPTIONS,
    engine="OpenEnv servers over WebSocket",
    licence="BSD-3-Clause (servers)",
)
