"""How much the targets of a dataset weigh: as they are, or balanced over tasks and over values. The mean weight stays 1."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

from agentrm_jax.tree import Node

BINS = 10
Pieces = Sequence[tuple[str, Sequence[Node]]]  # a task's key, and a piece of one of its value trees


def balanced(pieces: Pieces, *, values: bool = False, tasks: bool = False) -> list[list[Node]]:
    """The pieces with the weights of their targets changed.

    Args:
      values: each tenth of [0, 1] in which a target lies weighs the same; targets outside count to the first or last one.
      tasks: each task weighs the same, after the former.
    """
    found = [list(nodes) for _, nodes in pieces]
    keys = [key for key, _ in pieces]
    if values:
        found = _shared(found, keys, lambda _, node: max(min(int(node.value * BINS), BINS - 1), 0))
    if tasks:
        found = _shared(found, keys, lambda key, _: key)
    return found


def _shared(pieces: list[list[Node]], keys: Sequence[str], part: Callable[[str, Node], Hashable]) -> list[list[Node]]:
    """Weights scaled so that all parts have the same sum, and the sum over all stays what it was."""
    sums: Counter[Hashable] = Counter()
    for key, nodes in zip(keys, pieces, strict=True):
        for node in nodes:
            if node.value_weight > 0:
                sums[part(key, node)] += node.value_weight  # type: ignore[assignment]
    share = sum(sums.values()) / max(len(sums), 1)
    return [
        [
            dataclasses.replace(n, value_weight=n.value_weight * share / sums[part(key, n)])
            if n.value_weight > 0
            else n
            for n in nodes
        ]
        for key, nodes in zip(keys, pieces, strict=True)
    ]
