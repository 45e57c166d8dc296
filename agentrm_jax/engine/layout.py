"""Small decisions of the engine as functions of lists and arrays: how to cut batches, and how paths and trees lie in them."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from agentrm_jax import tree

_CALL_ROWS = 8  # what a call costs beside its rows, counted in rows


@functools.lru_cache(maxsize=4096)
def cover(count: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Batches of at most the given sizes for `count` rows that cost least, a call costing its padded rows and some more."""
    best: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    for n in range(1, count + 1):
        options = []
        for size in sizes:
            cost, batches = best[max(n - size, 0)]
            options.append((cost + size + _CALL_ROWS, (min(n, size), *batches)))
        best.append(min(options, key=lambda o: o[0]))
    return best[count][1]


def fold(seed: int, index: int) -> int:
    """A 32-bit seed for sample `index` of a request (a Weyl step and a finaliser: neighbours are unrelated)."""
    x = (seed * 0x9E3779B1 + index * 0x85EBCA77 + 0x165667B1) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    x = ((x ^ (x >> 12)) * 0x297A2D39) & 0xFFFFFFFF
    return x ^ (x >> 15)


def common_length(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    return int(different.argmax()) if different.any() else n


def after(segments: Sequence[tree.Segment], skip: int) -> list[tree.Segment]:
    """The path without its first `skip` tokens; a segment that is cut keeps its rest."""
    rest = []
    for segment in segments:
        size = len(segment.tokens)
        if skip >= size:
            skip -= size
            continue
        rest.append(dataclasses.replace(segment, tokens=segment.tokens[skip:]) if skip else segment)
        skip = 0
    return rest


def find(nodes: Sequence[tree.Node], path: Sequence[tree.Segment]) -> int:
    """Index of the node at the end of `path` in a merged tree."""
    parent = -1
    for segment in path:
        parent = next(
            i
            for i, n in enumerate(nodes)
            if n.parent == parent
            and n.segment.kind == segment.kind
            and np.array_equal(n.segment.tokens, segment.tokens)
        )
    return parent


def line(tokens: np.ndarray) -> tree.FlatTree:
    """Tokens in a row as a flat tree of one node (`tree.flatten` does the same, slower)."""
    size = len(tokens)
    index, zeros = np.arange(size, dtype=np.int32), np.zeros(size, np.float32)
    return tree.FlatTree(
        tokens.astype(np.int32),
        index,
        np.full(size, size, np.int32),
        index - 1,
        zeros,
        zeros,
        zeros,
        np.zeros(size, np.int32),
    )


def leaf_paths(flat: tree.FlatTree) -> list[np.ndarray]:
    """For every leaf of a flat tree, the indices of the tokens on its path."""
    leaf = np.ones(len(flat), bool)
    leaf[flat.previous[flat.previous >= 0]] = False
    return [np.flatnonzero(flat.subtree_end[: i + 1] > i) for i in np.flatnonzero(leaf)]
