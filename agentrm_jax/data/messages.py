"""Messages as other people write them, calls of tools included, as messages of ours.

{"role" | "from", "content" | "value", "loss"?}                               OpenAI, ShareGPT, ETO, AgentGym
{"role": "assistant", "content", "tool_calls": [{"function": {"name", "arguments"}}], "reasoning_content"?}
{"role": "tool", "content", "tool_call_id"?, "name"?}                         OpenAI; `function` is its old name
{"role": "tool_call" | "function_call", "content": "{'name', 'arguments'}"}, {"role": "tool_response" | "observation"}
{"role", "content": [{"type": "text" | "thinking" | "tool_use" | "tool_result", ...}]}     Anthropic's blocks
"""

import ast
import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from agentrm_jax.data import fields
from agentrm_jax.rendering import each_text
from agentrm_jax.text import clean
from agentrm_jax.types import JSON, Message, Role, UserError

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "tool_response": "tool",
    "observation": "tool",
}
_CALLS = ("tool_call", "function_call")  # roles of messages that are nothing but a call
_EXPECTED = "expected 'from' and 'value', or 'role' and 'content'"


def read_messages(value: JSON, name: str) -> tuple[Message, ...]:
    """Messages of any spelling. Assistant turns are trained unless they say `"loss": false`.

    A call that stands alone belongs to the assistant turn before it, or is a turn of its own; calls in a row are one turn.

    Raises:
      UserError: an entry is no message; begins with `name` and its index.
    """
    if not isinstance(value, list):
        raise UserError(f"{name!r} is a {type(value).__name__}, not a list of messages")
    out: list[Message] = []
    for i, m in enumerate(value):
        place = f"{name}[{i}]"
        role = _role(m, place)
        if role in _CALLS:
            _add_call(out, m, place)
        else:
            out += _message(m, ROLES[role], place)
    return tuple(out)


def read_tools(row: Mapping[str, JSON]) -> tuple[JSON, ...]:
    """The schemas of the functions that a row's assistant may call: its `tools`, a list or JSON of one.

    Raises:
      UserError: they are neither.
    """
    tools = row.get("tools")
    if isinstance(tools, str):
        tools = fields.parse(tools, "tools") if tools.strip() else []
    if tools is None:
        return ()
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UserError("'tools' is no list of schemas")
    return tuple(each_text(tool, clean) for tool in tools)


def _role(m: JSON, place: str) -> str:
    if not isinstance(m, dict):
        raise UserError(f"{place} is no message: {_EXPECTED}")
    name = m.get("from") if "value" in m and "from" in m else m.get("role")
    says = {"from", "value"} <= m.keys() or "content" in m or m.get("tool_calls") or m.get("function_call")
    if name is None or not says:
        raise UserError(f"{place} is no message: {_EXPECTED}")
    if not isinstance(name, str) or name not in (*ROLES, *_CALLS):
        raise UserError(f"{place} has the role {name!r:.40}; known are {', '.join((*ROLES, *_CALLS))}")
    return name


def _message(m: Mapping[str, Any], role: Role, place: str) -> list[Message]:
    """The messages that an entry stands for: its own, after those of the tool results that it brings."""
    content = m["value"] if "from" in m and "value" in m else m.get("content")
    loss = m.get("loss")
    if loss is not None and not isinstance(loss, bool):
        raise UserError(f"{place}.loss is {fields.shown(loss)}; expected true, false or null")
    text, more, results = _content(content, place, may_be_empty=bool(m.get("tool_calls") or m.get("function_call")))
    calls = [*more.pop("tool_calls", ()), *_calls(m, place)]
    if calls and role != "assistant":
        raise UserError(f"{place} calls tools with the role {role}; only an assistant does")
    if calls:
        more["tool_calls"] = calls
    for name in ("reasoning_content", "reasoning", "thinking"):
        if isinstance(thought := m.get(name), str) and thought:
            more["reasoning_content"] = clean(thought)
            break
    for name in ("tool_call_id", "name"):
        if isinstance(m.get(name), str) and role == "tool":
            more[name] = clean(m[name])
    if results and role != "user":
        raise UserError(f"{place} brings tool results with the role {role}; expected user")
    if results and not text:
        return results
    return [*results, Message(role, text, role == "assistant" and loss is not False, more)]


