"""The environments there are: those that ship with the package by name, and users' own by import path."""

import difflib
import importlib
from collections.abc import Mapping

from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.types import UserError

# Name -> the module that defines its SPEC.
SHIPPED: Mapping[str, str] = {
    "agentgym": "agentrm_jax.envs.agentgym.environment",
    "alfworld": "agentrm_jax.envs.alfworld.environment",
    "babyai": "agentrm_jax.envs.babyai.environment",
    "jericho": "agentrm_jax.envs.jericho.environment",
    "maze": "agentrm_jax.envs.maze.environment",
    "pddl": "agentrm_jax.envs.pddl.environment",
    "sciworld": "agentrm_jax.envs.sciworld.environment",
    "tool_operation": "agentrm_jax.envs.tool.operation",
    "tool_query": "agentrm_jax.envs.tool.query",
    "webshop": "agentrm_jax.envs.webshop.environment",
}


def names() -> list[str]:
    """Names of the environments that ship with the package, sorted."""
    return sorted(SHIPPED)


def find(name: str) -> EnvSpec:
    """The spec of environment `name`; `package.module` paths load an environment of the user's own.

    Raises:
      UserError: no such environment; names the closest ones.
    """
    if "." in name:
        try:
            return importlib.import_module(name).SPEC
        except (ImportError, AttributeError) as e:
            raise UserError(f"environment module {name!r} cannot be imported or has no SPEC: {e}") from e
    if name not in SHIPPED:
        close = difflib.get_close_matches(name, names(), 3, 0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names())}"
        raise UserError(f"no environment named {name!r}; {hint}")
    return importlib.import_module(SHIPPED[name]).SPEC
