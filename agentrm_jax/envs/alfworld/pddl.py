"""A small interpreter for the PDDL that ALFWorld games are written in (types, quantifiers, conditional effects).

TextWorld's own engine translates every problem to SAS and rebuilds all its texts through a parser generator: about ten steps a
second, a second to load, no copies. Here a state is an immutable mapping from predicate to facts, so a fork is a reference, and
only the joins that a precondition asks for are computed. `tests/envs/test_alfworld.py` holds the two to the same answers.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from agentrm_jax.envs.pddl_text import actions, sections, typed
from agentrm_jax.types import UserError

Fact = tuple[str, ...]  # arguments of one fact
Facts = Mapping[str, frozenset[Fact]]  # predicate -> facts that hold; `not_p` holds what an action has made false
Binding = dict[str, str]  # variable -> object
Formula = tuple[Any, ...]

_EMPTY: frozenset[Fact] = frozenset()


@dataclasses.dataclass(frozen=True)
class PddlAction:
    """One action schema. `params` are (variable, type) in order; formulas are nested tuples, lower-cased."""

    name: str
    params: tuple[tuple[str, str], ...]
    precondition: Formula
    effect: Formula


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem: object types, first state, and goal formula."""

    types: Mapping[str, str]
    init: Facts
    goal: Formula


@functools.lru_cache(8)
def parse_domain(text: str) -> tuple[PddlAction, ...]:
    """Action schemas in the order of the domain file. Raises UserError if the text is not balanced."""
    parts = sections(text)
    types = {"object", *(word for head, rest in parts if head == ":types" for word in rest)}
    return tuple(
        PddlAction(a.name, a.parameters, _without_unknown_types(a.precondition, types), a.effect)
        for a in actions(parts)
    )


def _without_unknown_types(formula: Formula, types: set[str]) -> Formula:
    """A quantifier over a type that the domain does not have can never hold.

    ALFWorld's domain has one, `location,` with a comma, and so its engine lets one examine an object only when holding it.
    """
    if formula and formula[0] == "exists" and any(kind not in types for _, kind in typed(formula[1])):
        return ("or",)
    return tuple(_without_unknown_types(part, types) if isinstance(part, tuple) else part for part in formula)


def parse_problem(text: str) -> Problem:
    """The objects, initial facts and goal of a problem file.

    Raises:
      UserError: the text is not balanced, or one of these is missing.
    """
    found = dict(sections(text))
    for section in (":objects", ":init", ":goal"):
        if section not in found:
            raise UserError(f"the PDDL problem {' '.join(found.get('problem', ('?',)))} has no {section}")
    facts: dict[str, set[Fact]] = {}
    for fact in found[":init"]:
        if fact[0] != "=":
            facts.setdefault(fact[0], set()).add(fact[1:])
    init = {name: frozenset(rows) for name, rows in facts.items()}
    return Problem(dict(typed(found[":objects"])), init, found[":goal"][0])


def is_subtype(kind: str, wanted: str) -> bool:
    """Whether `kind` is the type `wanted`: ALFWorld's types lie side by side, all below `object`."""
    return kind == wanted or wanted == "object"


def matches(atom: Formula, binding: Binding, facts: Facts) -> Iterator[Binding]:
    """Extensions of `binding` under which the positive atom holds."""
    name, args = atom[0], atom[1:]
    wanted = tuple(binding.get(a) if a[0] == "?" else a for a in args)
    if None not in wanted:
        if wanted in facts.get(name, _EMPTY):
            yield binding
        return
    for row in facts.get(name, _EMPTY):
        if all(w is None or w == v for w, v in zip(wanted, row, strict=True)):
            new = dict(binding)
            if all(new.setdefault(a, v) == v for a, v in zip(args, row, strict=True) if a[0] == "?"):
                yield new


def _cost(formula: Formula, binding: Binding, facts: Facts) -> float:
    """How many bindings a conjunct may give: the cheapest is joined first; tests (no new variable) cost nothing."""
    head = formula[0]
    if head == "not":
        return -1.0 if all(a[0] != "?" or a in binding for a in _variables(formula)) else 1e9
    if head == "=":
        return -1.0 if all(a[0] != "?" or a in binding for a in formula[1:]) else 1e8
    if head in ("or", "exists", "and"):
        return 1e6 if any(a not in binding for a in _free(formula)) else 0.0
    unbound = sum(a[0] == "?" and a not in binding for a in formula[1:])
    # A half-bound atom filters: prefer it to a free one of the same size.
    return len(facts.get(head, _EMPTY)) / (1 if unbound == len(formula) - 1 else 30) if unbound else -1.0


