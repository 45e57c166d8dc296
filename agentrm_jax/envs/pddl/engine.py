"""A small STRIPS engine: PDDL text to ground operators, and states as frozensets of ground atoms.

Reads the part of PDDL the four worlds need: `:strips`, `:typing`, `:negative-preconditions` and `:constants`. An atom
is a tuple of words, predicate first: `("on", "b1", "b2")`. Stepping is set algebra, so forking a state costs nothing.
"""

import dataclasses
import re
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agentrm_jax.types import UserError

Atom = tuple[str, ...]
State = frozenset[Atom]


@dataclasses.dataclass(frozen=True, slots=True)
class Schema:
    """An action of a domain: typed parameters (`("?x", "block")`) and literals over them."""

    name: str
    parameters: tuple[tuple[str, str], ...]
    pre: tuple[Atom, ...]
    neg: tuple[Atom, ...]
    add: tuple[Atom, ...]
    delete: tuple[Atom, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Domain:
    """Actions, type hierarchy (child to parent) and constants (name to type)."""

    name: str
    parents: Mapping[str, str]
    constants: Mapping[str, str]
    schemas: tuple[Schema, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """Objects (name to type), initial state, and the atoms that must hold in the end, as they were written."""

    name: str
    objects: Mapping[str, str]
    init: State
    goal: tuple[Atom, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Operator:
    """A ground action: applicable where `pre` holds and nothing of `neg` does."""

    name: Atom
    pre: State
    neg: State
    add: State
    delete: State


def apply(operator: Operator, state: State) -> State | None:
    """The state after `operator`, or None where it is not applicable."""
    if not operator.pre <= state or operator.neg & state:
        return None
    return (state - operator.delete) | operator.add


def satisfied(goal: Sequence[Atom], state: State) -> float:
    """Share of goal atoms that hold in `state`, in [0, 1]; 1 for an empty goal."""
    return sum(atom in state for atom in goal) / len(goal) if goal else 1.0


def _tree(text: str) -> Any:
    """Nested lists of lower-case words for one parenthesised expression."""
    stack: list[list[Any]] = [[]]
    for token in re.findall(r"[()]|\??[^\s()?]+", re.sub(r";[^\n]*", "", text).lower()):
        if token == "(":
            stack.append([])
        elif token == ")":
            if len(stack) == 1:
                raise UserError("PDDL text has a ')' too many")
            inner = stack.pop()
            stack[-1].append(inner)
        else:
            stack[-1].append(token)
    if len(stack) != 1 or len(stack[0]) != 1:
        raise UserError("PDDL text is not one balanced (define ...) expression")
    return stack[0][0]


def _typed(words: Sequence[str]) -> list[tuple[str, str]]:
    """`a b - t c` to [(a, t), (b, t), (c, object)]."""
    pairs: list[tuple[str, str]] = []
    pending: list[str] = []
    items = iter(words)
    for word in items:
        if word == "-":
            kind = next(items)
            pairs += [(name, kind) for name in pending]
            pending = []
        else:
            pending.append(word)
    return pairs + [(name, "object") for name in pending]


def _literals(tree: Any) -> tuple[tuple[Atom, ...], tuple[Atom, ...]]:
    """(positive, negative) atoms of a conjunction; UserError for anything that is not a literal."""
    positive: list[Atom] = []
    negative: list[Atom] = []
    for part in tree[1:] if tree and tree[0] == "and" else [tree] if tree else []:
        if part[0] == "not":
            negative.append(tuple(part[1]))
        elif part[0] in ("or", "forall", "exists", "when", "imply", "=") or any(isinstance(p, list) for p in part):
            raise UserError(f"PDDL construct {part[0]!r} is not supported; use conjunctions of literals")
        else:
            positive.append(tuple(part))
    return tuple(positive), tuple(negative)


def read_domain(text: str) -> Domain:
    """Parse a domain; UserError for unbalanced text or constructs beyond STRIPS with negative preconditions."""
    name, parents, constants, schemas = "", {}, {}, []
    for section in _tree(text)[1:]:
        head, *rest = section
        if head == "domain":
            name = rest[0]
        elif head == ":types":
            parents = dict(_typed(rest))
        elif head == ":constants":
            constants = dict(_typed(rest))
        elif head == ":action":
            fields = dict(zip(rest[1::2], rest[2::2], strict=True))
            pre, neg = _literals(fields.get(":precondition", []))
            add, delete = _literals(fields.get(":effect", []))
            schemas.append(Schema(rest[0], tuple(_typed(fields.get(":parameters", []))), pre, neg, add, delete))
    return Domain(name, parents, constants, tuple(schemas))


def read_problem(text: str, domain: Domain) -> Problem:
    """Parse a problem of `domain`; UserError for negative goals and unknown constructs."""
    name, objects, init = "", dict(domain.constants), frozenset[Atom]()
    goal: tuple[tuple[Atom, ...], tuple[Atom, ...]] = ((), ())
    for section in _tree(text)[1:]:
        head, *rest = section
        if head == "problem":
            name = rest[0]
        elif head == ":objects":
            objects.update(_typed(rest))
        elif head == ":init":
            init = frozenset(tuple(atom) for atom in rest)
        elif head == ":goal":
            goal = _literals(rest[0])
    if goal[1]:
        raise UserError(f"problem {name!r} has a negative goal, which is not supported")
    return Problem(name, objects, init, goal[0])


def write_problem(problem: Problem, domain: Domain) -> str:
    """PDDL text that `read_problem` reads back to an equal problem."""

    def atoms(items: Sequence[Atom]) -> str:
        return " ".join(f"({' '.join(atom)})" for atom in items)

    objects = " ".join(f"{name} - {kind}" for name, kind in problem.objects.items())
    return (
        f"(define (problem {problem.name}) (:domain {domain.name}) (:objects {objects}) "
        f"(:init {atoms(sorted(problem.init))}) (:goal (and {atoms(problem.goal)})))"
    )


def _is_a(kind: str, wanted: str, parents: Mapping[str, str]) -> bool:
    while kind != wanted:
        if kind not in parents:
            return wanted == "object"
        kind = parents[kind]
    return True


def _instances(schema: Schema, domain: Domain, problem: Problem, fixed: set[str]) -> Iterator[Operator]:
    """Ground `schema` parameter by parameter, leaving a branch as soon as a static precondition fails."""
    choices = [
        [name for name, kind in problem.objects.items() if _is_a(kind, wanted, domain.parents)]
        for _, wanted in schema.parameters
    ]
    slot = {variable: i for i, (variable, _) in enumerate(schema.parameters)}
    checks: dict[int, list[Atom]] = defaultdict(list)
    for atom in schema.pre:
        if atom[0] in fixed:
            checks[max((slot.get(word, -1) for word in atom[1:]), default=-1)].append(atom)

    def ground(atom: Atom, values: Sequence[str]) -> Atom:
        return (atom[0], *(values[slot[word]] if word in slot else word for word in atom[1:]))

    def extend(values: list[str]) -> Iterator[tuple[str, ...]]:
        if not all(ground(atom, values) in problem.init for atom in checks[len(values) - 1]):
            return
        if len(values) == len(choices):
            yield tuple(values)
            return
        for value in choices[len(values)]:
            yield from extend([*values, value])

    def bound(atoms: tuple[Atom, ...], values: Sequence[str]) -> State:
        return frozenset(ground(atom, values) for atom in atoms)

    for values in extend([]):
        add = bound(schema.add, values)
        yield Operator(
            (schema.name, *values),
            frozenset(ground(atom, values) for atom in schema.pre if atom[0] not in fixed),
            bound(schema.neg, values),
            add,
            bound(schema.delete, values) - add,
        )


def ground(domain: Domain, problem: Problem) -> dict[Atom, Operator]:
    """All operators that are reachable when deletions are ignored, by name, in a fixed order.

    Static preconditions are checked here once and left out of the operators. Operators that change nothing
    (`move rooma rooma`) are left out too.
    """
    changing = {atom[0] for schema in domain.schemas for atom in schema.add + schema.delete}
    fixed = {atom[0] for schema in domain.schemas for atom in schema.pre} - changing
    operators = [
        operator
        for schema in domain.schemas
        for operator in _instances(schema, domain, problem, fixed)
        if not operator.add <= operator.pre or operator.delete
    ]
    waiting = {i: len(operator.pre) for i, operator in enumerate(operators)}
    needs: dict[Atom, list[int]] = defaultdict(list)
    for i, operator in enumerate(operators):
        for atom in operator.pre:
            needs[atom].append(i)
    reached = {i for i, n in waiting.items() if n == 0}
    queue = deque([*problem.init, *(atom for i in reached for atom in operators[i].add)])
    seen: set[Atom] = set()
    while queue:
        atom = queue.popleft()
        if atom in seen:
            continue
        seen.add(atom)
        for i in needs[atom]:
            waiting[i] -= 1
            if waiting[i] == 0:
                reached.add(i)
                queue.extend(operators[i].add)
    return {operator.name: operator for i, operator in enumerate(operators) if i in reached}
