"""Messages as the rows that a chat template is given, and whether the template wrote all that they hold."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence

from agentrm_jax.types import JSON, Message

# What names a message or points at another one, or says what kind of thing a call is: templates may leave it out.
_BESIDE = ("id", "tool_call_id", "type", "index")


def row(message: Message) -> dict[str, JSON]:
    """A message as a template reads it."""
    return {"role": message.role, "content": message.content, **message.more}


def each_text(value: JSON, change: Callable[[str], str]) -> JSON:
    """A JSON value with every text in it, keys of objects included, changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): each_text(one, change) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [each_text(one, change) for one in value]
    return value


def marked(message: Message, mark: Callable[[str], str]) -> Message:
    """A message whose content and texts are marked as plain text; the names of its fields are ours."""
    more = {name: each_text(value, mark) for name, value in message.more.items()}
    return dataclasses.replace(message, content=mark(message.content), more=more)


def missing(messages: Sequence[Message], text: str) -> str:
    """What some messages hold that their rendered text does not show, by name; empty if all is there.

    White space is the template's affair, and so are identifiers.
    """
    shown = _dense(text)
    for message in messages:
        if _dense(message.content) not in shown:
            return f"the content of a message with the role {message.role}"
        for name, value in message.more.items():
            if name in (*_BESIDE, "name"):
                continue
            for place, leaf in _leaves(value, name):
                if not _shows(shown, leaf):
                    return place
    return ""


def missing_tools(tools: Sequence[JSON], text: str, without: str) -> str:
    """The name of a tool that a rendered text does not tell of, beyond what it says `without` tools; empty if it tells of all."""
    for tool in tools:
        inner = tool.get("function", tool) if isinstance(tool, Mapping) else {}
        name = str(inner.get("name", "")) if isinstance(inner, Mapping) else ""
        if text.count(name) <= without.count(name):
            return name
    return ""


def _leaves(value: JSON, place: str, inside: bool = False) -> Iterator[tuple[str, str]]:
    """(where, text) of all texts and numbers in the field of a message."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            if inside or key not in _BESIDE:
                yield from _leaves(one, f"{place}.{key}", inside or key == "arguments")
    elif isinstance(value, list | tuple):
        for i, one in enumerate(value):
            yield from _leaves(one, f"{place}[{i}]", inside)
    elif value is not None and not isinstance(value, bool):
        yield place, value if isinstance(value, str) else json.dumps(value)


def _shows(shown: str, leaf: str) -> bool:
    """Whether a text is there, as it is or as it stands in JSON."""
    ways = (leaf, *(json.dumps(leaf, ensure_ascii=escaped)[1:-1] for escaped in (False, True)))
    return any(_dense(way) in shown for way in ways)


def _dense(text: str) -> str:
    return "".join(text.split())
