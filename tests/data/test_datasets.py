"""Trees on disk and as packed batches: each sees itself only, every one is used, and a stream goes on where it stopped."""

import collections
import dataclasses

import numpy as np
import pytest

from agentrm_jax import tree
from agentrm_jax.data import bootstrap
from agentrm_jax.data import datasets as pipeline
from agentrm_jax.tree import FlatTree, Node, Segment
from agentrm_jax.types import UserError

LENGTH = 16
FIELDS = (
    *("tokens", "positions", "subtree_end", "previous", "group", "before"),
    *("loss_weight", "value", "value_weight", "count"),
)


def branching(i: int) -> FlatTree:
    """A tree of 4 to 10 tokens, all of them `i`, with two branches."""
    sizes = (1 + i % 3, 1 + i % 2, 2 + i % 5)
    segments = [Segment(np.full(s, i, np.int32), "action", k > 0) for k, s in enumerate(sizes)]
    nodes = [Node(segments[0], -1), Node(segments[1], 0, value=0.5, value_weight=1.0), Node(segments[2], 0, weight=2.0)]
    return tree.flatten(nodes)


def rows_of(flats: list[FlatTree]) -> list[dict[str, np.ndarray]]:
    return [{f: getattr(t, f) for f in FIELDS} for t in flats]


FLATS = [branching(i) for i in range(1, 33)]
SOURCE = rows_of(FLATS)


def stream(**options):
    return iter(pipeline.batches(SOURCE, **{"rows": 4, "row_length": LENGTH, "seed": 3} | options))


def test_each_tree_of_a_packed_batch_is_whole_and_sees_itself_only():
    data, used = stream(), collections.Counter[int]()
    for _ in range(6):
        batch = next(data)
        assert {k: v.shape for k, v in batch.items()} == dict.fromkeys(FIELDS, (4, LENGTH))
        for row in range(4):
            got = {k: v[row] for k, v in batch.items()}
            seen = tree.visible(got["subtree_end"])
            at = 0
            while at < LENGTH and got["tokens"][at]:
                i = int(got["tokens"][at])
                flat, stop = FLATS[i - 1], at + len(FLATS[i - 1])
                used[i] += 1
                np.testing.assert_array_equal(seen[at:stop, at:stop], tree.visible(flat.subtree_end))
                assert not seen[at:stop, :at].any()
                assert not seen[stop:, at:stop].any()
                expected = {f: getattr(flat, f) for f in FIELDS} | {
                    "subtree_end": flat.subtree_end + at,
                    "previous": np.where(flat.previous < 0, -1, flat.previous + at),
                }
                for field in FIELDS:
                    np.testing.assert_array_equal(got[field][at:stop], expected[field])
                at = stop
            np.testing.assert_array_equal(seen[at:, at:], np.eye(LENGTH - at, dtype=bool))
            assert (got["previous"][at:] == -1).all()
            assert not got["loss_weight"][at:].any()
            assert not got["value_weight"][at:].any()
    assert len(used) > len(FLATS) / 2


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(a[f], b[f]) for f in FIELDS)


def test_a_stream_put_back_into_a_saved_state_goes_on_exactly():
    data = stream()
    for _ in range(5):
        next(data)
    saved = data.get_state()
    ahead = [next(data) for _ in range(5)]
    other = stream()
    next(other)
    other.set_state(saved)
    assert all(equal(next(other), b) for b in ahead)


def test_the_seed_decides_the_order():
    assert equal(next(stream()), next(stream()))
    assert not equal(next(stream()), next(stream(seed=4)))


