"""Values of JSON that came from outside: each is what it should be, or one line says where it is not.

    row = record(parse(line, origin), origin, "tree record")
    goal = text(row, "goal")
    for node in objects(row, "nodes"):
        reward = number(node, "reward", 0, 1)

A reader gets the value, or the user one line:

    trees.jsonl, line 3: nodes[4].reward is 7; expected a number from 0 to 1
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agentrm_jax.text import REPLACEMENT, clean
from agentrm_jax.types import JSON, UserError

DEEPEST = 64  # levels of values that we keep without knowing what they mean
_SURROGATE = re.compile("[\ud800-\udfff]")
_REQUIRED: Any = object()


@dataclasses.dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object and where it stands.

    Attributes:
      values: the object itself.
      origin: file and line, with which every message begins.
      kind: what the whole row is, e.g. `tree record`.
      path: what leads to the object within its row, e.g. `nodes[4].`; empty for the row itself.
    """

    values: Mapping[str, JSON]
    origin: str
    kind: str
    path: str = ""

    def error(self, name: str, expected: str) -> UserError:
        """What is wrong with the value of `name`."""
        return UserError(f"{self.origin}: {self.path}{name} is {shown(self.values.get(name))}; expected {expected}")


def parse(line: str | bytes, origin: str) -> JSON:
    """The JSON value of a text; NaN and infinities pass as Python writes them, and are refused where a number is read.

    Raises:
      UserError: it is no JSON, no UTF-8, or nested too deeply.
    """
    try:
        return json.loads(line if isinstance(line, str) else line.decode())
    except RecursionError:
        raise UserError(f"{origin}: not JSON that can be read (it is nested too deeply)") from None
    except ValueError as error:
        raise UserError(f"{origin}: not JSON ({error})") from error


def record(value: JSON, origin: str, kind: str) -> Fields:
    """A whole row. Raises: UserError: it is no JSON object."""
    if not isinstance(value, dict):
        raise UserError(f"{origin}: a row is a JSON object, not {type(value).__name__}")
    return Fields(value, origin, kind)


def text(row: Fields, name: str, *, default: str = _REQUIRED, verbatim: bool = False) -> str:
    """Valid text without control characters. `verbatim` keeps those: for names, and for what must equal its token ids."""
    value = _value(row, name, "text", default)
    if not isinstance(value, str):
        raise row.error(name, "text")
    return _SURROGATE.sub(REPLACEMENT, value) if verbatim else clean(value)


def choice(row: Fields, name: str, among: Sequence[str], *, default: str = _REQUIRED) -> str:
    """One of several words."""
    value = _value(row, name, expected := " or ".join(among), default)
    if not isinstance(value, str) or value not in among:
        raise row.error(name, expected)
    return value


def flag(row: Fields, name: str, *, default: bool = _REQUIRED) -> bool:
    """True or false."""
    value = _value(row, name, "true or false", default)
    if not isinstance(value, bool):
        raise row.error(name, "true or false")
    return value


def number(
    row: Fields, name: str, low: float = -math.inf, high: float = math.inf, *, default: float = _REQUIRED
) -> float:
    """A finite number in [low, high]."""
    value = _value(row, name, expected := "a number" + _range(low, high), default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise row.error(name, expected)
    if not low <= value <= high:
        raise row.error(name, expected)
    return float(value)


def whole(row: Fields, name: str, low: float = -(2**63), high: float = 2**63 - 1, *, default: int = _REQUIRED) -> int:
    """A whole number in [low, high], by default one of 64 bits."""
    value = _value(row, name, expected := "a whole number" + _range(low, high), default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise row.error(name, expected)
    return value


def items(row: Fields, name: str, *, default: Sequence[JSON] = _REQUIRED) -> Sequence[JSON]:
    """A list of anything."""
    value = _value(row, name, "a list", default)
    if not isinstance(value, list | tuple):
        raise row.error(name, "a list")
    return value


def inner(row: Fields, name: str) -> Fields:
    """The object at `name`."""
    value = _value(row, name, "an object", _REQUIRED)
    if not isinstance(value, dict):
        raise row.error(name, "an object")
    return dataclasses.replace(row, values=value, path=f"{row.path}{name}.")


def objects(row: Fields, name: str) -> list[Fields]:
    """The objects of the list at `name`."""
    found = []
    for i, value in enumerate(items(row, name)):
        if not isinstance(value, dict):
            raise UserError(f"{row.origin}: {row.path}{name}[{i}] is {shown(value)}; expected an object")
        found.append(Fields(value, row.origin, row.kind, f"{row.path}{name}[{i}]."))
    return found


def anything(row: Fields, name: str, *, default: Mapping[str, JSON] = _REQUIRED) -> dict[str, JSON]:
    """An object whose content is kept as it is; it must only be JSON that can be written again."""
    value = _value(row, name, "an object", default)
    if not isinstance(value, dict):
        raise row.error(name, "an object")
    if fault := unwritable(value):
        raise UserError(f"{row.origin}: {row.path}{name} {fault}")
    return value


def unwritable(value: JSON) -> str:
    """Why a JSON value cannot be written again as strict JSON; empty if it can."""
    if too_deep(value):
        return f"is nested deeper than {DEEPEST} levels"
    if isinstance(value, float) and not math.isfinite(value):
        return f"holds {value}, which is no JSON number"
    if not isinstance(value, dict | list):
        return ""
    return next((fault for one in _members(value) if (fault := unwritable(one))), "")


def too_deep(value: JSON, levels: int = DEEPEST) -> bool:
    """Whether a JSON value is nested deeper than that many levels."""
    if not isinstance(value, dict | list):
        return False
    return not levels or any(too_deep(one, levels - 1) for one in _members(value))


def shown(value: JSON) -> str:
    """A value as a message shows it: on one line, and short."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, str):
        return json.dumps(value[:40]) + ("..." if len(value) > 40 else "")
    line = json.dumps(value)
    return line if len(line) <= 40 else line[:40] + "..."


def _value(row: Fields, name: str, expected: str, default: Any) -> Any:
    value = row.values.get(name, default)
    if value is _REQUIRED:
        raise UserError(f"{row.origin}: not a complete {row.kind} without {row.path}{name}; expected {expected}")
    return value


def _members(value: dict[str, JSON] | list[JSON]) -> Iterable[JSON]:
    return value.values() if isinstance(value, dict) else value


def _range(low: float, high: float) -> str:
    if math.isinf(low) and math.isinf(high):
        return ""
    if low == -(2**63) and high == 2**63 - 1:
        return " of 64 bits"
    if low == high:
        return f" equal to {low:g}"
    return f" from {low:g} on" if high > 1e18 else f" from {low:g} to {high:g}"


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond every float
        return False
