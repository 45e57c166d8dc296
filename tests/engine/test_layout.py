"""How prefill batches are cut: trees of paths, and batches that fill the sizes that are compiled."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agentrm_jax.engine import layout


def ids(size, seed):
    return np.random.default_rng(seed).integers(4, 97, size).astype(np.int32)


@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=9), min_size=1, max_size=12, unique_by=tuple))
def test_rows_are_trees_of_their_paths(paths):
    """Every path lies in at most one row, once, whole up to the row's size; a token sees its own path and nothing else."""
    cached = np.array([7, 5], np.int32)
    whole = [np.array([9, 9, *p], np.int32) for p in paths]
    rows = layout.rows(cached, whole, (3, 6))
    placed = [p.tobytes() for row in rows for p in row.paths]
    assert len(set(placed)) == len(placed) > 0
    for row in rows:
        assert len(row.tokens) <= 6
        for path, index in zip(row.paths, row.index, strict=True):
            np.testing.assert_array_equal(row.tokens[index], path[2:8])
            np.testing.assert_array_equal(row.depth[index], np.arange(len(index)))
            for i in index:
                seen = [j for j in range(i + 1) if i < row.subtree_end[j]]
                assert seen == [j for j in index if j <= i]
    left = [p for p in whole if p.tobytes() not in placed]
    begun = {(int(p[2])) for row in rows for p in row.paths}
    assert all(int(p[2]) in begun for p in left)  # the next round finds their beginning cached


def test_rows_fill_batches_in_order():
    made = [layout.rows(np.zeros(0, np.int32), [ids(size, size)], (64,))[0] for size in (5, 40, 17, 16, 33)]
    batches = layout.fill(made, 16, (4, 8))
    assert [row for batch in batches for row in batch] == made
    for batch in batches:
        assert sum(-(-len(row.tokens) // 16) for row in batch) <= 8


def test_batches_fill_the_allowed_sizes():
    sizes = (8, 24, 64)
    assert layout.cover(64, sizes) == (64,)
    assert layout.cover(8, sizes) == (8,)
    assert sum(layout.cover(25, sizes)) == 25
    for count in range(1, 150):
        batches = layout.cover(count, sizes)
        assert sum(batches) == count
        assert max(batches) <= 64
