"""Task panels: which tasks a result is about, in which order, so that results of different tasks are never put into one table."""

import hashlib
import json
from collections.abc import Mapping, Sequence

from agentrm_jax.types import JSON, Task, UserError


def panel_of(tasks: Sequence[Task], options: Mapping[str, JSON]) -> dict[str, JSON]:
    """The panel of a run: `{"hash", "tasks", "split", "environments"}`.

    The hash is of every task in order, with its step limit and arguments, and of the options of its environments: of all that decides
    what a task is. It does not depend on the machine, nor on the order of options.

    Args:
      options: environment name to its options, as the catalogue resolved them.
    """
    environments = list(dict.fromkeys(task.env for task in tasks))
    told = [[task.key, task.split, task.max_steps, dict(task.args)] for task in tasks]
    named = {name: {k: v for k, v in options.get(name, {}).items() if k != "live"} for name in environments}
    text = json.dumps([told, named], sort_keys=True, default=_plain)
    return {
        "hash": hashlib.blake2b(text.encode(), digest_size=6).hexdigest(),
        "tasks": len(tasks),
        "split": ", ".join(dict.fromkeys(task.split for task in tasks)),
        "environments": environments,
    }


def check(results: Mapping[str, Mapping[str, JSON]]) -> None:
    """Makes sure that results are about the same panel; those that say none are taken as they are.

    Args:
      results: name of a row, or of a run, to its result.

    Raises:
      UserError: two of them are about different panels; it names both.
    """
    named = [(name, result["panel"]) for name, result in results.items() if result.get("panel")]
    for name, panel in named[1:]:
        first, other = named[0]
        if panel["hash"] != other["hash"]:
            raise UserError(
                f"{first} is about {_said(other)}, {name} about {_said(panel)}: rows of one table must be about the same tasks; "
                "run one of them with the other's --config.env, or show them apart"
            )


def _said(panel: Mapping[str, JSON]) -> str:
    return f"panel {panel['hash']} ({panel['tasks']} {panel['split']} tasks of {', '.join(panel['environments'])})"


def _plain(value: JSON) -> JSON:
    """Options may be tuples or paths."""
    return list(value) if isinstance(value, (tuple, set, frozenset)) else str(value)