def full_rows(shard: int, shards: int, count: int, *, rows: int) -> list[int]:
    """The first `count` trees of a shard, where each tree fills a row."""
    whole = [tree.flatten([Node(Segment(np.full(LENGTH, i, np.int32), "action"), -1)]) for i in range(1, 17)]
    data = iter(pipeline.batches(rows_of(whole), rows=rows, row_length=LENGTH, seed=0, shard=shard, shards=shards))
    return [int(t) for _ in range(count // rows) for t in next(data)["tokens"][:, 0]]


def test_shards_share_out_the_batches_of_one_process_and_epochs_differ():
    alone = full_rows(0, 1, 32, rows=16)
    one, two = full_rows(0, 2, 16, rows=8), full_rows(1, 2, 16, rows=8)
    assert alone == [*one[:8], *two[:8], *one[8:], *two[8:]]
    assert sorted(alone[:16]) == sorted(alone[16:]) == list(range(1, 17))
    assert alone[:16] != alone[16:]


def test_a_dataset_is_read_back_as_it_was_written(tmp_path):
    for place in ("one", "two"):  # twice in one process, as a chain of experiments in a notebook would
        pipeline.write_dataset(tmp_path / place, FLATS[:5], meta={"kind": "test"})
        source = pipeline.read_dataset(tmp_path / place)
        assert len(source) == 5
        found = {int(row["tokens"][0]): row for row in (source[i] for i in range(5))}
        for flat in FLATS[:5]:
            row = found[int(flat.tokens[0])]
            for field in FIELDS:
                np.testing.assert_array_equal(row[field], getattr(flat, field))
                assert row[field].dtype == getattr(flat, field).dtype
    batch = next(iter(pipeline.batches(source, rows=1, row_length=LENGTH, seed=0)))
    assert batch["tokens"].shape == (1, LENGTH)


def test_no_dataset_and_no_data(tmp_path):
    assert pipeline.read_dataset(tmp_path) is None
    with pytest.raises(UserError, match="nothing to train on"):
        pipeline.write_dataset(tmp_path, [], meta={})


def test_a_tree_is_only_its_arrays():
    assert {f.name for f in dataclasses.fields(FlatTree)} == {*FIELDS, "action", "node"}


def test_what_points_into_a_tree_points_to_the_same_tokens_in_a_packed_row():
    """Siblings share a group, a state knows the one before it; also for several heads, whose weights are those of the tree's task."""
    sizes = (2, 2, 3, 2)
    flats = []
    for i in range(1, 9):
        segments = [Segment(np.full(s, i, np.int32), "action") for s in sizes]
        parents = (-1, 0, 0, 1)
        flats.append(
            tree.flatten(
                [
                    Node(s, p, value=0.5, value_weight=float(n > 0), group=p if n in (1, 2) else -1, count=float(n))
                    for n, (s, p) in enumerate(zip(segments, parents, strict=True))
                ]
            )
        )
    rows = [row | {"task": np.full(len(row["tokens"]), n, np.int32)} for n, row in enumerate(rows_of(flats))]
    data = iter(pipeline.batches(rows, rows=2, row_length=24, seed=0, heads=3))
    for _ in range(3):
        batch = next(data)
        for row in ({k: v[r] for k, v in batch.items()} for r in range(2)):
            read = np.flatnonzero(row["value_weight"])
            for name in ("group", "before"):
                pointed = read[row[name][read] >= 0]
                assert len(pointed) >= len(read) // 3
                assert (row["tokens"][row[name][pointed]] == row["tokens"][pointed]).all()
                assert (row["value_weight"][row[name][pointed]] > 0).all()
            assert (row[name][row["value_weight"] == 0] == -1).all()
            assert set(row["count"][read]) == {1.0, 2.0, 3.0}
            for at in read:
                wanted = bootstrap.task_weights(int(row["tokens"][at]) - 1, 0, 3)
                assert row["head_weight"][at].tolist() == list(wanted)


def test_datasets_of_before_comparisons_and_ensembles_are_read():
    old = [{f: row[f] for f in FIELDS if f not in ("group", "before", "count")} for row in SOURCE]
    batch = next(iter(pipeline.batches(old, rows=4, row_length=LENGTH, seed=3)))
    assert (batch["group"] == -1).all()
    np.testing.assert_array_equal(batch["count"], batch["value_weight"] > 0)
