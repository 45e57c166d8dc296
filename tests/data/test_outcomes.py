"""Datasets of whole trajectories: only ended episodes are targets, each as often as it occurred; held-out states are all measured."""

import numpy as np
import pytest

from agentrm_jax.data import heldout
from agentrm_jax.data.outcomes import outcome_tree, outcomes
from agentrm_jax.data.samples import sample_trees
from agentrm_jax.prompts import Encoder
from agentrm_jax.types import Outcome, SearchTree, Task, TreeNode, UserError
from tests.data.test_samples import trajectory

HOW = {"row_length": 400, "outcome": "reward", "min_visits": 1}


@pytest.fixture(scope="module")
def encoder(chat, hall) -> Encoder:
    return Encoder(chat, {"hall": hall}, reader="reward")


def samples(tasks: int = 1) -> list[SearchTree]:
    """Of each task: twice up-left (1), once up-right (0.25)."""
    named = [Task("hall", str(i), "train", 5) for i in range(tasks)]
    return sample_trees(
        trajectory("up", way, reward=reward, task=task)
        for task in named
        for way, reward in (("left", 1.0), ("left", 1.0), ("right", 0.25))
    )


def test_targets_are_outcomes_at_the_last_turn_of_each_trajectory(encoder):
    [one] = samples()
    nodes = outcome_tree(encoder, one)
    found = [(encoder.chat.decode(n.segment.tokens), n.value, n.value_weight) for n in nodes if n.value_weight > 0]
    assert found == [("Action: left", 1.0, 2.0), ("Action: right", 0.25, 1.0)]


def test_leaves_of_a_search_tree_count_once_however_they_were_reached(encoder):
    """A leaf that only a cached rollout reached has no visits; a state that did not end is no target."""

    def node(parent: int, word: str, visits: int, done: bool) -> TreeNode:
        outcome = Outcome("x", reward=0.5, done=done)
        return TreeNode(parent, encoder_action(word), outcome, visits, 0.5 * visits, 0.0, 0.0, 1.0)

    root = TreeNode(-1, None, Outcome("A door."), 3, 1.5, 0.0, 0.0, 1.0)
    tree = SearchTree(
        Task("hall", "1", "train", 5),
        "leave",
        (root, node(0, "up", 1, False), node(1, "on", 0, True), node(0, "down", 1, True)),
    )
    assert [n.value_weight for n in outcome_tree(encoder, tree) if n.segment.loss] == [0.0, 1.0, 1.0]


def encoder_action(word: str):
    from agentrm_jax.types import Action

    return Action(f"Action: {word}")


def test_a_dataset_says_which_tokens_are_actions_and_holds_out_whole_tasks(encoder, tmp_path, capsys):
    source = outcomes(samples(10), encoder, tmp_path, **HOW, heldout_fraction=0.2)
    assert len(source) == 8
    one = source[0]
    assert set(one) == {
        "tokens",
        "positions",
        "subtree_end",
        "previous",
        "loss_weight",
        "value",
        "value_weight",
        "action",
        *("group", "before", "count", "task"),
    }
    turns = [encoder.chat.action(f"Action: {word}").tokens for word in ("up", "left", "right")]
    assert one["action"].sum() == sum(len(t) for t in turns)
    assert set(one["tokens"][one["action"] > 0]) == set(np.concatenate(turns))
    held = heldout.read(tmp_path)
    assert held.rows["action"].shape == held.rows["tokens"].shape
    # The state after "up" is measured too: 0.75 is the mean of what came of it.
    assert sorted(held.target.tolist()) == [0.25, 0.25, 0.75, 0.75, 1.0, 1.0]
    assert "8 tasks, 16 outcomes" in capsys.readouterr().out


def test_what_does_not_fit_a_row_is_counted(encoder, tmp_path, capsys):
    [one] = samples()
    size = sum(len(n.segment.tokens) for n in outcome_tree(encoder, one)[:4])  # prompt, up, answer, left
    longer = sample_trees([trajectory("up", "left", reward=1.0), trajectory("up", "left", "left", "left", reward=0.0)])
    outcomes(longer, encoder, tmp_path, **HOW | {"row_length": size})
    assert f"1 trajectories are longer than {size} tokens and are left out" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"no trajectory fits a row of 10 tokens; raise --config\.row_length"):
        outcomes(longer, encoder, tmp_path / "short", **HOW | {"row_length": 10})


def test_trajectories_that_did_not_end_teach_nothing(encoder, tmp_path):
    with pytest.raises(UserError, match="no trajectory of the named runs has ended"):
        outcomes([], encoder, tmp_path, **HOW)


def test_the_order_in_which_tasks_finished_changes_nothing_that_is_learned(encoder, tmp_path):
    one, other = (
        outcomes(trees, encoder, tmp_path / name, **HOW)
        for name, trees in (("one", samples(10)), ("other", samples(10)[::-1]))
    )
    for i in range(10):
        for name in one[i]:
            np.testing.assert_array_equal(one[i][name], other[i][name])