def _content(content: JSON, place: str, may_be_empty: bool) -> tuple[str, dict[str, Any], list[Message]]:
    """(text, fields, tool results) of a message's content: a text, or blocks."""
    if isinstance(content, str):
        return clean(content), {}, []
    if content is None and may_be_empty:
        return "", {}, []
    if not isinstance(content, list):
        raise UserError(f"{place} has no text: its content is a {type(content).__name__}")
    texts, calls, thoughts, results = [], [], [], []
    for i, block in enumerate(content):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text" and isinstance(block.get("text"), str):
            texts.append(clean(block["text"]))
        elif kind == "thinking" and isinstance(block.get("thinking"), str):
            thoughts.append(clean(block["thinking"]))
        elif kind == "tool_use" and isinstance(block.get("name"), str):
            calls.append(_call(block["name"], block.get("input", {}), block.get("id"), f"{place}.content[{i}]"))
        elif kind == "tool_result":
            inner, _, _ = _content(block.get("content"), f"{place}.content[{i}]", may_be_empty=True)
            about = {"tool_call_id": clean(block["tool_use_id"])} if isinstance(block.get("tool_use_id"), str) else {}
            results.append(Message("tool", inner, more=about))
        else:
            known = "text, thinking, tool_use and tool_result"
            raise UserError(f"{place} has no text: entry {i} of its list is of type {kind!r:.40}; read are {known}")
    more: dict[str, Any] = {"tool_calls": calls} if calls else {}
    if thoughts:
        more["reasoning_content"] = "\n\n".join(thoughts)
    return "".join(texts), more, results


def _calls(m: Mapping[str, Any], place: str) -> list[dict[str, JSON]]:
    """The calls of an assistant message, in OpenAI's spelling, old or new."""
    listed = m.get("tool_calls") or []
    if not isinstance(listed, list):
        raise UserError(f"{place}.tool_calls is a {type(listed).__name__}, not a list")
    if m.get("function_call"):
        listed = [*listed, {"function": m["function_call"]}]
    out = []
    for i, call in enumerate(listed):
        inner = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise UserError(f"{place}.tool_calls[{i}] names no function")
        out.append(_call(inner["name"], inner.get("arguments", {}), call.get("id"), f"{place}.tool_calls[{i}]"))
    return out


def _call(name: str, arguments: JSON, known: JSON, place: str) -> dict[str, JSON]:
    """A call as templates expect it: its arguments are an object, also where the row has JSON of one."""
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):  # what is no JSON is still what the model wrote
            arguments = json.loads(arguments) if arguments.strip() else {}
    if fault := fields.unwritable(arguments):
        raise UserError(f"{place}: its arguments {fault}")
    call = {"type": "function", "function": {"name": clean(name), "arguments": each_text(arguments, clean)}}
    return {"id": clean(known), **call} if isinstance(known, str) else call


def _add_call(out: list[Message], m: Mapping[str, Any], place: str) -> None:
    """Puts a message that is nothing but a call into the assistant turn before it, or behind it as a turn of its own."""
    text = m.get("content", m.get("value"))
    found = _literal(text) if isinstance(text, str) else text
    if isinstance(found, dict):
        found = found.get("function", found)
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        raise UserError(f"{place} is a call that names no function; expected an object with 'name' and 'arguments'")
    call = _call(found["name"], found.get("arguments", found.get("parameters", {})), m.get("id"), place)
    loss = m.get("loss") is not False
    if out and out[-1].role == "assistant" and out[-1].loss == loss:
        before = out.pop()
        calls = [*before.more.get("tool_calls", ()), call]
        out.append(dataclasses.replace(before, more={**before.more, "tool_calls": calls}))
    else:
        out.append(Message("assistant", "", loss, {"tool_calls": [call]}))


def _literal(text: str) -> JSON:
    """The value of a text that is JSON, or how Python writes the same; None if it is neither."""
    for read in (json.loads, _python):
        try:
            return read(text)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def _python(text: str) -> JSON:
    """The value of a Python literal, if JSON has it too."""
    return json.loads(json.dumps(ast.literal_eval(text)))


def context(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages, none of them trained."""
    return tuple(dataclasses.replace(m, loss=False) for m in messages)
