"""What readers of rows have in common: the shape of what they find, texts and messages as sides of a conversation, numbers."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from agentrm_jax.data import fields
from agentrm_jax.data.messages import context, read_messages
from agentrm_jax.text import clean
from agentrm_jax.types import JSON, Message, UserError

Row = Mapping[str, JSON]
Messages = tuple[Message, ...]

# One line that agrees and does nothing: "OK", "Ok.", "OK. I'll follow your instructions and try my best."
_AGREES = re.compile(
    r"(ok|okay|sure|understood|got it|alright|i understand)[.!]?"
    r"|(ok|okay)[.,!]? I\b[^\n]*\b(instructions?|understand|ready|my best)\b[^\n]*",
    re.IGNORECASE,
)
_LONGEST_OK = 200  # characters: what is longer is no mere acknowledgement


@dataclasses.dataclass(frozen=True, eq=False)
class Said:
    """One conversation of a row.

    Attributes:
      messages: all of them; `loss` marks the trained assistant turns.
      name: what tells it from the row's others; empty if there are none.
      reward: what the whole of it was worth; None if the row does not say.
      steps: the label of every trained turn, None where a turn has none; empty if no turn has one.
    """

    messages: Messages
    name: str = ""
    reward: float | None = None
    steps: tuple[float | None, ...] = ()


@dataclasses.dataclass(frozen=True)
class Pair:
    """That one conversation of a row is better than another, by their indices.

    Attributes:
      margin: by how much, where the row says so.
    """

    chosen: int
    rejected: int
    margin: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What a reader finds in a row.

    Attributes:
      task: what the row says that it is about, where its id does not say so.
    """

    said: tuple[Said, ...]
    pairs: tuple[Pair, ...] = ()
    task: str | int | None = None


def side(value: JSON, name: str, role: Literal["user", "assistant"]) -> Messages:
    """A list of messages, or a text as one message of `role`."""
    if isinstance(value, str):
        return (Message(role, clean(value), loss=role == "assistant"),)
    return read_messages(value, name)


def prompt(row: Row, name: str = "prompt") -> Messages:
    """What comes before the first trained turn."""
    return context(side(row[name], name, "user"))


def turns(texts: JSON, name: str) -> Messages:
    """A list of texts (or of lists of messages), each an assistant turn."""
    return tuple(m for text in listed(texts, name) for m in side(text, name, "assistant"))


def acknowledged(messages: Sequence[Message], rows: JSON) -> Messages:
    """An opening "OK" is no step: the first assistant turn, if it only agrees, more turns follow, and its row does not insist."""
    found = [i for i, m in enumerate(messages) if m.role == "assistant"]
    if (
        len(found) < 2
        or (found[0] < len(rows) and rows[found[0]].get("loss") is True)
        or len(messages[found[0]].content) > _LONGEST_OK
        or not _AGREES.fullmatch(messages[found[0]].content.strip())
    ):
        return tuple(messages)
    return (*context(messages[: found[0] + 1]), *messages[found[0] + 1 :])


def text(value: JSON, name: str) -> str:
    """Clean text."""
    if not isinstance(value, str):
        raise UserError(f"{name} is {fields.shown(value)}; expected text")
    return clean(value)


def listed(value: JSON, name: str) -> list[JSON]:
    """A list of anything."""
    if not isinstance(value, list):
        raise UserError(f"{name!r} is a {type(value).__name__}, not a list")
    return value


def number(value: JSON, name: str) -> float | None:
    """A finite number; true is 1 and false 0; None where there is none."""
    if value is None:
        return None
    if not isinstance(value, bool | int | float):
        raise UserError(f"{name} is {fields.shown(value)}; expected a number, true or false")
    try:
        if math.isfinite(value):
            return float(value)
    except OverflowError:  # a whole number beyond every float
        pass
    raise UserError(f"{name} is {fields.shown(value)}; expected a finite number")


def numbers(values: JSON, name: str, count: int, of: str) -> tuple[float | None, ...]:
    """A label for each of `count` steps."""
    found = tuple(number(v, f"{name}[{i}]") for i, v in enumerate(listed(values, name)))
    if len(found) != count:
        raise UserError(f"{of!r} has {count} entries and {name!r} {len(found)}")
    return found


def reward(row: Row) -> float | None:
    """What a row says that its trajectory was worth: its reward or score, else whether it succeeded; None if it does not say."""
    meta = row["meta"] if isinstance(row.get("meta"), dict) else {}
    for name, value in (("reward", row.get("reward")), ("meta.reward", meta.get("reward"))):
        if value is not None:
            return number(value, name)
    for name in ("final_reward", "score", "success", "correctness", "correct"):
        if isinstance(row.get(name), bool | int | float):
            return number(row[name], name)
    if isinstance(meta.get("success"), bool):
        return float(meta["success"])
    label = row.get("label")  # of a whole trajectory: good or bad; other numbers name classes
    return float(label) if isinstance(label, bool) or label in (0, 1) else None
