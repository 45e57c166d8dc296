"""Planner for small STRIPS problems: greedy best-first search with the FF heuristic (Hoffmann & Nebel 2001).

States are Python integers, one bit an atom. Two queues, one for all successors and one for those reached by helpful
actions, are served in turn (Helmert 2006); successors inherit their parent's estimate until they are expanded.
The plan is then shortened: operators that the rest does not need go first, then shorter ones are searched for.
Problems of few states get a shortest plan (`shortest`).
"""

import dataclasses
import functools
import heapq
import itertools
import time
from collections import deque
from collections.abc import Mapping, Sequence

from agentrm_jax.envs.pddl.engine import Atom, Operator, State, apply
from agentrm_jax.envs.pddl.shortest import shortest

_EXHAUSTIVE = 200_000  # states times operators for which all plans are looked at
SHORTENING = (2.0, 1.0)  # weights of the estimate against the length so far in searches for a shorter plan


@dataclasses.dataclass(frozen=True, slots=True)
class Compiled:
    """Operators over bit masks; `pre_ids` and `add_ids` list the same bits as integers for the relaxed graph."""

    names: tuple[Atom, ...]
    pre: tuple[int, ...]
    neg: tuple[int, ...]
    add: tuple[int, ...]
    keep: tuple[int, ...]
    pre_ids: tuple[tuple[int, ...], ...]
    add_ids: tuple[tuple[int, ...], ...]
    needed_by: tuple[tuple[int, ...], ...]
    free: tuple[int, ...]


def compile_operators(operators: Mapping[Atom, Operator]) -> tuple[Compiled, dict[Atom, int]]:
    """(operators as masks, bit index of every atom they mention)."""
    index: dict[Atom, int] = {}
    for operator in operators.values():
        for atom in sorted(operator.pre | operator.neg | operator.add | operator.delete):
            index.setdefault(atom, len(index))

    def ids(atoms: State) -> tuple[int, ...]:
        return tuple(sorted(index[a] for a in atoms))

    def mask(atoms: State) -> int:
        return sum(1 << index[a] for a in atoms)

    items = list(operators.values())
    needed_by: list[list[int]] = [[] for _ in index]
    for i, operator in enumerate(items):
        for atom in operator.pre:
            needed_by[index[atom]].append(i)
    compiled = Compiled(
        names=tuple(o.name for o in items),
        pre=tuple(mask(o.pre) for o in items),
        neg=tuple(mask(o.neg) for o in items),
        add=tuple(mask(o.add) for o in items),
        keep=tuple(~mask(o.delete) for o in items),
        pre_ids=tuple(ids(o.pre) for o in items),
        add_ids=tuple(ids(o.add) for o in items),
        needed_by=tuple(map(tuple, needed_by)),
        free=tuple(i for i, o in enumerate(items) if not o.pre),
    )
    return compiled, index


def _relaxed_plan(c: Compiled, state: int, goal: Sequence[int]) -> tuple[float, list[int], list[int]]:
    """(length of a plan without deletions, applicable operators, those of them that start such a plan).

    Negative preconditions are ignored in the relaxed graph. Length is infinite if a goal atom is unreachable.
    """
    unmet = [len(ids) for ids in c.pre_ids]
    by: dict[int, int] = {}  # atom -> first operator that adds it, -1 for the state's own
    queue: deque[int] = deque()
    left = set(goal)
    bits = state
    while bits:
        low = bits & -bits
        atom = low.bit_length() - 1
        by[atom] = -1
        queue.append(atom)
        left.discard(atom)
        bits ^= low
    applicable: list[int] = []
    for i in c.free:
        applicable.append(i)
        for atom in c.add_ids[i]:
            if atom not in by:
                by[atom] = i
                queue.append(atom)
                left.discard(atom)
    own = len(queue)
    while queue:
        atom = queue.popleft()
        own -= 1
        for i in c.needed_by[atom]:
            unmet[i] -= 1
            if not unmet[i]:
                if own >= 0 and state & c.pre[i] == c.pre[i]:
                    applicable.append(i)
                for added in c.add_ids[i]:
                    if added not in by:
                        by[added] = i
                        queue.append(added)
                        left.discard(added)
        if own < 0 and not left:
            break
    if left:
        return float("inf"), [], []
    chosen: set[int] = set()
    stack = [atom for atom in goal if by[atom] >= 0]
    while stack:
        i = by[stack.pop()]
        if i not in chosen:
            chosen.add(i)
            stack.extend(atom for atom in c.pre_ids[i] if by[atom] >= 0)
    applicable = [i for i in applicable if not c.neg[i] & state]
    wanted = {atom for i in chosen for atom in c.add_ids[i] if by.get(atom) == i}
    first = {atom for i in chosen & set(applicable) for atom in c.add_ids[i] if atom in wanted}
    return len(chosen), applicable, [i for i in applicable if not first.isdisjoint(c.add_ids[i])]


