"""Weights of targets: balanced over values and over tasks, the sum over all staying what it was."""

import numpy as np
import pytest

from agentrm_jax.data import weights
from agentrm_jax.tree import Node, Segment

SEGMENT = Segment(np.array([1], np.int32), "action")


def piece(*values: float) -> list[Node]:
    """A prompt, and states with these targets."""
    return [Node(SEGMENT, -1), *(Node(SEGMENT, 0, value=v, value_weight=1.0) for v in values)]


PIECES = [("a", piece(0.0, 0.0, 0.05, 1.0)), ("b", piece(0.55)), ("a", piece(0.0))]


def by(pieces, part) -> dict[object, float]:
    found: dict[object, float] = {}
    for (key, _), nodes in zip(PIECES, pieces, strict=True):
        for node in nodes:
            found[part(key, node)] = found.get(part(key, node), 0.0) + node.value_weight
    return {k: v for k, v in found.items() if v}


def test_left_as_they_are():
    assert weights.balanced(PIECES) == [list(nodes) for _, nodes in PIECES]


def test_each_tenth_of_the_values_weighs_the_same():
    found = weights.balanced(PIECES, values=True)
    assert by(found, lambda _, n: int(n.value * 10) if n.value_weight else None) == pytest.approx({0: 2, 10: 2, 5: 2})
    assert not found[0][0].value_weight, "no target"


def test_each_task_weighs_the_same():
    found = weights.balanced(PIECES, tasks=True)
    assert by(found, lambda key, _: key) == pytest.approx({"a": 3, "b": 3})
    assert [n.value_weight for n in found[0][1:]] == pytest.approx([0.6] * 4)


def test_both_balance_the_tasks_at_last():
    found = weights.balanced(PIECES, values=True, tasks=True)
    assert by(found, lambda key, _: key) == pytest.approx({"a": 3, "b": 3})
    assert found[0][4].value_weight > 3 * found[0][1].value_weight, "the only success of its task"
