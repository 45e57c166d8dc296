"""Rows that say which of two conversations is better."""

from collections.abc import Sequence

from agentrm_jax.data.layouts import parts
from agentrm_jax.data.layouts.parts import Found, Messages, Pair, Row, Said
from agentrm_jax.data.messages import context
from agentrm_jax.types import JSON, UserError


def sides(row: Row) -> Found:
    """`chosen` and `rejected` (or `reject`), each behind the prompt; without one, what both begin with is the prompt, as in TRL.

    A side may be a row of its own, with `messages`. A row that lacks a side is one conversation and no pair.
    """
    row = {"rejected" if name == "reject" else name: _inner(value) for name, value in row.items()}
    names = [n for n in ("chosen", "rejected") if n in row]
    said = tuple(Said(messages, name) for name, messages in _said(row, names).items())
    if len(said) < 2:
        return Found(said)
    margin = parts.number(row.get("margin"), "margin")
    return Found(said, (Pair(0, 1, margin or 0.0),))


def _said(row: Row, names: Sequence[str]) -> dict[str, Messages]:
    found = {n: parts.side(row[n], n, "assistant") for n in names}
    if all(side and side[0].role != "assistant" for side in found.values()):  # each is a whole conversation
        shared = _shared(list(found.values())) if len(found) > 1 else 0
        return {n: parts.acknowledged((*context(s[:shared]), *s[shared:]), row[n]) for n, s in found.items()}
    if "prompt" not in row:
        raise UserError("a preference of texts without 'prompt': nothing says where the assistant's turn begins")
    before = parts.prompt(row)
    return {n: (*before, *side) for n, side in found.items()}


def _inner(value: JSON) -> JSON:
    """The messages of a side that is a row of its own."""
    return value["messages"] if isinstance(value, dict) and "messages" in value else value


def _shared(found: Sequence[Messages]) -> int:
    """How many messages the sides begin with in common, leaving each at least one."""
    shortest = min(len(s) for s in found)
    return next((i for i in range(shortest - 1) if len({s[i] for s in found}) > 1), shortest - 1)
