"""The texts of an ALFWorld game: TextWorld's `.twl2` files (action templates and a context-sensitive grammar), interpreted.

A text is a sequence of symbols: literal text, `#name#` (the first rule of that name whose condition holds), `{x.name}` (an
expression over the entities in scope), `{expression | query}` (once per match of the query, in the order of sorted facts) and
`[{...}]` (the same, joined as a list in words). The phrases themselves stay in the game's own grammar.
"""

import ast
import dataclasses
import functools
import json
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from agentrm_jax.envs.alfworld.pddl import Facts, is_subtype

Scope = dict[tuple[str, str], str]  # (placeholder, type) -> object id


@dataclasses.dataclass(frozen=True)
class Entity:
    """What grammar expressions may ask of an object."""

    id: str
    name: str
    definite: str = "the"
    indefinite: str = "a"


@dataclasses.dataclass(frozen=True)
class Templates:
    """A parsed `.twl2` file: command template and feedback text of each action (by lower-case name), and grammar rules."""

    commands: Mapping[str, str]
    feedback: Mapping[str, str]
    rules: Mapping[str, list[Mapping[str, str]]]


@functools.lru_cache(64)
def parse_templates(source: str) -> Templates:
    """Reads a `.twl2` text. Cached: games of one set differ in the goal line only, so replace that before calling."""
    commands: dict[str, str] = {}
    feedback: dict[str, str] = {}
    rules: dict[str, list[Mapping[str, str]]] = {}
    for block in re.findall(r'grammar\s*::\s*"""(.*?)"""', source, re.S):
        lines = [line for line in textwrap.dedent(block).split("\n") if not line.lstrip().startswith("#")]
        rules.update(json.loads("\n".join(lines)))
    for name, body in re.findall(r"^action\s+(\w+)\s*\{(.*?)^\}", source, re.S | re.M):
        for field, target in (("template", commands), ("feedback", feedback)):
            found = re.search(field + r'\s*::\s*"(.*?)"\s*;', body)
            if found is None:
                raise ValueError(f"action {name} of the grammar has no {field}")
            target[name.lower()] = found[1]
    return Templates(commands, feedback, rules)


def entity_names(ids: list[str]) -> dict[str, Entity]:
    """Names shown to the agent: type and a number; among `ids` sorted, the first of a type gets its highest number."""
    kinds = {i: i.split("_bar_")[0] + ("basin" if "basin" in i else "") for i in ids if "_bar_" in i}
    left = Counter(kinds.values())
    out = {}
    for i in sorted(ids):
        if i in kinds:
            out[i] = Entity(i, f"{kinds[i]} {left[kinds[i]]}")
            left[kinds[i]] -= 1
        else:
            out[i] = Entity(i, f"{i} ")
    return out


# --- symbols -----------------------------------------------------------------------------------------------------------

_SYMBOL = re.compile(
    r"""\[\{(?P<list>[^{}\[\]]+)\}\] | \{(?P<braces>[^{}\[\]]+)\} | \#(?P<rule>[^\#\[\]{}]+)\# | (?P<text>[^\[\]{}\#]+)""",
    re.X,
)


@functools.lru_cache(4096)
def parse_symbols(text: str) -> tuple[tuple[str, str, str], ...]:
    """(kind, expression or text, query) in order; kinds are `text`, `rule`, `braces`, `list`. ValueError if malformed."""
    out, position = [], 0
    text = re.sub(r"\A\s*\n", "", text)  # TextWorld's parser drops leading blank lines of a text
    while position < len(text):
        match = _SYMBOL.match(text, position)
        if match is None:
            raise ValueError(f"cannot read the grammar text {text!r} at {position}")
        kind = match.lastgroup or ""
        body, _, query = match[kind].partition("|") if kind in ("list", "braces") else (match[kind], "", "")
        out.append((kind, body if kind == "text" else body.strip(), query.strip()))
        position = match.end()
    return tuple(out)


@functools.lru_cache(1024)
def parse_query(query: str) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """`p(a:t, b:u) & q(...)` -> ((p, ((a, t), (b, u))), ...)."""
    out = []
    for name, args in re.findall(r"([\w-]+)\s*\(([^)]*)\)", query):
        pairs = [arg.strip().partition(":") for arg in args.split(",") if arg.strip()]
        out.append((name, tuple((left.strip(), right.strip() or left.strip()) for left, _, right in pairs)))
    return tuple(out)