@functools.lru_cache(4096)
def _variables(formula: Formula) -> frozenset[str]:
    found: set[str] = set()
    for part in formula[1:]:
        found |= _variables(part) if isinstance(part, tuple) else {part} if part[0] == "?" else set()
    return frozenset(found)


@functools.lru_cache(4096)
def _free(formula: Formula) -> frozenset[str]:
    if formula[0] == "exists":
        return _free(formula[2]) - {name for name, _ in typed(formula[1])}
    if formula[0] in ("and", "or", "not"):
        return frozenset().union(*(_free(part) for part in formula[1:]))
    return _variables(formula)


def satisfy(formula: Formula, binding: Binding, facts: Facts) -> Iterator[Binding]:
    """Extensions of `binding` that make the formula true (closed world); a binding may come more than once.

    Negations and `=` are tested when their variables are bound, so they must be bound by a positive part.
    """
    if not formula:
        yield binding
    elif formula[0] == "and":
        yield from _join(formula[1:], binding, facts)
    elif formula[0] == "or":
        for part in formula[1:]:
            yield from satisfy(part, binding, facts)
    elif formula[0] == "exists":
        local = [name for name, _ in typed(formula[1])]
        inner = {k: v for k, v in binding.items() if k not in local}
        seen = set()
        for found in satisfy(formula[2], inner, facts):
            outer = {k: v for k, v in found.items() if k not in local} | {k: binding[k] for k in local if k in binding}
            if (key := tuple(sorted(outer.items()))) not in seen:
                seen.add(key)
                yield outer
    elif formula[0] == "not":
        if next(satisfy(formula[1], binding, facts), None) is None:
            yield binding
    elif formula[0] == "=":
        left, right = (binding.get(a, a) for a in formula[1:])
        if left == right:
            yield binding
    else:
        yield from matches(formula, binding, facts)


def _join(parts: tuple[Formula, ...], binding: Binding, facts: Facts) -> Iterator[Binding]:
    if not parts:
        yield binding
        return
    best = min(range(len(parts)), key=lambda i: _cost(parts[i], binding, facts))
    rest = parts[:best] + parts[best + 1 :]
    for found in satisfy(parts[best], binding, facts):
        yield from _join(rest, found, facts)


def holds(formula: Formula, facts: Facts) -> bool:
    """Whether a closed formula is true."""
    return next(satisfy(formula, {}, facts), None) is not None


def groundings(action: PddlAction, problem: Problem, facts: Facts) -> list[Fact]:
    """Arguments with which the action applies and changes something it does not itself require, sorted.

    As in Fast Downward's translation, an operator whose effects all repeat its precondition is none (going where one is).
    """
    found: set[Fact] = set()
    for binding in satisfy(action.precondition, {}, facts):
        open_params = [(name, kind) for name, kind in action.params if name not in binding]
        for full in _enumerate(open_params, binding, problem.types):
            if all(is_subtype(problem.types[full[name]], kind) for name, kind in action.params):
                found.add(tuple(full[name] for name, _ in action.params))
    return sorted(args for args in found if not _is_noop(action, args, facts))


def _enumerate(params: list[tuple[str, str]], binding: Binding, types: Mapping[str, str]) -> Iterator[Binding]:
    if not params:
        yield binding
        return
    (name, kind), *rest = params
    for value, its in types.items():
        if is_subtype(its, kind):
            yield from _enumerate(rest, {**binding, name: value}, types)


@functools.lru_cache(256)
def _required(formula: Formula) -> tuple[frozenset[Formula], frozenset[Formula]]:
    """Positive and negative literals that the top-level conjunction asks for."""
    parts = formula[1:] if formula and formula[0] == "and" else (formula,) if formula else ()
    positive = frozenset(p for p in parts if p[0] not in ("and", "or", "not", "exists", "="))
    return positive, frozenset(p[1] for p in parts if p[0] == "not")


