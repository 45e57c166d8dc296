"""Held-out states: chosen by task, none lost or doubled, read where their value is, and kept as they were written."""

import dataclasses

import numpy as np
import pytest

from agentrm_jax import tree
from agentrm_jax.data import heldout, targets
from agentrm_jax.prompts import Encoder
from agentrm_jax.types import Action, Outcome, SearchTree, Task, TreeNode


@pytest.fixture(scope="module")
def encoder(chat, hall) -> Encoder:
    return Encoder(chat, {"hall": hall}, reader="reward")


def node(parent: int, name: str, value: float, *, done: bool = False) -> TreeNode:
    outcome = Outcome(f"Observation: {name}", value if done else 0.0, done=done, success=done and value == 1)
    return TreeNode(parent, Action(f"Action: {name}") if parent >= 0 else None, outcome, 4, 4 * value, 0.0, 0.0, 1.0)


def search_tree(number: int, env: str = "hall") -> SearchTree:
    """A root with actions a and b; after a, c that succeeds and d that fails."""
    value = number / 100
    nodes = (
        node(-1, "", 0.5),
        node(0, "a", value),
        node(0, "b", value + 0.1),
        node(1, "c", 1.0, done=True),
        node(1, "d", 0.2, done=True),
    )
    return SearchTree(Task(env, str(number), "train", 5), "leave", nodes)


def names(trees: list[SearchTree]) -> list[str]:
    return [t.task.key for t in trees]


def test_whole_tasks_are_held_out_of_every_environment_alike_and_the_same_ones_in_any_order():
    trees = [search_tree(i, env) for env, count in (("big", 60), ("small", 20)) for i in range(count)]
    trees += [dataclasses.replace(t, goal="again") for t in trees]  # two trees of each task
    kept, out = heldout.choose(trees, 0.1)
    assert (len(kept), len(out)) == (144, 16)
    assert not set(names(kept)) & set(names(out))
    assert sum(name.startswith("small/") for name in set(names(out))) == 2
    assert set(names(heldout.choose(trees[::-1], 0.1)[1])) == set(names(out))
    assert set(names(out)) < set(names(heldout.choose(trees, 0.2)[1])), "more are held out beside them"


@pytest.mark.parametrize(
    ("count", "fraction", "held"), [(0, 0.5, 0), (1, 0.9, 0), (3, 0.1, 0), (3, 1.0, 2), (20, 0.0, 0)]
)
def test_something_is_left_to_train_on(count, fraction, held):
    kept, out = heldout.choose([search_tree(i) for i in range(count)], fraction)
    assert (len(kept), len(out)) == (count - held, held)


def collected(encoder: Encoder, row_length: int) -> heldout.HeldOut:
    pieces = []
    for one in (search_tree(1), search_tree(2)):
        pieces += [(one, part) for part in tree.split(targets.value_tree(encoder, one), row_length)]
    held = heldout.collect(pieces, row_length)
    assert held is not None
    return held


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_every_state_is_known_by_its_task_its_siblings_its_end_and_its_length(encoder, cut):
    longest = max(len(tree.flatten(targets.value_tree(encoder, search_tree(i)))) for i in (1, 2))
    held = collected(encoder, longest - 1 if cut else 2 * longest)
    assert len(held.rows["tokens"]) == (4 if cut else 1)
    order = np.lexsort((held.target, held.task))
    assert held.task[order].tolist() == ["hall/1"] * 4 + ["hall/2"] * 4
    np.testing.assert_allclose(held.target[order], [0.01, 0.11, 0.2, 1.0, 0.02, 0.12, 0.2, 1.0])  # a b d c
    np.testing.assert_array_equal(held.success[order], [np.nan, np.nan, 0, 1] * 2)
    np.testing.assert_array_equal(held.length[order], [1, 1, 2, 2] * 2)
    sibling = held.sibling[order].tolist()
    assert len(set(sibling)) == 4
    assert all(sibling[i] == sibling[i + 1] for i in range(0, 8, 2)), "a with b, c with d"


def test_values_are_read_at_the_last_token_of_the_action_on_its_path(encoder):
    held = collected(encoder, 2000)
    for row, column, target in zip(held.row, held.column, held.target, strict=True):
        seen = tree.visible(held.rows["subtree_end"][row])[column]
        text = encoder.chat.decode(held.rows["tokens"][row][seen])
        name = {0.01: "a", 0.02: "a", 0.11: "b", 0.12: "b", 0.2: "d", 1.0: "c"}[round(float(target), 2)]
        assert text.rstrip().removesuffix("<|im_end|>").endswith(f"Action: {name}")


def test_they_are_read_back_as_they_were_written(encoder, tmp_path):
    assert heldout.read(tmp_path / "data") is None
    held = collected(encoder, 2000)
    heldout.write(tmp_path / "data", held)
    again = heldout.read(tmp_path / "data")
    assert again is not None
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["heldout.npz"]
    assert again.rows.keys() == held.rows.keys()
    pairs = [(again.rows[name], held.rows[name]) for name in held.rows]
    pairs += [(getattr(again, f.name), getattr(held, f.name)) for f in dataclasses.fields(held) if f.name != "rows"]
    for got, written in pairs:
        np.testing.assert_array_equal(got, written)
        assert got.dtype == written.dtype


def test_without_a_known_state_there_is_nothing(encoder):
    one = search_tree(1)
    silent = [dataclasses.replace(n, value_weight=0.0) for n in targets.value_tree(encoder, one)]
    assert heldout.collect([(one, silent)], 2000) is None
    assert heldout.collect([], 2000) is None
