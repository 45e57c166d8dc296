"""States that are kept out of training, with what is known of each, to measure a reward model on.

They are kept out by task: the states of a task are too much alike for one to be a surprise when others were trained on.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from agentrm_jax import tree
from agentrm_jax.files import replacing
from agentrm_jax.tree import FlatTree, Node
from agentrm_jax.types import SearchTree

_NAME = "heldout.npz"
_FIELDS = ("tokens", "positions", "subtree_end", "previous")


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOut:
    """Token trees packed into rows, and the states in them whose value is known.

    Attributes:
      rows: `tokens`, `positions`, `subtree_end` and `previous` as in `FlatTree`, each int32[r, t], and what else an objective
        needs to predict.
      row, column: int32[w], where the value of each state is read.
      target: float32[w], its value.
      task: str[w], the key of its task.
      sibling: int32[w], equal for actions that were tried in the same state.
      success: float32[w], 1 or 0 where the episode ended with this state, NaN elsewhere.
      length: int32[w], steps up to and with this state.
    """

    rows: Mapping[str, np.ndarray]
    row: np.ndarray
    column: np.ndarray
    target: np.ndarray
    task: np.ndarray
    sibling: np.ndarray
    success: np.ndarray
    length: np.ndarray


def choose(trees: Sequence[SearchTree], fraction: float) -> tuple[list[SearchTree], list[SearchTree]]:
    """Trees to train on and trees to hold out: about `fraction` of the tasks, of every environment alike, never all.

    Which tasks these are depends on their names only, so runs on the same trees hold out the same ones. Both come in the order of
    their tasks' names: a search writes trees in the order in which tasks finished, and timing is nothing to learn from.
    """
    trees = sorted(trees, key=_by_task)
    out = tasks({t.task.key: t.task.env for t in trees}, fraction)
    return [t for t in trees if t.task.key not in out], [t for t in trees if t.task.key in out]


def tasks(kinds: Mapping[str, str], fraction: float) -> set[str]:
    """The keys of about `fraction` of the tasks, of every kind alike, never all; `kinds` says of which kind the task of each key is."""
    by_kind: dict[str, list[str]] = {}
    for key, kind in kinds.items():
        by_kind.setdefault(kind, []).append(key)
    spread = []
    for keys in by_kind.values():
        keys.sort(key=lambda key: hashlib.blake2b(key.encode(errors="replace"), digest_size=8).digest())
        spread += [((place + 0.5) / len(keys), key) for place, key in enumerate(keys)]
    count = min(round(fraction * len(spread)), len(spread) - 1)
    return {key for _, key in sorted(spread)[: max(count, 0)]}


@dataclasses.dataclass(frozen=True)
class Fact:
    """What is known of a held-out state, as in `HeldOut`; equal `sibling`s were tried in the same state."""

    task: str
    sibling: Hashable
    success: float
    length: int


def collect(
    parts: Iterable[tuple[SearchTree, Sequence[Node]]], row_length: int, *, extra: tuple[str, ...] = ()
) -> HeldOut | None:
    """`packed` of pieces of value trees (`targets.value_tree`), each with the search tree it was made from."""

    def of(one: SearchTree) -> Callable[[Node], Fact]:
        def fact(node: Node) -> Fact:
            record = one.nodes[node.origin]
            success = float(record.outcome.success) if record.outcome.done else np.nan
            return Fact(one.task.key, (id(one), record.parent), success, _depth(one, node.origin))

        return fact

    return packed(((nodes, of(one)) for one, nodes in parts), row_length, extra=extra)


def packed(
    pieces: Iterable[tuple[Sequence[Node], Callable[[Node], Fact]]], row_length: int, *, extra: tuple[str, ...] = ()
) -> HeldOut | None:
    """Packs trees of at most `row_length` tokens, each with what tells the facts of its nodes whose value is known.

    `extra` names further arrays of `FlatTree` that rows have.

    None if no piece holds a state whose value is known.
    """
    flats: list[FlatTree] = []
    states: list[tuple[int, int, float]] = []  # number of the piece, token in it, target
    facts: list[tuple[str, int, float, int]] = []  # task, sibling, success, length
    numbers: dict[Hashable, int] = {}  # sibling -> its number
    for nodes, fact_of in pieces:
        flat = tree.flatten(nodes)
        found = np.flatnonzero(flat.value_weight > 0)
        for at in found:
            fact = fact_of(nodes[flat.node[at]])
            states.append((len(flats), int(at), float(flat.value[at])))
            facts.append((fact.task, numbers.setdefault(fact.sibling, len(numbers)), fact.success, fact.length))
        if found.size:
            flats.append(flat)
    if not flats:
        return None
    groups = tree.pack(flats, row_length)
    place: dict[int, tuple[int, int]] = {}
    for row, group in enumerate(groups):
        starts = np.cumsum([0, *(len(flats[i]) for i in group)])
        place |= {i: (row, int(start)) for i, start in zip(group, starts, strict=False)}
    rows = [tree.to_row([flats[i] for i in group], row_length) for group in groups]
    known = list(zip(*facts, strict=True))
    return HeldOut(
        rows={name: np.stack([getattr(row, name) for row in rows]) for name in (*_FIELDS, *extra)},
        row=np.array([place[piece][0] for piece, _, _ in states], np.int32),
        column=np.array([place[piece][1] + at for piece, at, _ in states], np.int32),
        target=np.array([target for _, _, target in states], np.float32),
        task=np.array(known[0]),
        sibling=np.array(known[1], np.int32),
        success=np.array(known[2], np.float32),
        length=np.array(known[3], np.int32),
    )


def write(folder: Path, heldout: HeldOut) -> None:
    """Writes held-out states into a dataset's folder."""
    arrays = dict(heldout.rows) | {
        f.name: getattr(heldout, f.name) for f in dataclasses.fields(heldout) if f.name != "rows"
    }
    with replacing(folder / _NAME) as draft, draft.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read(folder: Path) -> HeldOut | None:
    """What `write` wrote; None if nothing is held out."""
    path = folder / _NAME
    if not path.exists():
        return None
    with np.load(path) as arrays:
        states = {f.name: arrays[f.name] for f in dataclasses.fields(HeldOut) if f.name != "rows"}
        return HeldOut(rows={name: arrays[name] for name in arrays.files if name not in states}, **states)


def _by_task(one: SearchTree) -> tuple[str, str, list[str]]:
    """What trees are ordered by; those of one task by what they hold."""
    said = [n.outcome.observation if n.action is None else n.action.text for n in one.nodes]
    return one.task.key, one.goal, said


def _depth(one: SearchTree, node: int) -> int:
    """Actions on the path to a node."""
    depth = 0
    while (node := one.nodes[node].parent) >= 0:
        depth += 1
    return depth
