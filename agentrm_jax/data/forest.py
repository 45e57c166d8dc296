"""Token trees of what rows teach: paths of one task share what they begin with, and what is compared lies in one tree."""

import dataclasses
import math
from collections.abc import Hashable, Iterable, Sequence

from agentrm_jax.data.heldout import Fact
from agentrm_jax.data.lessons import Path, Unit
from agentrm_jax.tree import Node, Segment


@dataclasses.dataclass(frozen=True, eq=False)
class LabelTree:
    """A token tree with its targets.

    Attributes:
      task: of all its paths.
      nodes: with values; a node's `origin` is the index of its fact.
      facts: what is known of the states that are targets.
    """

    task: str
    nodes: list[Node]
    facts: list[Fact]


def gathered(units: Iterable[Unit], max_tokens: int) -> tuple[list[Unit], int, int]:
    """Units with the single samples of each task put together, to be compared with each other.

    Samples of a task that do not fit a tree of `max_tokens` are compared in parts, in which high and low rewards alternate. Samples
    that nothing can be compared with are left out.

    Returns: the units, how many samples are too long, and how many had nothing to be compared with.
    """
    out: list[Unit] = []
    alone: dict[str, list[Unit]] = {}
    for unit in units:
        if unit.compared == "each other" and len(unit.paths) == 1:
            alone.setdefault(unit.task, []).append(unit)
        else:
            out.append(unit)
    long = lonely = 0
    for task, found in alone.items():
        part = _Growing(task)
        parts: list[list[Unit]] = [[]]
        for unit in _alternating(_distinct(found)):
            if part.cost(unit) > max_tokens - part.size and parts[-1]:
                part, parts = _Growing(task), [*parts, []]
            if part.cost(unit) > max_tokens:
                long += 1
                continue
            part.add(unit)
            parts[-1].append(unit)
        for members in parts:
            paths = tuple(path for unit in members for path in unit.paths)
            if len({value for path in paths for value in path.targets.values()}) > 1:
                out.append(dataclasses.replace(members[0], paths=paths))
            else:
                lonely += len(paths)
    return out, long, lonely


def grown(units: Iterable[Unit], max_tokens: int) -> tuple[list[LabelTree], int]:
    """Trees of at most `max_tokens` tokens, in the order in which their tasks come first, and how many units are longer than that.

    A value that several paths have at one node is their mean, and weighs as much as they do together.
    """
    trees: dict[str, list[_Growing]] = {}
    lost = 0
    for unit in units:
        of_task = trees.setdefault(unit.task, [])
        if not of_task or of_task[-1].size + of_task[-1].cost(unit) > max_tokens:
            fresh = _Growing(unit.task)
            if fresh.cost(unit) > max_tokens:
                lost += 1
                continue
            of_task.append(fresh)
        of_task[-1].add(unit)
    return [one.tree() for of_task in trees.values() for one in of_task], lost


def _distinct(units: Iterable[Unit]) -> list[Unit]:
    """Samples that differ: of those that say the same the first, with the mean of their rewards."""
    same: dict[Hashable, list[Unit]] = {}
    for unit in units:
        same.setdefault(tuple(s.tokens.tobytes() for s in unit.paths[0].segments), []).append(unit)
    out = []
    for found in same.values():
        first = found[0].paths[0]
        (at,) = first.targets
        mean = sum(unit.paths[0].targets[at] for unit in found) / len(found)
        out.append(dataclasses.replace(found[0], paths=(dataclasses.replace(first, targets={at: mean}),)))
    return out


def _alternating(units: Sequence[Unit]) -> list[Unit]:
    """Highest, lowest, second highest, second lowest, ... target."""
    ordered = sorted(units, key=lambda unit: -max(unit.paths[0].targets.values()))
    return [ordered[-(i // 2) - 1 if i % 2 else i // 2] for i in range(len(ordered))]


@dataclasses.dataclass
class _Growing:
    """A tree that paths are added to; `values` are those of each node's targets, `groups` what they are compared within."""

    task: str
    size: int = 0
    nodes: list[Node] = dataclasses.field(default_factory=list)
    values: list[list[float]] = dataclasses.field(default_factory=list)
    facts: list[Fact] = dataclasses.field(default_factory=list)
    index: dict[Hashable, int] = dataclasses.field(default_factory=dict)
    groups: dict[Hashable, int] = dataclasses.field(default_factory=dict)
    units: int = 0
    mark: object = dataclasses.field(default_factory=object)  # tells its states from those of other trees

    def cost(self, unit: Unit) -> int:
        """Tokens that a unit would add."""
        new: dict[Hashable, int] = {}
        tokens = 0
        for number, path in enumerate(unit.paths):
            parent = -1
            for i, segment in enumerate(path.segments):
                key = self._key(parent, segment, self._own(unit, number, path, i))
                at = self.index.get(key, new.get(key))
                if at is None:
                    at = new[key] = -2 - len(new)
                    tokens += len(segment.tokens)
                parent = at
        return tokens

    def add(self, unit: Unit) -> None:
        for number, path in enumerate(unit.paths):
            parent, depth = -1, 0
            for i, segment in enumerate(path.segments):
                key = self._key(parent, segment, self._own(unit, number, path, i))
                depth += segment.kind == "action"
                at = self.index.get(key)
                if at is None:
                    at = self.index[key] = len(self.nodes)
                    self.nodes.append(Node(segment, parent, weight=0.0))
                    self.values.append([])
                    self.size += len(segment.tokens)
                node = dataclasses.replace(self.nodes[at], weight=self.nodes[at].weight + 1)
                if i in path.targets:
                    node = self._valued(node, unit, path, i, depth)
                    self.values[at].append(path.targets[i])
                self.nodes[at] = node
                parent = at
        self.units += 1

    def tree(self) -> LabelTree:
        nodes = [
            dataclasses.replace(n, value=sum(v) / len(v), value_weight=float(len(v)), count=n.weight) if v else n
            for n, v in zip(self.nodes, self.values, strict=True)
        ]
        return LabelTree(self.task, nodes, self.facts)

    def _own(self, unit: Unit, number: int, path: Path, i: int) -> Hashable:
        """What keeps a path's end from being shared."""
        return (self.units, number) if unit.apart and i == len(path.segments) - 1 else None

    def _key(self, parent: int, segment: Segment, own: Hashable) -> Hashable:
        return parent, segment.kind, segment.loss, segment.tokens.tobytes(), own

    def _valued(self, node: Node, unit: Unit, path: Path, i: int, depth: int) -> Node:
        """The node as a target; where several paths meet in it, what is known of the first stands."""
        if node.origin >= 0:
            return node
        sibling: Hashable = node.parent
        group = -1
        if unit.compared != "nothing":
            sibling = ("unit", self.units) if unit.compared == "each other" else node.parent
            group = self.groups.setdefault(sibling, len(self.groups))
        ends = i == len(path.segments) - 1
        success = path.success if ends else math.nan
        self.facts.append(Fact(self.task, (self.mark, sibling), success, depth))
        return dataclasses.replace(node, origin=len(self.facts) - 1, group=group)
