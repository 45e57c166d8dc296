"""The text of PDDL files as nested tuples of words: what the engines of `pddl` and `alfworld` read alike.

Words are in lower case; a comment runs from `;` to the end of its line. What formulas and effects mean is each engine's own concern:
`pddl` takes conjunctions of literals to bit-sized ground operators, `alfworld` interprets quantifiers and conditional effects.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from agentrm_jax.types import UserError

Tree = tuple[Any, ...]  # of words and trees


class ActionText(NamedTuple):
    """An `:action` as it is written: (variable, type) pairs in order, and two formulas; an absent formula is `()`."""

    name: str
    parameters: tuple[tuple[str, str], ...]
    precondition: Tree
    effect: Tree


def read_tree(text: str) -> Tree:
    """The one parenthesised expression that `text` is.

    Raises:
      UserError: the parentheses are not balanced, or there is more or less than one expression.
    """
    stack: list[list[Any]] = [[]]
    # A variable begins a word also where no space is before it: AgentBoard's barman has `?l - level?l1 - level`.
    for token in re.findall(r"[()]|\??[^\s()?]+", re.sub(r";[^\n]*", "", text).lower()):
        if token == "(":
            stack.append([])
        elif token != ")":
            stack[-1].append(token)
        elif len(stack) == 1:
            raise UserError("PDDL text has a ')' too many")
        else:
            inner = tuple(stack.pop())
            stack[-1].append(inner)
    if len(stack) != 1 or len(stack[0]) != 1 or not isinstance(stack[0][0], tuple):
        raise UserError("PDDL text is not one balanced (define ...) expression")
    return stack[0][0]


def sections(text: str) -> list[tuple[str, Tree]]:
    """(head, rest) of the parts of a `(define ...)`: `("domain", ("blocks",))`, `(":objects", ("a", "b"))`, ... in order.

    Raises:
      UserError: the text is not one balanced expression, or a part of it has no head.
    """
    parts = read_tree(text)[1:]
    if not all(isinstance(part, tuple) and part and isinstance(part[0], str) for part in parts):
        raise UserError("PDDL text has a part that does not begin with a word")
    return [(part[0], part[1:]) for part in parts]


def typed(words: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """`a b - t c` as `((a, t), (b, t), (c, object))`: a name without a type is an `object`.

    Raises:
      UserError: the last `-` names no type.
    """
    pairs: list[tuple[str, str]] = []
    pending: list[str] = []
    items = iter(words)
    for word in items:
        if word == "-":
            kind = next(items, None)
            if kind is None:
                raise UserError(f"PDDL list {' '.join(map(str, words))!r} ends where a type is expected")
            pairs += [(name, kind) for name in pending]
            pending = []
        else:
            pending.append(word)
    return (*pairs, *((name, "object") for name in pending))


def actions(parts: Sequence[tuple[str, Tree]]) -> Iterator[ActionText]:
    """The actions among the sections of a domain, in order.

    Raises:
      UserError: an action is not a name followed by keys and values.
    """
    for head, rest in parts:
        if head != ":action":
            continue
        if len(rest) % 2 == 0:
            raise UserError(f"PDDL action {rest[0] if rest else '?'} has a key without a value")
        fields = dict(zip(rest[1::2], rest[2::2], strict=True))
        yield ActionText(
            rest[0],
            typed(fields.get(":parameters", ())),
            fields.get(":precondition", ()),
            fields.get(":effect", ()),
        )


def is_a(kind: str, wanted: str, parents: Mapping[str, str]) -> bool:
    """Whether `kind` is the type `wanted` or below it; everything is an `object`. `parents`: type to the type above it."""
    while kind != wanted:
        if kind not in parents:
            return wanted == "object"
        kind = parents[kind]
    return True
