"""Answers of an OpenAI-compatible server, read at the border: their texts are clean and their numbers finite, or they are broken."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from agentrm_jax.generators.http import BrokenAnswer
from agentrm_jax.text import clean
from agentrm_jax.types import JSON

_LONGEST = 200_000  # characters of a reply
_THOUGHT = re.compile(r".*</think>", re.DOTALL)
_ID = re.compile(r"token_id:(\d+)")


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of the replies in an answer.

    Attributes:
      text: the reply; empty where the server sent none.
      finish: why it ended.
      tokens: ids, where the server gives them.
      logprob: sum over its tokens; NaN where the server gives none.
      count: tokens it has, where log-probabilities say so; else 0.
      first: likely tokens at its first place, as text -> log-probability.
      arguments: of its first tool call, as text; empty if it has none.
    """

    text: str
    finish: Literal["stop", "length", "error"]
    tokens: tuple[int, ...]
    logprob: float
    count: int
    first: Mapping[str, float]
    arguments: str


@dataclasses.dataclass(frozen=True)
class Answered:
    """An answer: its choices, at least one, and the tokens it reports."""

    choices: list[Choice]
    prompt_tokens: int
    completion_tokens: int


def read(answer: dict[str, JSON]) -> Answered:
    """The answer of /chat/completions or /completions. Raises BrokenAnswer."""
    rows = answer.get("choices")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise BrokenAnswer("an answer without choices")
    choices = [_choice(row) for row in rows]
    usage = answer.get("usage") if isinstance(answer.get("usage"), dict) else {}
    assert isinstance(usage, dict)
    written = _count(usage.get("completion_tokens")) or sum(choice.count for choice in choices)
    return Answered(choices, _count(usage.get("prompt_tokens")), written)


def chosen(text: str, count: int) -> int | None:
    """The one number from 1 to `count` that the last line of a reply names; None if it names none, several, or another."""
    lines = [line for line in _THOUGHT.sub("", text, count=1).splitlines() if line.strip()]
    numbers = {int(number) for number in re.findall(r"(?<![\d.])\d{1,6}(?!\.?\d)", lines[-1])} if lines else set()
    [number] = numbers if len(numbers) == 1 else [0]
    return number if 1 <= number <= count else None


def _choice(row: dict[str, JSON]) -> Choice:
    message = row.get("message")
    if message is None and isinstance(row.get("text"), str):
        message = {"content": row["text"]}
    if not isinstance(message, dict):
        raise BrokenAnswer("a choice without a message")
    reason = row.get("finish_reason")
    texts, logprobs, first = _logprobs(row.get("logprobs"))
    ids = [int(found[1]) for found in map(_ID.fullmatch, texts) if found]
    return Choice(
        text=clean(_content(message.get("content")), _LONGEST).strip(),
        finish="length" if reason == "length" else "error" if reason in ("content_filter", "error") else "stop",
        tokens=tuple(ids) if len(ids) == len(texts) else (),
        logprob=math.fsum(logprobs) if logprobs else math.nan,
        count=len(texts),
        first=first,
        arguments=_arguments(message.get("tool_calls")),
    )


def _content(value: JSON) -> str:
    """The text of a message: text, parts of which some are text, or nothing (a tool call, a refusal)."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(str(part.get("text", "")) for part in value if isinstance(part, dict))
    raise BrokenAnswer(f"a message whose content is a {type(value).__name__}")


def _logprobs(value: JSON) -> tuple[list[str], list[float], dict[str, float]]:
    """(tokens, their log-probabilities, likely first tokens) in the form of either endpoint; empty where something is missing."""
    if not isinstance(value, dict):
        return [], [], {}
    if isinstance(value.get("content"), list):  # chat
        rows = [row for row in value["content"] if isinstance(row, dict)]
        texts, found = [str(row.get("token", "")) for row in rows], [row.get("logprob") for row in rows]
        tops = rows[0].get("top_logprobs") if rows else None
        pairs = (
            [(t.get("token"), t.get("logprob")) for t in tops if isinstance(t, dict)] if isinstance(tops, list) else []
        )
    else:
        texts = [str(t) for t in value.get("tokens") or ()] if isinstance(value.get("tokens"), list) else []
        found = value["token_logprobs"] if isinstance(value.get("token_logprobs"), list) else []
        tops = value.get("top_logprobs")
        head = tops[0] if isinstance(tops, list) and tops else None
        pairs = list(head.items()) if isinstance(head, dict) else []
    first = {token: p for token, q in pairs if isinstance(token, str) and (p := _finite(q)) is not None}
    numbers = [p for p in map(_finite, found) if p is not None]
    if not texts or len(numbers) != len(texts):
        return [], [], first
    return texts, numbers, first or {texts[0]: numbers[0]}


def _arguments(calls: JSON) -> str:
    if isinstance(calls, list) and calls and isinstance(calls[0], dict) and isinstance(calls[0].get("function"), dict):
        return str(calls[0]["function"].get("arguments", ""))
    return ""


def _finite(value: JSON) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return min(float(value), 0.0) if number else None


def _count(value: JSON) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40 else 0


def first_token_logprobs(first: Mapping[str, float], options: Sequence[str]) -> tuple[tuple[float, ...], int] | None:
    """Log-probability of every option as a first token, all its spellings with blanks together; None if none is among the likely.

    An option that is not among them is at most as likely as the least of them, and no more than what they leave: it is given that
    bound. How many options were is returned too.
    """
    found: list[float | None] = []
    for option in options:
        ways = math.fsum(math.exp(p) for token, p in first.items() if token.strip() == option)
        found.append(math.log(ways) if ways > 0 else None)
    if all(p is None for p in found):
        return None
    left = 1 - math.fsum(map(math.exp, first.values()))
    bound = min(*first.values(), math.log(left) if left > 0 else -math.inf)
    return tuple(bound if p is None else p for p in found), sum(p is None for p in found)
