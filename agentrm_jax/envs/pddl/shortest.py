"""Shortest plans by breadth-first search, up to a number of states; objects that are as good as each other count once.

Two objects are interchangeable if swapping their names maps operators and goal onto themselves: balls for the same room, shots that
no goal names. States that differ only by such swaps have shortest plans of the same length, so one of them is enough. That makes
problems small which no other search here gets through: 12 balls in two rooms have a few hundred states instead of a million.
"""

from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence

from agentrm_jax.envs.pddl.engine import Atom, Operator, State

Group = tuple[tuple[int, ...], ...]  # for every member the bits of its atoms, in the same order


def shortest(
    operators: Mapping[Atom, Operator], init: State, goal: Sequence[Atom], index: Mapping[Atom, int], max_states: int
) -> list[Atom] | None:
    """Names of the operators of a shortest plan, or None if it is not found among the first `max_states` states.

    Args:
      index: a bit for every atom that an operator mentions; atoms of `goal` outside of it are taken to hold.
    """
    groups = [_bits(group, index) for group in interchangeable(operators, goal)]

    def mask(atoms: Collection[Atom]) -> int:
        return sum(1 << index[atom] for atom in atoms)

    moves = [(o.name, mask(o.pre), mask(o.neg), mask(o.add), ~mask(o.delete)) for o in operators.values()]
    wanted, start = mask(index.keys() & set(goal)), mask(index.keys() & init)
    parent: dict[int, tuple[int, Atom]] = {start: (start, ())}
    seen = {_key(start, groups)}
    queue = deque([start])
    while queue and len(seen) <= max_states:
        state = queue.popleft()
        if state & wanted == wanted:
            return _path(parent, state)
        for name, pre, neg, add, keep in moves:
            if state & pre == pre and not state & neg:
                after = (state & keep) | add
                if (key := _key(after, groups)) not in seen:
                    seen.add(key)
                    parent[after] = state, name
                    queue.append(after)
    return None


def interchangeable(operators: Mapping[Atom, Operator], goal: Sequence[Atom]) -> list[list[str]]:
    """Groups of objects any two of which may be swapped, the largest first; no atom mentions two objects of these groups."""
    rules = {(o.pre, o.neg, o.add, o.delete) for o in operators.values()}
    atoms = {atom for rule in rules for part in rule for atom in part}
    alike: dict[tuple[State, State], list[str]] = defaultdict(list)
    for name in sorted({word for atom in atoms for word in atom[1:]}):
        mentioned, aims = (frozenset(_renamed(a, {name: "?"}) for a in part if name in a) for part in (atoms, goal))
        alike[mentioned, aims].append(name)
    groups: list[list[str]] = []
    for names in alike.values():
        group = names[:1]
        group += [name for name in names[1:] if _swaps(rules, goal, names[0], name)]
        if len(group) > 1:
            groups.append(group)
    chosen: list[list[str]] = []
    for group in sorted(groups, key=len, reverse=True):
        grouped = {name for other in [*chosen, group] for name in other}
        if all(sum(word in grouped for word in atom[1:]) < 2 for atom in atoms):
            chosen.append(group)
    return chosen


def _swaps(rules: Collection[tuple[State, ...]], goal: Sequence[Atom], a: str, b: str) -> bool:
    names = {a: b, b: a}
    if {_renamed(atom, names) for atom in goal} != set(goal):
        return False
    return all(tuple(frozenset(_renamed(x, names) for x in part) for part in rule) in rules for rule in rules)


def _renamed(atom: Atom, names: Mapping[str, str]) -> Atom:
    return (atom[0], *(names.get(word, word) for word in atom[1:]))


def _bits(group: Sequence[str], index: Mapping[Atom, int]) -> Group:
    """For every member the bits of its atoms; the k-th atoms of two members differ in their names only."""
    first = sorted(atom for atom in index if group[0] in atom[1:])
    return tuple(tuple(index[_renamed(atom, {group[0]: name})] for atom in first) for name in group)


def _key(state: int, groups: Sequence[Group]) -> tuple[int, ...]:
    """The same for states that differ by swaps within `groups` only."""
    key: list[int] = []
    rest = state
    for group in groups:
        members = []
        for bits in group:
            members.append(sum(1 << k for k, bit in enumerate(bits) if state >> bit & 1))
            for bit in bits:
                rest &= ~(1 << bit)
        key += sorted(members)
    return (rest, *key)


def _path(parent: Mapping[int, tuple[int, Atom]], state: int) -> list[Atom]:
    plan: list[Atom] = []
    while parent[state][0] != state:
        state, name = parent[state]
        plan.append(name)
    return plan[::-1]
