"""Progress in BabyAI: sub-goals as patterns over observations, given by AgentBoard or derived from the mission.

A sub-goal is a tuple of alternative patterns; it is reached when one of them matches a sentence of the observation after an executed
command. `**` stands for anything within the sentence.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from agentrm_jax.envs.babyai.text import VECTORS

Subgoal = tuple[str, ...]


class Ledger(NamedTuple):
    """What of the sub-goals is still open, how many there were, and how many patterns matched so far."""

    remaining: tuple[Subgoal, ...]
    total: int
    matched: int = 0


def matches(observation: str, pattern: str) -> bool:
    """AgentBoard's rule: every piece between the wildcards occurs in one and the same sentence, in whatever order."""
    pattern = pattern.strip()
    pieces = [p.strip(".") for p in pattern.split("**" if "**" in pattern else "*")]
    return any(all(p in sentence for p in pieces) for sentence in observation.split("."))


def _reached(observation: str, subgoal: Subgoal) -> bool:
    return any(matches(observation, p) for p in subgoal)


def official_ledger(alternatives: Sequence[Sequence[str]]) -> Ledger:
    """AgentBoard's annotation: equally long lists of patterns, the i-th of any list stands for sub-goal i."""
    subgoals = tuple(zip(*alternatives, strict=True))
    return Ledger(subgoals, len(subgoals))


def consume_first(ledger: Ledger, observation: str) -> Ledger:
    """AgentBoard's rule for annotated tasks: one executed command reaches one sub-goal at most, the first that matches.

    Each of the alternative lists then loses the first pattern that reads as its own for that sub-goal.
    """
    for i, subgoal in enumerate(ledger.remaining):
        if _reached(observation, subgoal):
            lists = [list(patterns) for patterns in zip(*ledger.remaining, strict=True)]
            for patterns in lists:
                patterns.remove(patterns[i])
            return Ledger(tuple(zip(*lists, strict=True)), ledger.total, ledger.matched + 1)
    return ledger


def consume_all(ledger: Ledger, observation: str) -> Ledger:
    """Our rule for derived sub-goals: everything that the observation shows counts."""
    rest = tuple(s for s in ledger.remaining if not _reached(observation, s))
    return Ledger(rest, ledger.total, ledger.matched + len(ledger.remaining) - len(rest))


def atoms(instr: Any, done: bool = False) -> Iterator[tuple[Any, bool]]:
    """(atomic instruction, whether the engine's verifier holds it for completed), in the order they are to be done."""
    if not hasattr(instr, "instr_a"):
        yield instr, done
        return
    a = (instr.instr_a, done or instr.a_done == "success")
    b = (instr.instr_b, done or instr.b_done == "success")
    for part, part_done in (b, a) if type(instr).__name__ == "AfterInstr" else (a, b):
        yield from atoms(part, part_done)


def derived_ledger(level: Any, observation: str) -> Ledger:
    """Sub-goals of a mission, without those that the first observation shows already.

    Per atomic instruction: the object was seen (both objects of `put next`), a key for each locked door on the way was
    carried, the object to be put elsewhere was carried. The completion of each atomic instruction is one more sub-goal; that
    is not a pattern but told by the engine's verifier (`completed`), so it is counted in `total` only.
    """
    found: dict[Subgoal, None] = {}
    count = 0
    for instr, _ in atoms(level.instrs):
        count += 1
        for subgoal in _steps_of(level, instr):
            found.setdefault(subgoal)
    remaining = tuple(s for s in found if not _reached(observation, s))
    return Ledger(remaining, len(remaining) + count)


def completed(level: Any, verified: bool) -> int:
    """How many atomic instructions of the mission the engine's verifier holds for completed."""
    return sum(done for _, done in atoms(level.instrs, verified))


def _steps_of(level: Any, instr: Any) -> Iterator[Subgoal]:
    moved = getattr(instr, "desc_move", None)
    target = moved or instr.desc
    for color in _keys_needed(level, target.obj_set):
        yield (f"You are carrying a {color} key.",)
    yield _seen(target)
    if moved:
        yield tuple(f"You are carrying a {kind}." for kind in _kinds(moved))
        yield _seen(instr.desc_fixed)


def _kinds(desc: Any) -> list[str]:
    return sorted({f"{obj.color} {obj.type}" for obj in desc.obj_set})


def _seen(desc: Any) -> Subgoal:
    return tuple("There is a " + (f"{k[:-4]}** door **" if k.endswith("door") else f"{k} **") for k in _kinds(desc))


def _keys_needed(level: Any, targets: Sequence[Any]) -> list[str]:
    """Colours of the keys that have to be carried to get at the nearest of `targets`, in order of use."""
    colors: list[str] = []

    def visit(objects: Sequence[Any], depth: int) -> None:
        for color in _locks_before(level, objects) if depth else ():
            keys = [o for o in level.grid.grid if o is not None and o.type == "key" and o.color == color]
            if color not in colors and keys:
                visit(keys, depth - 1)
                colors.append(color)

    visit(targets, 4)
    return list(dict.fromkeys(colors))


def _locks_before(level: Any, targets: Sequence[Any]) -> list[str]:
    """Colours of the locked doors on the way with the fewest of them from the agent to one of `targets` (itself included)."""
    grid = level.grid
    start = (int(level.agent_pos[0]), int(level.agent_pos[1]))
    best: dict[tuple[int, int], list[str]] = {start: []}
    queue = deque([start])
    while queue:
        pos = queue.popleft()
        for dx, dy in VECTORS:
            following = (pos[0] + dx, pos[1] + dy)
            cell = grid.get(*following)
            if cell is not None and cell.type == "wall":
                continue
            locked = cell is not None and cell.type == "door" and cell.is_locked
            locks = [*best[pos], cell.color] if locked else best[pos]
            if following not in best or len(locks) < len(best[following]):
                best[following] = locks
                queue.append(following)  # label correcting: maps are small
    reached = [best[(i, j)] for (i, j) in best if any(grid.get(i, j) is t for t in targets)]
    return min(reached, key=len, default=[])
