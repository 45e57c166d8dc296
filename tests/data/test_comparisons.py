"""Comparisons: what conversations share is there once, their ends are one group, and what says nothing makes no tree."""

import numpy as np

from agentrm_jax import tree
from agentrm_jax.data import targets
from agentrm_jax.data.comparisons import compared
from agentrm_jax.tree import Segment


def path(*words: int) -> list[Segment]:
    kinds = ("prompt", *(("action", "observation") * len(words)))
    return [Segment(np.array([w, w], np.int32), k, k == "action") for w, k in zip(words, kinds, strict=False)]


def ends(nodes) -> dict[int, float]:
    """Value by the first token of the segment it is read at."""
    assert {n.group for n in nodes if n.value_weight} <= {0}
    return {int(n.segment.tokens[0]): n.value for n in nodes if n.value_weight}


def test_two_sides_share_their_beginning_and_are_read_at_their_ends():
    nodes = compared([path(1, 2, 3, 4), path(1, 2, 5, 6)], [1.0, 0.0])
    assert len(nodes) == 6
    assert ends(nodes) == {4: 1.0, 6: 0.0}
    assert targets.ordered_pairs(nodes) == 1
    flat = tree.flatten(nodes)
    assert len(set(flat.group[flat.value_weight > 0])) == 1


def test_one_side_may_be_the_beginning_of_the_other():
    nodes = compared([path(1, 2), path(1, 2, 3, 4)], [1.0, 0.0])
    assert ends(nodes) == {2: 1.0, 4: 0.0}
    assert len(nodes) == 4


def test_several_answers_have_their_grades_and_equal_ones_their_mean():
    nodes = compared([path(1, 2), path(1, 3), path(1, 4), path(1, 3)], [0.5, 1.0, 0.0, 0.0], weight=2.0)
    assert ends(nodes) == {2: 0.5, 3: 0.5, 4: 0.0}
    assert {n.value_weight for n in nodes} == {0.0, 2.0}
    assert targets.ordered_pairs(nodes) == 2


def test_what_says_nothing_makes_no_tree():
    assert compared([path(1, 2), path(1, 2)], [1.0, 0.0]) == []
    assert compared([path(1, 2), path(1, 3)], [0.5, 0.5]) == []
