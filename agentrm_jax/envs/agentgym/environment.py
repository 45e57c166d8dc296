"""Any environment behind an AgentGym server: WebShop, ALFWorld, ScienceWorld, BabyAI, TextCraft, and whatever else speaks its protocol.

The server runs elsewhere; this is a client. Reward is the server's, clipped to [0, 1] after division by `full_reward`; ScienceWorld's
is the best so far, as in our own `sciworld` (a failure scores -100 there). Progress is the best reward so far. Success is reward 1.
There are no snapshots: earlier states are reached by checked replay on another environment of the server. A server that hangs, drops
the connection, forgets an environment or reports an error makes the pool do that, too.

Options:
  base_url: of the server, with a path where it serves several (`http://127.0.0.1:36001/maze`).
  kind: one of `agentgym.kinds.KINDS`; `custom` for another server, with fields as below.
  indices: tasks of each split, `{"test": "0-99,120", "train": [200, 201]}`; numbers, ranges, or the path of an AgentGym file with
    `item_id`s. Without the split names: tasks of the test split.
  max_steps, full_reward: instead of the kind's.
  env_field, index_field, reward_field: as the server calls them (`agentgym.http.Dialect`).
  rules: text before the first observation, instead of the kind's (the servers themselves tell no commands).
  success_threshold: reward from which on an episode is a success; 1 by default.
  timeout, patience: seconds for a request (20), and for trying again with a server that is not up (yet) or turns requests away (10).

Several servers in one run: write a module with `SPEC = agentgym.served("textcraft", base_url=...)`
and name it by its import path.
"""

import dataclasses
import hashlib
import itertools
import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentrm_jax.envs import indices
from agentrm_jax.envs.agentgym.http import Answer, ConnectionLost, ServerError, Session
from agentrm_jax.envs.agentgym.kinds import KINDS, Kind, sent
from agentrm_jax.envs.spec import EnvSpec, Options, named
from agentrm_jax.types import JSON, EngineStep, Environment, Start, Task, UserError

__all__ = ["SPEC", "AgentGym", "ServerError", "served"]

_OPTIONS = {
    "base_url",
    "kind",
    "indices",
    "max_steps",
    "full_reward",
    "env_field",
    "index_field",
    "reward_field",
    "rules",
}
_OPTIONS |= {"timeout", "patience", "data", "live", "success_threshold", "observation_limit"}
_GOAL = re.compile(
    r"(?:your task is to:?|your goal:|your goal is to|goal:|accomplish the goal:|task description:|instruction:(?: \[SEP\])?)\s*(.+)",
    re.IGNORECASE,
)
_SECOND_PREFIX = re.compile(r"\s*Observation:\s*")

INSTRUCTION = """You act in a text environment. First you are told its commands and what you see, then the answer to each of your \
commands.
Each turn, write one thought and one command:
Thought: <why>
Action: <command>"""
RM_INSTRUCTION = """An agent acts in a text environment, one command a turn, to reach this goal:
{goal}"""


_RESENT = 3  # times
_MOST_KNOWN = 100_000
# Answers of servers to the steps of this process, as hashes, by what led to them.
_known: OrderedDict[bytes, int] = OrderedDict()


class AgentGym:
    """One environment on a server, reset to one task after another."""

    def __init__(self, options: Options):
        if not options.get("base_url"):
            raise UserError("agentgym: option base_url is missing; set it to the address of a server, http://HOST:PORT")
        self.kind = _kind(options)
        self.rules = str(options.get("rules", self.kind.rules))
        self.best = 0.0
        self.path = b""  # stands for task and actions so far
        self.session = Session(
            str(options["base_url"]),
            self.kind.dialect,
            timeout=float(options.get("timeout") or 20.0),
            patience=float(options.get("patience", 10.0)),
        )

    def reset(self, task: Task) -> Start:
        self.best = 0.0
        self.path = hashlib.blake2b(f"{self.session.base_url} {task.args['index']}".encode(), digest_size=16).digest()
        text, goal = self.session.reset(int(task.args["index"]))
        return Start(goal or _goal(self.kind, text), f"{self.rules}\n\n{text}" if self.rules else text)

    def step(self, command: str) -> EngineStep:
        answer = self._sent(sent(self.kind, command))
        reward = max(0.0, answer.reward)
        self.best = max(self.best, reward)
        text = _SECOND_PREFIX.sub("", answer.text, count=1) if answer.text.lstrip().startswith("Obs") else answer.text
        return EngineStep(text, self.best if self.kind.keeps_best else reward, self.best, answer.done)

    def _sent(self, action: str) -> Answer:
        """The server's answer. A lost step whose answer is known from before is sent again, since the answer can be checked."""
        self.path = hashlib.blake2b(self.path + action.encode(), digest_size=16).digest()
        known = _known.get(self.path)
        for tries in itertools.count():
            try:
                answer = self.session.step(action)
                break
            except ConnectionLost:
                if known is None or tries == _RESENT:
                    raise
        digest = hash(answer)
        if tries and digest != known:
            raise ConnectionLost(f"{self.session.base_url}/step: a step whose answer was lost had been executed")
        _known[self.path] = digest
        if len(_known) > _MOST_KNOWN:
            _known.popitem(last=False)
        return answer

    def snapshot(self) -> Any:
        raise NotImplementedError("a server cannot copy a state; replay the commands")

    def restore(self, snapshot: Any) -> None:
        raise NotImplementedError("a server cannot copy a state; replay the commands")

    def close(self) -> None:
        self.session.close()


