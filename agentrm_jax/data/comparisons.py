"""Conversations of which some are better than others, as one token tree for losses that compare them (pairwise, listwise)."""

import dataclasses
from collections.abc import Sequence

from agentrm_jax.tree import Node, Segment, merge_paths, path_ends


def compared(paths: Sequence[Sequence[Segment]], values: Sequence[float], *, weight: float = 1.0) -> list[Node]:
    """One tree of conversations that are compared with each other: a preference's two sides, or N answers with grades.

    What they share is there once. Each is read at its end, all ends are one group, and of two the one with the higher value is
    better: 1 and 0 for the sides of a preference. Paths that are the same have the mean of their values. To compare in several
    groups, make several trees: they may share a row.

    Args:
      paths: the segments of each conversation, none empty.
      values: of each.
      weight: of the comparison.

    Returns: the tree; empty where there is nothing to compare, because all values, or all paths, are equal.
    """
    nodes = merge_paths(paths)
    given: dict[int, list[float]] = {}
    for end, value in zip(path_ends(nodes, paths), values, strict=True):
        given.setdefault(end, []).append(value)
    means = {end: sum(found) / len(found) for end, found in given.items()}
    if len(set(means.values())) < 2:
        return []
    return [
        dataclasses.replace(n, value=means[i], value_weight=weight, group=0) if i in means else n
        for i, n in enumerate(nodes)
    ]
