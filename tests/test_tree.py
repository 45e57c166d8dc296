"""Token trees: one integer a token says who sees whom; packing, splitting and merging keep what training means."""

import collections
import dataclasses
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrm_jax import tree
from agentrm_jax.tree import Node, Segment

FIELDS = ("tokens", "positions", "loss_weight", "value", "value_weight")


@st.composite
def forests(draw: st.DrawFn, most: int = 9) -> list[Node]:
    """Forests of up to `most` nodes; every token is unique, so that equal tokens mean the same place."""
    nodes: list[Node] = []
    for i in range(draw(st.integers(1, most))):
        size = draw(st.integers(1, 4))
        loss = draw(st.booleans())
        weight, value_weight = draw(st.sampled_from([0.0, 1.0, 3.0])), draw(st.sampled_from([0.0, 1.0, 2.0]))
        segment = Segment(np.arange(10 * i, 10 * i + size, dtype=np.int32), "action" if loss else "observation", loss)
        parent = draw(st.integers(-1, i - 1))
        nodes.append(Node(segment, parent, weight, 0.25 * i if value_weight else np.nan, value_weight))
    return nodes


def ancestors(nodes: list[Node], i: int) -> list[int]:
    """Node indices from the root to `i`, itself included."""
    return [*(ancestors(nodes, nodes[i].parent) if nodes[i].parent >= 0 else []), i]


def path_tokens(nodes: list[Node], i: int) -> list[int]:
    return [int(t) for a in ancestors(nodes, i) for t in nodes[a].segment.tokens]


@given(forests())
def test_flatten_and_unflatten_are_inverse(nodes):
    recovered = tree.unflatten(tree.flatten(nodes))
    assert [(t.tolist(), p) for t, p in recovered] == [(n.segment.tokens.tolist(), n.parent) for n in nodes]


@given(forests())
def test_a_token_sees_its_own_past_and_its_ancestors_and_nothing_else(nodes):
    flat = tree.flatten(nodes)
    seen = tree.visible(flat.subtree_end)
    for i, token in enumerate(flat.tokens):
        path = path_tokens(nodes, int(token) // 10)
        expected = path[: path.index(token) + 1]
        assert flat.tokens[seen[i]].tolist() == expected
        assert flat.positions[i] == len(expected) - 1
        before = flat.previous[i]
        assert (int(flat.tokens[before]) if before >= 0 else None) == (expected[-2] if len(expected) > 1 else None)


@given(forests())
def test_a_nodes_tokens_carry_its_weight_and_its_last_one_the_value(nodes):
    flat = tree.flatten(nodes)
    last = tree.last_token(flat)
    for i, node in enumerate(nodes):
        at = np.flatnonzero(flat.node == i)
        assert last[i] == at[-1]
        assert flat.loss_weight[at].tolist() == [node.weight if node.segment.loss else 0.0] * len(at)
        assert flat.value_weight[at].tolist() == [0.0] * (len(at) - 1) + [node.value_weight]
        if node.value_weight:
            assert flat.value[last[i]] == np.float32(node.value)
    assert not np.isnan(flat.value).any()


def test_siblings_keep_their_order_and_a_subtree_is_contiguous():
    parents = [-1, 0, 0, 1, 2, 1]
    assert tree.depth_first(parents) == [0, 1, 3, 5, 2, 4]


@given(st.lists(forests(4), max_size=4), st.integers(0, 5))
def test_trees_in_one_row_do_not_see_each_other_and_padding_sees_itself(trees, pad):
    flats = [tree.flatten(t) for t in trees]
    used = sum(map(len, flats))
    row = tree.to_row(flats, used + pad)
    expected = np.eye(used + pad, dtype=bool)
    start = 0
    for flat in flats:
        stop = start + len(flat)
        expected[start:stop, start:stop] = tree.visible(flat.subtree_end)
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(row, field)[start:stop], getattr(flat, field))
        moved = np.where(flat.previous < 0, -1, flat.previous + start)
        np.testing.assert_array_equal(row.previous[start:stop], moved)
        start = stop
    np.testing.assert_array_equal(tree.visible(row.subtree_end), expected)
    assert not row.loss_weight[used:].any()
    assert not row.value_weight[used:].any()
    assert (row.previous[used:] == -1).all()
    assert len(np.unique(row.node)) == sum(map(len, trees)) + pad


