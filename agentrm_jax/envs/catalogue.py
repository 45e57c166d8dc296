"""The catalogue of environments: those that ship with the package by name, users' own by import path, keyed by `SPEC.name`.

A main resolves its catalogue once, from `config.env`; prompts, command reader, worker pool, records and reports take an environment's
spec, options and texts from it.
"""

import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentrm_jax.envs.official_prompts import with_prompts
from agentrm_jax.envs.spec import EnvSpec, Options
from agentrm_jax.types import Task, UserError

# Name -> the module that defines its SPEC.
SHIPPED: Mapping[str, str] = {
    "agentgym": "agentrm_jax.envs.agentgym.environment",
    "alfworld": "agentrm_jax.envs.alfworld.environment",
    "babyai": "agentrm_jax.envs.babyai.environment",
    "jericho": "agentrm_jax.envs.jericho.environment",
    "maze": "agentrm_jax.envs.maze.environment",
    "openenv": "agentrm_jax.envs.openenv.environment",
    "pddl": "agentrm_jax.envs.pddl.environment",
    "sciworld": "agentrm_jax.envs.sciworld.environment",
    "textarena": "agentrm_jax.envs.textarena.environment",
    "tool_operation": "agentrm_jax.envs.tool.operation",
    "tool_query": "agentrm_jax.envs.tool.query",
    "verifiers": "agentrm_jax.envs.verifiers.environment",
    "webshop": "agentrm_jax.envs.webshop.environment",
}


def names() -> list[str]:
    """Names of the environments that ship with the package, sorted."""
    return sorted(SHIPPED)


