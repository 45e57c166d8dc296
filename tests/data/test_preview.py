"""The first batch as text: what is learned is marked, and branches say where they go on."""

import numpy as np

from agentrm_jax import tree
from agentrm_jax.data import preview
from agentrm_jax.tree import Node, Segment


def segment(text, kind="action"):
    return Segment(np.frombuffer(text.encode(), np.uint8).astype(np.int32), kind, kind == "action")


def decode(ids):
    return bytes(ids).decode()


def batch():
    one = [
        Node(segment("Go?", "prompt"), -1),
        Node(segment("left."), 0, weight=2.0, value=0.5, value_weight=1.0, group=0),
        Node(segment("wall;", "observation"), 1),
        Node(segment("stop."), 2, weight=1.0),
        Node(segment("right."), 0, weight=1.0, value=1.0, value_weight=1.0, group=0),
    ]
    other = [Node(segment("Why?", "prompt"), -1), Node(segment("so."), 0)]
    row = tree.to_row([tree.flatten(one), tree.flatten(other)], 40)
    return {
        name: getattr(row, name)[None]
        for name in ("tokens", "previous", "subtree_end", "loss_weight", "value", "value_weight", "group")
    }


def lines(*fields):
    return preview.shown(batch(), decode, fields).splitlines()[1:]


def test_imitation_marks_tokens_with_their_weight():
    assert lines("loss_weight") == [
        "--- row 1: 31 tokens, 19 of them learned",
        "tree: Go?«2x left.»wall;«stop.»",
        "  branch after token 2: «right.»",
        "tree: Why?«so.»",
    ]


def test_values_stand_where_they_are_read():
    assert lines("value", "group") == [
        "--- row 1: 31 tokens, 2 values",
        "tree: Go?left.<value 0.5, group 7>wall;stop.",
        "  branch after token 2: right.<value 1, group 7>",
        "tree: Why?so.",
    ]