@given(st.lists(forests(4), min_size=1, max_size=6), st.integers(0, 20))
def test_packing_places_every_tree_once_in_a_row_it_fits(trees, spare):
    flats = [tree.flatten(t) for t in trees]
    length = max(map(len, flats)) + spare
    rows = tree.pack(flats, length)
    assert sorted(i for row in rows for i in row) == list(range(len(flats)))
    fill = [sum(len(flats[i]) for i in row) for row in rows]
    assert max(fill) <= length
    assert sum(f <= length // 2 for f in fill) <= 1, "two half-empty rows would have been one"


@given(forests(), st.integers(1, 30))
def test_splitting_keeps_every_path_and_every_weight_that_fits(nodes, most):
    parts = tree.split(nodes, most)
    fits = [i for i in range(len(nodes)) if len(path_tokens(nodes, i)) <= most]
    owners = collections.Counter[int]()
    for part in parts:
        assert 0 < len(tree.flatten(part)) <= most
        for at, node in enumerate(part):
            i = int(node.segment.tokens[0]) // 10
            assert path_tokens(part, at) == path_tokens(nodes, i), "a node must see exactly its ancestors"
            if node.weight or node.value_weight:
                assert (node.weight, node.value_weight) == (nodes[i].weight, nodes[i].value_weight)
                owners[i] += 1
    assert owners == collections.Counter(i for i in fits if nodes[i].weight or nodes[i].value_weight)
    for field in ("loss_weight", "value_weight"):
        parts_sum = sum(getattr(tree.flatten(p), field).sum() for p in parts)
        whole = sum(getattr(tree.flatten(nodes), field)[np.isin(tree.flatten(nodes).node, fits)])
        assert parts_sum == whole


def test_a_tree_that_fits_is_not_split():
    nodes = [Node(Segment(np.arange(3, dtype=np.int32), "prompt"), p) for p in (-1, 0, 0)]
    assert len(tree.split(nodes, 9)) == 1
    assert [len(p) for p in tree.split(nodes, 8)] == [2, 2]


def conversation(sizes: list[int]) -> list[Segment]:
    """A prompt, then actions and observations in turn."""
    kinds: list[tree.Kind] = ["prompt", *cast(list[tree.Kind], ["action", "observation"] * len(sizes))]
    return [
        Segment(np.full(s, i, np.int32), k, k == "action") for i, (s, k) in enumerate(zip(sizes, kinds, strict=False))
    ]


@given(st.lists(st.integers(1, 6), min_size=2, max_size=12), st.integers(1, 60))
def test_truncation_drops_whole_oldest_turns_and_never_the_prompt_or_the_last_turn(sizes, most):
    segments = conversation(sizes)
    last = segments[1:][-2 if len(segments) % 2 else -1 :]  # the last action, with an observation if that is the end
    needed = sum(len(s.tokens) for s in [segments[0], *last])
    if needed > most:
        with pytest.raises(ValueError, match=f"{needed} tokens, more than {most}"):
            tree.truncate(segments, most)
        return
    kept, dropped = tree.truncate(segments, most)
    assert kept == [segments[0], *segments[1 + 2 * dropped :]]
    assert kept[-len(last) :] == last
    total = sum(len(s.tokens) for s in kept)
    assert total <= most
    if dropped:
        again = segments[2 * dropped - 1 : 2 * dropped + 1]
        assert total + sum(len(s.tokens) for s in again) > most, "one turn fewer would have been enough"


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=6))
def test_merged_paths_share_equal_beginnings_and_weights_count_the_paths(paths):
    merged = tree.merge_paths([[Segment(np.array([s], np.int32), "action", True) for s in p] for p in paths])
    found = {
        tuple(int(merged[a].segment.tokens[0]) for a in ancestors(merged, i)): n.weight for i, n in enumerate(merged)
    }
    prefixes = collections.Counter(tuple(p[: k + 1]) for p in paths for k in range(len(p)))
    assert found == prefixes
    assert len(found) == len(merged), "no beginning is stored twice"


def test_a_turn_to_learn_and_the_same_turn_as_context_are_not_merged():
    turn = Segment(np.array([7], np.int32), "action", True)
    merged = tree.merge_paths([[turn], [dataclasses.replace(turn, loss=False)], [turn]])
    assert [(n.segment.loss, n.weight) for n in merged] == [(True, 2.0), (False, 1.0)]


def test_a_path_is_a_tree_without_branches():
    segments = conversation([2, 3, 1])
    assert [n.parent for n in tree.path_tree(segments)] == [-1, 0, 1]
    flat = tree.flatten(tree.path_tree(segments))
    assert flat.positions.tolist() == list(range(6))
    assert flat.subtree_end.tolist() == [6] * 6
    assert flat.loss_weight.tolist() == [0, 0, 1, 1, 1, 0]


def test_what_cannot_be_laid_out_is_refused():
    one, none = Segment(np.array([1], np.int32), "prompt"), Segment(np.zeros(0, np.int32), "prompt")
    with pytest.raises(ValueError, match="node 0 comes before its parent 1"):
        tree.flatten([Node(one, 1), Node(one, -1)])
    with pytest.raises(ValueError, match="node 1 has no tokens"):
        tree.flatten([Node(one, -1), Node(none, 0)])
    flat = tree.flatten(tree.path_tree([one, one]))
    with pytest.raises(ValueError, match="tree 0 has 2 tokens"):
        tree.pack([flat], 1)
    with pytest.raises(ValueError, match="4 tokens do not fit a row of 3"):
        tree.to_row([flat, flat], 3)