def find(place: str) -> EnvSpec:
    """The spec of a shipped environment, by its name, or of a user's module, by its import path.

    `my.module` is its `SPEC`; `my.module:games` is what it calls `games`: a spec, or a function that makes one without being told
    anything. A module is looked for where Python looks, and in the folder the program was started in.

    Raises:
      UserError: there is no such environment (the closest names are given), or the module defines no spec there.
    """
    if place in SHIPPED:
        return importlib.import_module(SHIPPED[place]).SPEC
    here = look_here()
    path, _, attribute = place.partition(":")
    if "." not in path and not _is_module(path):
        close = difflib.get_close_matches(place, names(), 3, 0.4)
        known = f"known: {', '.join(names())}, or a module {path}.py of your own in {here}"
        hint = f"did you mean {' or '.join(close)}?" if close else known
        raise UserError(f"no environment named {place!r}; {hint}")
    try:
        spec = getattr(importlib.import_module(path), attribute or "SPEC")
        if attribute and not isinstance(spec, EnvSpec) and callable(spec):
            spec = spec()
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise UserError(
            f"environment module {place!r} cannot be imported or has no {attribute or 'SPEC'}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(spec, EnvSpec):
        raise UserError(
            f"{attribute or 'SPEC'} of environment module {place!r} is a {type(spec).__name__}, not an EnvSpec"
        )
    for field in ("name", "instruction", "rm_instruction"):
        if not isinstance(text := getattr(spec, field), str):
            raise UserError(f"{field} of environment module {place!r} is a {type(text).__name__}, not a text")
    return spec


def look_here() -> str:
    """Lets modules of the folder that the program was started in be imported; that folder."""
    if (here := os.getcwd()) not in sys.path and "" not in sys.path:
        sys.path.append(here)
    return here


def _is_module(name: str) -> bool:
    try:
        return name.isidentifier() and importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


@dataclasses.dataclass(frozen=True)
class Entry:
    """One environment of a run.

    Attributes:
      place: what names it in a config: the name of a shipped environment, or a module's import path.
      spec: its spec, with the texts that this run uses.
      options: as its module takes them.
    """

    place: str
    spec: EnvSpec
    options: Options


@dataclasses.dataclass(frozen=True)
class Catalogue(Mapping[str, Entry]):
    """`SPEC.name` (which is `Task.env`) -> `Entry`, in the order of the config."""

    entries: Mapping[str, Entry]

    def __getitem__(self, name: str) -> Entry:
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def specs(self) -> dict[str, EnvSpec]:
        """Name -> spec."""
        return {name: entry.spec for name, entry in self.entries.items()}

    @property
    def pool_options(self) -> dict[str, Options]:
        """Place -> options, as `EnvironmentPool` takes them."""
        return {entry.place: entry.options for entry in self.entries.values()}


def resolve(env: Any) -> Catalogue:
    """The catalogue of a config's `env` group: `names`, `options`, `data` and `prompts`.

    The options of an environment stand under its name (`env.options.maze.sizes`), those of a user's module also under its import
    path; its own `data` counts more than that of all.

    Raises:
      UserError: an environment does not exist, is named twice, or does not know one of its options; options name no
        environment; or the folder of data does not exist.
    """
    entries: dict[str, Entry] = {}
    prompts, data = env.get("prompts", ""), env.get("data", "")
    if data and not Path(data).is_dir():
        raise UserError(f"config.env.data={data}: there is no such folder")
    for place in env.names:
        spec = find(place)
        if spec.name in entries:
            raise UserError(f"config.env.names has {spec.name} twice ({entries[spec.name].place} and {place})")
        own = {**_below(env.options, _keys(place)), **_below(env.options, [spec.name])}
        options = ({"data": data} if data else {}) | own
        spec.check(options)
        entries[spec.name] = Entry(place, with_prompts(spec.at_threshold(options), prompts, options), options)
    # Configs bring options of shipped environments that a run need not use; any other name is a mistake.
    known = {*SHIPPED, *entries, *(_keys(entry.place)[0] for entry in entries.values())}
    for name in env.options:
        if name not in known:
            raise UserError(
                f"config.env.options.{name}: this run has no environment {name!r}; it has {', '.join(entries)}"
            )
    return Catalogue(entries)


def _keys(place: str) -> list[str]:
    """Where a config's options of an environment stand: `my.module:games` is `options.my.module`."""
    return place.partition(":")[0].split(".")


def _below(options: Any, path: Sequence[str]) -> dict[str, Any]:
    """The options under a path of keys (`my.module` is `options.my.module`); empty where there are none."""
    for part in path:
        options = options.get(part, {}) if isinstance(options, Mapping) or hasattr(options, "get") else {}
    return {key: _plain(value) for key, value in options.items()} if hasattr(options, "items") else {}


def _plain(value: Any) -> Any:
    """A value of a config as environments know it: groups are dicts."""
    return {key: _plain(below) for key, below in value.items()} if hasattr(value, "items") else value


def tasks(env: Any, entry: Entry) -> list[Task]:
    """The tasks that a config's `env` group names of one environment: `count` from `start` on, in an order that is the same for
    everyone.

    Raises:
      UserError: there are no tasks in this split, two have one id, they carry another name than their environment, or a user's
        module could not list them.
    """
    name = entry.spec.name
    every = listed(entry.place, entry.spec, env.split, entry.options)
    if wrong := next((t for t in every if t.env != name), None):
        raise UserError(
            f"task {wrong.id} of {entry.place} says env={wrong.env!r}; it must be the SPEC's name, {name!r}"
        )
    if double := next((key for key, n in Counter(t.id for t in every).items() if n > 1), None):
        raise UserError(f"two tasks of {entry.place} have the id {double!r} in split {env.split!r}; give each its own")
    order = sorted(every, key=lambda t: hashlib.blake2b(t.key.encode(), digest_size=8).digest())
    chosen = order[env.start : env.start + env.count]
    if not chosen:
        raise UserError(f"{name} has {len(every)} tasks in split {env.split!r}, none from number {env.start} on")
    return chosen


def listed(place: str, spec: EnvSpec, split: str, options: Options) -> Sequence[Task]:
    """All tasks of a split of the environment at `place`.

    Raises:
      UserError: a user's module raised, or gave something else than tasks.
    """
    if place in SHIPPED:
        return spec.tasks(split, options)
    try:
        found = list(spec.tasks(split, options))
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{last.filename}, line {last.lineno}"
        raise UserError(f"{place} could not list its tasks: {type(error).__name__}: {error} ({where})") from error
    for task in found:
        if not isinstance(task, Task):
            raise UserError(f"{place} lists a {type(task).__name__} among its tasks; each must be a Task")
        if task.max_steps < 1:
            raise UserError(f"task {task.id} of {place} has max_steps={task.max_steps}; it must be at least 1")
    return found