def _is_noop(action: PddlAction, args: Fact, facts: Facts) -> bool:
    binding = {name: value for (name, _), value in zip(action.params, args, strict=True)}
    added, removed = effects(action.effect, binding, facts)
    positive, negative = _required(action.precondition)
    return added <= {_ground(a, binding) for a in positive} and removed <= {_ground(a, binding) for a in negative}


def _ground(atom: Formula, binding: Binding) -> Formula:
    return (atom[0], *(binding.get(a, a) for a in atom[1:]))


def effects(effect: Formula, binding: Binding, facts: Facts) -> tuple[set[Formula], set[Formula]]:
    """Atoms that the action adds and removes; an atom both added and removed is added (PDDL semantics)."""
    added: set[Formula] = set()
    removed: set[Formula] = set()
    stack = [effect]
    while stack:
        part = stack.pop()
        if part[0] == "and":
            stack += part[1:]
        elif part[0] == "when":
            if next(satisfy(part[1], binding, facts), None) is not None:
                stack.append(part[2])
        elif part[0] == "not":
            removed.add(_ground(part[1], binding))
        elif part[0] != "increase":
            added.add(_ground(part, binding))
    return added, removed - added


def apply(action: PddlAction, args: Fact, facts: Facts) -> Facts:
    """The state after the action. What it removes is also recorded as `not_p`, which texts may ask about."""
    binding = {name: value for (name, _), value in zip(action.params, args, strict=True)}
    added, removed = effects(action.effect, binding, facts)
    new = dict(facts)
    for atoms, on, off in ((removed, "not_", ""), (added, "", "not_")):
        for name, *row in atoms:
            new[off + name] = new.get(off + name, _EMPTY) - {tuple(row)}
            new[on + name] = new.get(on + name, _EMPTY) | {tuple(row)}
    return new


def goal_conditions(problem: Problem, changing: frozenset[str]) -> list[list[list[Formula]]]:
    """For each top-level part of the goal, every way to bind its variables: the ground conditions that play can change.

    Used for progress: static conditions (types, what can be cleaned) only choose the bindings.
    """
    out = []
    goal = problem.goal
    for part in goal[1:] if goal[0] == "and" else (goal,):
        declared: list[tuple[str, str]] = []
        literals = list(flatten(part, declared))
        static = tuple(lit for lit in literals if lit[0] in ("not", "=") or lit[0] not in changing)
        dynamic = [lit for lit in literals if lit not in static]
        ways = set()
        for found in satisfy(("and", *static), {}, problem.init):
            for full in _enumerate([p for p in declared if p[0] not in found], found, problem.types):
                ways.add(tuple(sorted({_ground(lit, full) for lit in dynamic})))
        out.append([list(way) for way in sorted(ways)])
    return out


def flatten(formula: Formula, declared: list[tuple[str, str]]) -> Iterator[Formula]:
    """The literals of a conjunction under existential quantifiers, whose variables are appended to `declared`."""
    if formula[0] == "exists":
        declared += typed(formula[1])
        yield from flatten(formula[2], declared)
    elif formula[0] == "and":
        for part in formula[1:]:
            yield from flatten(part, declared)
    else:
        yield formula


def changing_predicates(actions: tuple[PddlAction, ...]) -> frozenset[str]:
    """Predicates that some action adds or removes."""
    found: set[str] = set()
    stack: list[Formula] = [a.effect for a in actions]
    while stack:
        part = stack.pop()
        if part[0] == "and":
            stack += part[1:]
        elif part[0] == "when":
            stack.append(part[2])
        elif part[0] == "not":
            stack.append(part[1])
        elif part[0] != "increase":
            found.add(part[0])
    return frozenset(found)


def satisfied(conditions: list[list[list[Formula]]], facts: Facts) -> tuple[int, int]:
    """(conditions that hold under the best binding, conditions in all), summed over the parts of the goal."""
    count = total = 0
    for ways in conditions:
        if ways:
            best = max(ways, key=lambda way: sum(tuple(row) in facts.get(name, _EMPTY) for name, *row in way))
            count += sum(tuple(row) in facts.get(name, _EMPTY) for name, *row in best)
            total += len(best)
    return count, total