@functools.lru_cache(512)
def compile_expression(text: str) -> Callable[[Mapping[str, Entity]], str]:
    """An expression of the grammar: names, attributes, strings, `+` and `or`; nothing else, since game files are data."""

    def build(node: ast.AST) -> Callable[[Mapping[str, Entity]], Any]:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return lambda scope, value=node.value: value  # type: ignore[misc]
        if isinstance(node, ast.Name):
            return lambda scope, key=node.id: scope[key].name  # type: ignore[misc]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            return lambda scope, key=node.value.id, field=node.attr: getattr(scope[key], field)  # type: ignore[misc]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            left, right = build(node.left), build(node.right)
            return lambda scope: left(scope) + right(scope)
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
            parts = [build(value) for value in node.values]
            return lambda scope: next((v for part in parts if (v := part(scope))), "")
        raise ValueError(f"the grammar expression {text!r} is not supported")

    return build(ast.parse(text.strip(), mode="eval").body)


class Teller:
    """Derives texts for the states of one game."""

    def __init__(self, templates: Templates, types: Mapping[str, str], entities: Mapping[str, Entity]):
        self.templates = templates
        self.types = types
        self.entities = entities

    def derive(self, text: str, scope: Scope, facts: Facts) -> str:
        """`text` with all symbols replaced, for the objects in `scope`."""
        return "".join(self._symbol(symbol, scope, facts) for symbol in parse_symbols(text))

    def command(self, action: str, scope: Scope, facts: Facts) -> str:
        return self.derive(self.templates.commands[action], scope, facts)

    def feedback(self, action: str, scope: Scope, facts: Facts) -> str:
        return self.derive(self.templates.feedback[action], scope, facts)

    def _symbol(self, symbol: tuple[str, str, str], scope: Scope, facts: Facts) -> str:
        kind, body, query = symbol
        if kind == "text":
            return body
        if kind == "rule":
            return self._rule(body, scope, facts)
        scopes = list(self.query(query, scope, facts)) if query else [scope]
        texts = [self._expression(body, found, facts) for found in scopes]
        return self._join(texts, scope, facts) if kind == "list" else "".join(texts)

    def _expression(self, body: str, scope: Scope, facts: Facts) -> str:
        if body.startswith("#"):
            return self._rule(body.strip("#"), scope, facts)
        return compile_expression(body)({name: self.entities[value] for (name, _), value in scope.items()})

    def _rule(self, name: str, scope: Scope, facts: Facts) -> str:
        for rule in self.templates.rules[name]:
            condition = rule.get("condition", "")
            if not condition or next(self.query(condition, scope, facts), None) is not None:
                return self.derive(rule["rhs"], scope, facts)
        raise ValueError(f"no rule of the grammar applies to #{name}#")

    def _join(self, texts: list[str], scope: Scope, facts: Facts) -> str:
        if not texts:
            return self._rule("list_empty", scope, facts)
        if len(texts) == 1:
            return texts[0]
        separator, last = (self._rule(f"list_{k}separator", scope, facts) for k in ("", "last_"))
        return separator.join(texts[:-1]) + last + texts[-1]

    def query(self, query: str, scope: Scope, facts: Facts) -> Iterator[Scope]:
        """Extensions of `scope` that satisfy the query; different placeholders stand for different objects."""
        yield from self._match(parse_query(query), scope, facts)

    def _match(self, atoms: tuple[Any, ...], scope: Scope, facts: Facts) -> Iterator[Scope]:
        if not atoms:
            yield scope
            return
        (name, slots), rest = atoms[0], atoms[1:]
        rows = facts.get(name, frozenset())
        for row in sorted(r for r in rows if all(scope.get(s, v) == v for s, v in zip(slots, r, strict=True))):
            new = dict(scope)
            for slot, value in zip(slots, row, strict=True):
                if slot not in new:
                    if value in new.values() or not is_subtype(self.types[value], slot[1]):
                        break
                    new[slot] = value
                elif new[slot] != value:
                    break
            else:
                yield from self._match(rest, new, facts)
