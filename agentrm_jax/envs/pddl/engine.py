"""A small STRIPS engine: PDDL text to ground operators, and states as frozensets of ground atoms.

Reads the part of PDDL the four worlds need: `:strips`, `:typing`, `:negative-preconditions` and `:constants`. An atom
is a tuple of words, predicate first: `("on", "b1", "b2")`. Stepping is set algebra, so forking a state costs nothing.
"""

import dataclasses
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence

from agentrm_jax.envs import pddl_text
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


def _literals(formula: pddl_text.Tree) -> tuple[tuple[Atom, ...], tuple[Atom, ...]]:
    """(positive, negative) atoms of a conjunction; UserError for anything that is not a literal."""
    positive: list[Atom] = []
    negative: list[Atom] = []
    for part in formula[1:] if formula and formula[0] == "and" else [formula] if formula else []:
        if part[0] == "not":
            negative.append(part[1])
        elif part[0] in ("or", "forall", "exists", "when", "imply", "=") or any(isinstance(p, tuple) for p in part):
            raise UserError(f"PDDL construct {part[0]!r} is not supported; use conjunctions of literals")
        else:
            positive.append(part)
    return tuple(positive), tuple(negative)


def read_domain(text: str) -> Domain:
    """The domain that `text` describes.

    Raises:
      UserError: the text is not balanced, or goes beyond STRIPS with types and negative preconditions.
    """
    parts = pddl_text.sections(text)
    found = dict(parts)
    schemas = []
    for action in pddl_text.actions(parts):
        pre, neg = _literals(action.precondition)
        add, delete = _literals(action.effect)
        schemas.append(Schema(action.name, action.parameters, pre, neg, add, delete))
    return Domain(
        name=next(iter(found.get("domain", ())), ""),
        parents=dict(pddl_text.typed(found.get(":types", ()))),
        constants=dict(pddl_text.typed(found.get(":constants", ()))),
        schemas=tuple(schemas),
    )


def read_problem(text: str, domain: Domain) -> Problem:
    """The problem of `domain` that `text` describes.

    Raises:
      UserError: the text is not balanced, has no goal, or its goal is not a conjunction of positive literals.
    """
    found = dict(pddl_text.sections(text))
    name = next(iter(found.get("problem", ())), "")
    if not found.get(":goal"):
        raise UserError(f"problem {name!r} has no goal")
    positive, negative = _literals(found[":goal"][0])
    if negative:
        raise UserError(f"problem {name!r} has a negative goal, which is not supported")
    objects = {**domain.constants, **dict(pddl_text.typed(found.get(":objects", ())))}
    return Problem(name, objects, frozenset(found.get(":init", ())), positive)


def write_problem(problem: Problem, domain: Domain) -> str:
    """PDDL text that `read_problem` reads back to an equal problem."""

    def atoms(items: Sequence[Atom]) -> str:
        return " ".join(f"({' '.join(atom)})" for atom in items)

    objects = " ".join(f"{name} - {kind}" for name, kind in problem.objects.items())
    return (
        f"(define (problem {problem.name}) (:domain {domain.name}) (:objects {objects}) "
        f"(:init {atoms(sorted(problem.init))}) (:goal (and {atoms(problem.goal)})))"
    )


def _instances(schema: Schema, domain: Domain, problem: Problem, fixed: set[str]) -> Iterator[Operator]:
    """Ground `schema` parameter by parameter, leaving a branch as soon as a static precondition fails."""
    choices = [
        [name for name, kind in problem.objects.items() if pddl_text.is_a(kind, wanted, domain.parents)]
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