def make(options: Options) -> Environment:
    return AgentGym(options)


def tasks(split: str, options: Options) -> Sequence[Task]:
    """The tasks that option `indices` names."""
    kind = _kind(options)
    max_steps = int(options.get("max_steps") or kind.max_steps)
    label = options.get("kind", "custom")
    return [
        Task("agentgym", f"{label}-{i}", split, max_steps, {"index": i})
        for i in _indices(options.get("indices"), split)
    ]


def served(kind: str, *, name: str = "", success_threshold: float = 1.0, **options: JSON) -> EnvSpec:
    """The spec of one server under a name of its own.

    Args:
      kind: as the option.
      name: of the environment; the kind with `agentgym_` before it if empty.
      success_threshold: reward from which on an episode is a success.
      options: defaults of the options; what a config says counts more.
    """
    spec = named(SPEC, name or f"agentgym_{kind}", kind=kind, **options)
    return dataclasses.replace(spec, success_threshold=success_threshold)


def _kind(options: Options) -> Kind:
    """The kind that the options name, with the fields they override."""
    if unknown := sorted(set(options) - _OPTIONS):
        raise UserError(f"agentgym: no option {unknown[0]!r}; known: {', '.join(sorted(_OPTIONS))}")
    name = str(options.get("kind") or "")
    if name not in KINDS:
        raise UserError(f"agentgym: option kind must be one of {', '.join(KINDS)}, not {name!r}")
    kind = KINDS[name]
    fields = {f: options[f] for f in ("env_field", "index_field", "reward_field") if f in options}
    if "full_reward" in options:
        fields["full_reward"] = float(options["full_reward"])
        if not fields["full_reward"] > 0:
            raise UserError(f"agentgym: option full_reward must be above 0, not {options['full_reward']!r}")
    return dataclasses.replace(kind, dialect=dataclasses.replace(kind.dialect, **fields))


def _goal(kind: Kind, text: str) -> str:
    """The goal in words, as the first observation says it; all of it if no words for a goal are found."""
    if kind.goal:
        return kind.goal
    found = _GOAL.search(text)
    return found[1].split(" [SEP] ")[0].strip() if found else text.strip()


def _indices(value: JSON, split: str) -> list[int]:
    """Task numbers of a split."""
    named = value.get(split) if isinstance(value, Mapping) else value if split == "test" else None
    if isinstance(named, str) and named.endswith((".json", ".jsonl")):
        try:
            return _item_ids(Path(named).expanduser())
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise UserError(f"agentgym: option indices cannot be read ({e})") from e
    return indices.of_split(value, split, where="agentgym: option indices")


def _item_ids(path: Path) -> list[int]:
    """Task numbers of an AgentGym file: what follows the last `_` of each `item_id`."""
    text = path.read_text()
    rows = (
        [json.loads(line) for line in text.splitlines() if line.strip()]
        if path.suffix == ".jsonl"
        else json.loads(text)
    )
    return list(dict.fromkeys(int(str(row["item_id"]).rpartition("_")[2]) for row in rows))


SPEC = EnvSpec(
    name="agentgym",
    make=make,
    tasks=tasks,
    instruction=INSTRUCTION,
    rm_instruction=RM_INSTRUCTION,
    multiline=True,  # for SQL; commands of other kinds end with their first line
    engine="AgentGym servers over HTTP",
    licence="MIT (servers)",
)
