"""Tool calls in text: `NAME with Action Input: {JSON}` on one line, read as data and checked against a signature.

Arguments are read by `json`, else by `ast.literal_eval` (Python spelling: single quotes, None, True); nothing is evaluated. What a
tool is given is data as JSON has it, with finite numbers and at most `_DEPTH` levels: a policy can write anything, and no tool raises
anything but `ToolError`.
"""

import ast
import dataclasses
import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agentrm_jax.text import cut
from agentrm_jax.types import JSON

FINISH, CHECK = "finish", "check_valid_actions"
_DEPTH = 20
_LARGEST = 1e100  # no number of a task comes near it, and those below can be added and multiplied a few times
_SAID = 100  # characters of a name that are repeated to the agent
_REFUSAL = 1000  # characters
_CALL = re.compile(r"\s*[`\"']?(\w+)[`\"']?\s*(?:with\s+action\s+input\s*:?\s*(.*))?", re.I | re.S)


class ToolError(Exception):
    """A call was refused, or found nothing to act on. Its text is shown to the agent behind `ERROR | `."""


def refusal(error: ToolError) -> str:
    """The observation for a refused call, bounded in length whatever of the call it repeats."""
    return cut(f"ERROR | {error}", _REFUSAL)


@dataclasses.dataclass(frozen=True, slots=True)
class Tool:
    """Name, parameters (name to type: string, integer, number, boolean, array, any; `?` behind it: optional), purpose."""

    name: str
    parameters: Mapping[str, str]
    purpose: str

    def signature(self) -> str:
        """`get_tasks(project_id: string)`"""
        shown = [f"{k}{'?' if v.endswith('?') else ''}: {v.rstrip('?')}" for k, v in self.parameters.items()]
        return f"{self.name}({', '.join(shown)})"


def listed(tools: Iterable[Tool]) -> str:
    """One line a tool, for an instruction."""
    return "\n".join(f"- {tool.signature()}: {tool.purpose}" for tool in tools)


def render_call(name: str, /, **arguments: JSON) -> str:
    """The command that `read_call` reads back."""
    return f"{name} with Action Input: {json.dumps(arguments, ensure_ascii=False)}"


def read_call(command: str) -> tuple[str, dict[str, Any]]:
    """(tool name, arguments as written); a call without arguments may end after the name.

    Raises:
      ToolError: the text is no call, or its arguments are no object.
    """
    match = _CALL.fullmatch(command.strip())
    if match is None:
        raise ToolError("Write a call as: tool with Action Input: {...}")
    name, text = match[1], (match[2] or "").strip()
    if not text:
        return name, {}
    value = _data(text)
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ToolError('The action input must be one JSON object, such as {} or {"name": "value"}.')
    return name, value


def _data(text: str) -> Any:
    """The value a text stands for; the text itself if it is neither JSON nor a Python literal, or holds what JSON cannot."""
    for read in (json.loads, _literal):
        try:
            return _plain_data(read(text), _DEPTH)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return text


def _literal(text: str) -> Any:
    with warnings.catch_warnings():  # about spellings of the policy's
        warnings.simplefilter("ignore")
        return ast.literal_eval(text)


def _plain_data(value: Any, depth: int) -> JSON:
    """`value` with lists for tuples. Raises ValueError for what is no JSON, nested too deeply, or no finite number."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float):
        if not abs(value) <= _LARGEST:
            raise ValueError("a number out of range")
        return value
    if depth > 0 and isinstance(value, list | tuple):
        return [_plain_data(item, depth - 1) for item in value]
    if depth > 0 and isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain_data(item, depth - 1) for key, item in value.items()}
    raise ValueError("no data")


def checked(tools: Mapping[str, Tool], name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`arguments` with values of the declared types; text that stands for a number or a list is converted.

    Raises:
      ToolError: unknown tool, missing or unknown argument, or a value that cannot be of the type.
    """
    if name not in tools:
        raise ToolError(f"There is no tool {cut(name, _SAID)}. Tools: {', '.join(tools)}.")
    tool = tools[name]
    extra = [key for key in arguments if key not in tool.parameters]
    missing = [k for k, v in tool.parameters.items() if not v.endswith("?") and k not in arguments]
    if extra or missing:
        wrong = f"has no argument {cut(extra[0], _SAID)}" if extra else f"needs the argument {missing[0]}"
        raise ToolError(f"{name} {wrong}. Use it as {tool.signature()}.")
    values: dict[str, Any] = {}
    for key, value in arguments.items():
        kind = tool.parameters[key]
        if value is None and kind.endswith("?"):
            continue
        values[key] = _converted(value, kind.rstrip("?"), f"{name}: {key}")
    return values


def _converted(value: Any, kind: str, label: str) -> Any:
    if kind in ("array", "boolean") and isinstance(value, str):
        value = _data(value.capitalize() if kind == "boolean" else value)
    if kind == "any":
        return value
    if kind == "string" and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    if kind in ("integer", "number") and isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if abs(number) <= _LARGEST and (kind == "number" or number.is_integer()):
            return int(number) if kind == "integer" else number
    if kind == "array" and isinstance(value, list | tuple):
        return list(value)
    if kind == "boolean" and isinstance(value, bool):
        return value
    raise ToolError(f"{label} must be of type {kind}.")


def same_answer(given: Any, expected: Any) -> bool:
    """Whether two answers mean the same: case, outer blanks, number or text, and the order of a list do not matter."""
    if isinstance(expected, list | tuple) or isinstance(given, list | tuple):
        left, right = _items(given), _items(expected)
        return len(left) == len(right) and sorted(map(_plain, left)) == sorted(map(_plain, right))
    a, b = _plain(given), _plain(expected)
    if a == b:
        return True
    try:
        return abs(float(a) - float(b)) <= 1e-6 * max(1.0, abs(float(b)))
    except ValueError:
        return False


def _items(value: Any) -> Sequence[Any]:
    if isinstance(value, str):
        value = _data(value)
    return value if isinstance(value, list | tuple) else [value]


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value == int(value) and abs(value) < 1e15:
        value = int(value)
    return " ".join(str(value).split()).casefold().rstrip(".")


def shown(value: Any) -> str:
    """A tool's result as the agent reads it: JSON, or plain text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
