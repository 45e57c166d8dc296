"""How prefill batches are cut: paths become rows (token trees after one cached history), rows become tiles of a batch."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from agentrm_jax.engine.prefill import PrefillBatch
from agentrm_jax.engine.prefix import common_length

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


@dataclasses.dataclass(frozen=True, eq=False)
class PrefillRow:
    """New tokens after one cached history: a token tree, flattened depth first.

    Attributes:
      cached: int32[s] slots of the history.
      tokens, depth, subtree_end: int32[t] as in `tree.FlatTree`, depth and indices counted from the first new token.
      paths: whole paths that run through the row, history included; a path may go on beyond it.
      index: for each of `paths`, the indices of its tokens in the row.
    """

    cached: np.ndarray
    tokens: np.ndarray
    depth: np.ndarray
    subtree_end: np.ndarray
    paths: list[np.ndarray]
    index: list[np.ndarray]


def rows(cached: np.ndarray, paths: Sequence[np.ndarray], sizes: Sequence[int]) -> list[PrefillRow]:
    """Rows that read on in `paths`, which all begin with the same cached tokens, at `cached`.

    Paths with a common new beginning share a row of at most `sizes[-1]` tokens; those that do not fit are left out (the
    beginning is cached for the next round). Others share a row only if it stays as small as `sizes[0]`.
    """
    start = len(cached)
    ordered = sorted(paths, key=lambda p: p[start:].astype(">i4").tobytes())
    made: list[list[np.ndarray]] = []
    size = 0
    for path in ordered:
        new = path[start : start + sizes[-1]]
        common = common_length(made[-1][-1][start : start + sizes[-1]], new) if made else 0
        grown = size + len(new) - common
        if not made or (common == 0 and grown > sizes[0]):
            made.append([path])
            size = len(new)
        elif grown <= sizes[-1]:
            made[-1].append(path)
            size = grown
    return [_row(cached, group, sizes[-1]) for group in made]


def _row(cached: np.ndarray, paths: list[np.ndarray], most: int) -> PrefillRow:
    """The token tree of paths in lexicographic order."""
    start = len(cached)
    tokens: list[np.ndarray] = []
    index: list[np.ndarray] = []
    ends: list[np.ndarray] = []  # (token, end of its subtree) of branches that are complete
    size = 0
    for path in paths:
        new = path[start : start + most]
        common = common_length(paths[len(index) - 1][start : start + most], new) if index else 0
        before = index[-1] if index else np.zeros(0, np.int32)
        own = np.arange(size, size + len(new) - common, dtype=np.int32)
        if len(own):
            ends.append(np.stack([before[common:], np.full(len(before) - common, size, np.int32)]))
        tokens.append(new[common:])
        index.append(np.concatenate([before[:common], own]))
        size += len(own)
    depth, subtree_end = np.zeros(size, np.int32), np.full(size, size, np.int32)
    for at in index:
        depth[at] = np.arange(len(at))
    for at, end in ends:
        subtree_end[at] = end
    return PrefillRow(cached, np.concatenate(tokens).astype(np.int32), depth, subtree_end, paths, index)


def tile(new: int) -> int:
    """Tokens of a tile where histories have up to `new` new ones: small tiles leave little empty, large ones gather less."""
    return min(new, max(16, new // 4))


def fill(rows: Sequence[PrefillRow], width: int, sizes: tuple[int, ...]) -> list[list[PrefillRow]]:
    """Rows in order, in batches that fill the allowed numbers of tiles (of `width` tokens) well."""
    counts = [-(-len(row.tokens) // width) for row in rows]
    left = sum(counts)
    out: list[list[PrefillRow]] = []
    room = 0
    for row, count in zip(rows, counts, strict=True):
        if count > room:
            room = next(s for s in sizes if s >= max(cover(left, sizes)[0], count))
            out.append([])
        out[-1].append(row)
        room -= count
        left -= count
    return out


def tiles(
    rows: Sequence[PrefillRow],
    slots: Sequence[np.ndarray],
    shape: tuple[int, int],
    new: int,
    columns: int,
    nowhere: int,
) -> tuple[PrefillBatch, np.ndarray]:
    """The batch of rows whose tokens go to `slots`, and int32[shape] slots for its entries.

    Args:
      shape: number of tiles and tokens of a tile, padding included.
      new, columns: new and cached tokens that a row has room for.
      nowhere: a slot past the pool's end, for padding.
    """
    count, width = shape
    batch = PrefillBatch(
        tokens=np.zeros((count, width), np.int32),
        positions=np.zeros((count, width), np.int32),
        query=np.full((count, width), -1, np.int32),
        previous=np.full((count, width), -1, np.int32),
        context=np.zeros((count, columns), np.int32),
        context_length=np.zeros(count, np.int32),
        new=np.zeros((count, new), np.int32),
        subtree_end=np.zeros((count, new), np.int32),
    )
    at = np.full((count, width), nowhere, np.int32)
    tokens, positions, query, previous = (
        x.reshape(-1) for x in (batch.tokens, batch.positions, batch.query, batch.previous)
    )
    first = 0
    for row, own in zip(rows, slots, strict=True):
        size, cached = len(row.tokens), len(row.cached)
        begin, stop = first * width, first * width + size
        tokens[begin:stop] = row.tokens
        positions[begin:stop] = row.depth + cached
        query[begin:stop] = np.arange(size)
        for index in row.index:
            previous[begin + index[1:]] = begin + index[:-1]
        at.reshape(-1)[begin:stop] = own
        last = first - (-size // width)
        batch.context[first:last, :cached] = row.cached
        batch.context_length[first:last] = cached
        batch.new[first:last, :size] = np.arange(begin, stop)
        batch.subtree_end[first:last, :size] = row.subtree_end
        first = last
    return batch, at


def bucket(size: int, sizes: tuple[int, ...]) -> int:
    """The smallest allowed size that is enough, or the largest."""
    return next((s for s in sizes if s >= size), sizes[-1])
