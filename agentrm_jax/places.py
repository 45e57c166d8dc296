"""What a config may name as a policy or as a reward model, told apart by how it is written.

runs/nano/sft, models/DIR, FILE.gguf, smollm2     a model that runs on our engine
runs/a,runs/b,runs/c                              (a reward model) an ensemble of the reward models at these places
openai:MODEL@URL                                  a model behind a server that speaks OpenAI's protocol
my.module:make                                    a user's own, made by a function of an importable module
implicit:TUNED@BASE                               (a reward model) a policy, compared with the one that it was tuned from
judge:PLACE                                       (a reward model) a policy, at any of the places above, that is asked to judge
"""

import dataclasses
import importlib
import os
import re
import sys
import traceback
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentrm_jax.types import UserError

_MAKER = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")


@dataclasses.dataclass(frozen=True)
class Model:
    """A workdir, a Hugging Face folder, a GGUF file or a preset: what `models.opening` opens."""

    place: str


@dataclasses.dataclass(frozen=True)
class Server:
    """A model, by its name, behind an OpenAI-compatible server; `url` ends in no slash, e.g. `http://127.0.0.1:8000/v1`."""

    model: str
    url: str


@dataclasses.dataclass(frozen=True)
class Maker:
    """A function of a user's module that makes a policy or reward model."""

    module: str
    name: str

    def find(self) -> Callable[..., Any]:
        """The function, looked for where Python looks, and in the folder the program was started in.

        Raises:
          UserError: the module cannot be imported, or has no such function.
        """
        if (here := os.getcwd()) not in sys.path and "" not in sys.path:
            sys.path.append(here)
        try:
            found = getattr(importlib.import_module(self.module), self.name)
        except (Exception, SystemExit) as error:  # a user's module may raise anything
            raise UserError(
                f"{self.module}:{self.name} cannot be imported: {type(error).__name__}: {error}; it is read as "
                f"MODULE:FUNCTION, and looked for in {here} too"
            ) from error
        if not callable(found):
            raise UserError(f"{self.module}:{self.name} is a {type(found).__name__}, not a function that makes one")
        return found

    def make(self, method: str, *arguments: Any) -> Any:
        """What the function makes of `arguments`; it must have the coroutine `method`.

        Raises:
          UserError: the function raised, or made something else.
        """
        function = self.find()
        try:
            made = function(*arguments)
        except UserError:
            raise
        except Exception as error:  # it is the user's code
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{last.filename}, line {last.lineno}"
            raise UserError(f"{self.module}:{self.name} fails: {type(error).__name__}: {error} ({where})") from error
        if not callable(getattr(made, method, None)):
            raise UserError(f"{self.module}:{self.name} made a {type(made).__name__}, which has no method {method}")
        return made


@dataclasses.dataclass(frozen=True)
class Judge:
    """A policy that is asked which of several trajectories is best."""

    policy: Model | Server


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two models of our engine, by their places: a tuned policy and the one it was tuned from."""

    tuned: str
    base: str


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Several reward models that are asked together, by their places."""

    members: tuple[str, ...]


Place = Model | Server | Maker | Judge | Pair | Ensemble


def read(place: str | Path) -> Place:
    """What a config's `policy` or `reward_model` names; nothing is opened.

    Raises:
      UserError: it begins like a server, a judge or a pair and does not go on like one; or an ensemble has a member twice.
    """
    text = str(place)
    if "," in text and not Path(text).exists():
        members = tuple(part.strip() for part in text.split(","))
        if len(set(members)) < len(members) or not all(members):
            raise UserError(f"{text}: write the places of different reward models, with commas between them")
        if any(isinstance(read(member), Judge | Server) for member in members):
            raise UserError(
                f"{text}: an ensemble has reward models of numbers; a judge or a server gives none to be averaged"
            )
        return Ensemble(members)
    kind, colon, rest = text.partition(":")
    if colon and kind == "openai":
        return _server(rest)
    if colon and kind == "judge":
        inner = read(rest) if rest else None
        if not isinstance(inner, Model | Server):
            raise UserError(f"{text}: write judge:PLACE, where PLACE is a workdir, a model folder or openai:MODEL@URL")
        return Judge(inner)
    if colon and kind == "implicit":
        tuned, _, base = rest.rpartition("@")
        if "://" in rest or not all(part and isinstance(read(part), Model) for part in (tuned, base)):
            raise UserError(f"{text}: write implicit:TUNED@BASE, the workdirs or model folders of two policies")
        return Pair(tuned, base)
    maker = _MAKER.fullmatch(text)
    if maker and not Path(text).exists():
        return Maker(*maker.groups())
    return Model(text)


def _server(rest: str) -> Server:
    """The server of `openai:` + rest. Messages do not repeat it: it may hold a key by mistake."""
    found = re.fullmatch(r"(.+?)@(https?://.+)", rest)
    model, url = found.groups() if found else ("", "")
    try:
        parts = urllib.parse.urlsplit(url)
        fine = bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise UserError(
            "write openai:MODEL@URL with the URL that the server's paths follow, such as "
            "openai:Qwen/Qwen3-4B@http://127.0.0.1:8000/v1"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(
            "the URL of openai:MODEL@URL holds a user name, password or query; a key belongs into the environment variable that "
            "--config.server.key_variable names"
        )
    return Server(model, url.rstrip("/"))