def _search(
    c: Compiled, start: int, goal: Sequence[int], weight: float, expansions: int, shorter_than: int, deadline: float
) -> list[int] | None:
    """Operator indices from `start` to all of `goal`; None when out of budget or unreachable."""
    goal_mask = sum(1 << atom for atom in goal)
    parent: dict[int, tuple[int, int]] = {start: (-1, -1)}
    depth = {start: 0}
    closed: set[int] = set()
    order = itertools.count()
    everything: list[tuple[float, int, int]] = [(0.0, 0, start)]
    helpful: list[tuple[float, int, int]] = []
    bonus, best = 0, float("inf")
    while (everything or helpful) and len(closed) < expansions:
        if helpful and (bonus > 0 or not everything or next(order) % 2):
            queue, bonus = helpful, bonus - 1
        else:
            queue = everything if everything else helpful
        state = heapq.heappop(queue)[2]
        if state in closed:
            continue
        closed.add(state)
        if state & goal_mask == goal_mask:
            return _path(parent, state)
        if time.monotonic() > deadline:
            return None
        h, applicable, preferred = _relaxed_plan(c, state, goal)
        if h < best:
            best, bonus = h, bonus + 50
        chosen = set(preferred)
        g = depth[state] + 1
        if not applicable or g >= shorter_than:
            continue
        for i in applicable:
            after = (state & c.keep[i]) | c.add[i]
            if after in closed or g >= depth.get(after, 1 << 30):
                continue
            parent[after], depth[after] = (state, i), g
            entry = (weight * h + g, next(order), after)
            heapq.heappush(everything, entry)
            if i in chosen:
                heapq.heappush(helpful, entry)
    return None


def _one_by_one(c: Compiled, start: int, goal: Sequence[int], expansions: int, deadline: float) -> list[int] | None:
    """Reach the goal atoms in the given order, keeping those already reached; None if one of them cannot be."""
    plan: list[int] = []
    state = start
    for k in range(1, len(goal) + 1):
        part = _search(c, state, goal[:k], 1.0, expansions, 1 << 30, deadline)
        if part is None:
            return None
        plan += part
        for i in part:
            state = (state & c.keep[i]) | c.add[i]
    return plan


def _path(parent: Mapping[int, tuple[int, int]], state: int) -> list[int]:
    plan: list[int] = []
    while parent[state][1] >= 0:
        state, i = parent[state]
        plan.append(i)
    return plan[::-1]


def _without_detours(c: Compiled, start: int, goal_mask: int, plan: list[int]) -> list[int]:
    """Leave out operators (and what only they enabled) as long as the rest still reaches the goal."""
    k = 0
    while k < len(plan):
        state, kept = start, []
        for j, i in enumerate(plan):
            if j != k and state & c.pre[i] == c.pre[i] and not state & c.neg[i]:
                state = (state & c.keep[i]) | c.add[i]
                kept.append(i)
        if state & goal_mask == goal_mask:
            plan = kept
        else:
            k += 1
    return plan


def plan(operators: Mapping[Atom, Operator], init: State, goal: Sequence[Atom], seconds: float = 20.0) -> list[Atom]:
    """Names of operators that lead from `init` to `goal`; empty if there is nothing to do.

    A shortest plan, if the problem has few states. Else all goals at once and one after another (in two orders) are tried, and
    the shortest plan is shortened further; it need not be a shortest one then.
    Budgets count expanded states, so the result is the same everywhere unless `seconds` runs out.

    Raises:
      TimeoutError: nothing was found within `seconds` (or the goal is unreachable).
    """
    c, index = compile_operators(operators)
    state = sum(1 << index[atom] for atom in init if atom in index)
    if any(atom not in index and atom not in init for atom in goal):
        raise TimeoutError("the goal cannot be reached")
    if (best_of_all := shortest(operators, init, goal, index, _EXHAUSTIVE // max(1, len(operators)))) is not None:
        return best_of_all
    wanted = [index[atom] for atom in goal if atom in index]
    mask = sum(1 << atom for atom in wanted)
    deadline = time.monotonic() + seconds
    tries = [
        _search(c, state, wanted, 5.0, 1000, 1 << 30, deadline),
        _one_by_one(c, state, wanted, 1000, deadline),
        _one_by_one(c, state, wanted[::-1], 1000, deadline),
    ]
    plans = [_without_detours(c, state, mask, found) for found in tries if found is not None]
    if not plans:
        last = _search(c, state, wanted, 5.0, 1 << 30, 1 << 30, deadline)
        if last is None:
            raise TimeoutError(f"no plan within {seconds:g} s")
        plans = [_without_detours(c, state, mask, last)]
    best = min(plans, key=len)
    for weight in SHORTENING:
        shorter = _search(c, state, wanted, weight, 500, len(best), deadline)
        if shorter is not None and len(shorter) < len(best):
            best = _without_detours(c, state, mask, shorter)
    return [c.names[i] for i in best]


def holds(operators: Mapping[Atom, Operator], init: State, goal: Sequence[Atom], steps: Sequence[Atom]) -> bool:
    """Whether `steps` can be carried out from `init` and end in `goal`."""
    state = functools.reduce(lambda s, name: apply(operators[name], s) or frozenset(), steps, init)
    return all(atom in state for atom in goal)
