"""Datasets of a training run: what is left out is said, and data without anything to learn is refused with the right advice."""

import numpy as np
import pytest

from agentrm_jax.data import examples, formats, heldout
from agentrm_jax.prompts import Encoder
from agentrm_jax.types import Action, Outcome, SearchTree, Step, Task, Trajectory, TreeNode, UserError

TASK = Task("hall", "1", "train", 5)
HOW = {"row_length": 400, "min_visits": 3, "target": "mean", "outcome": "reward"}


@pytest.fixture(scope="module")
def encoder(chat, hall) -> Encoder:
    return Encoder(chat, {"hall": hall}, reader="reward")


def node(parent: int, name: str, visits: int) -> TreeNode:
    action = Action(f"Action: {name}") if parent >= 0 else None
    return TreeNode(parent, action, Outcome("Observation: a wall."), visits, 0.5 * visits, 0.0, 0.0, 1.0)


def search_tree(visits: int, number: int = 1) -> SearchTree:
    nodes = (node(-1, "", 2 * visits), node(0, "up", visits), node(0, "down", visits))
    return SearchTree(Task("hall", str(number), "train", 5), "leave", nodes)


@pytest.mark.parametrize("trees", [[search_tree(2)], [SearchTree(TASK, "leave", (node(-1, "", 0),))]])
def test_states_that_were_visited_too_rarely_are_not_blamed_on_the_length_of_rows(encoder, tmp_path, trees):
    with pytest.raises(
        UserError,
        match=r"no state of . trees has a target: .*min_visits=3 returns; lower it, or .* --config.search.iterations$",
    ):
        examples.step_values(trees, encoder, tmp_path, **HOW)
    assert not list(tmp_path.iterdir())


def test_no_trees_at_all_are_named_as_such(encoder, tmp_path):
    with pytest.raises(UserError, match=r"there are no search trees to learn from; .* --config\.trees"):
        examples.step_values([], encoder, tmp_path, **HOW)


def test_states_that_lie_too_deep_are(encoder, tmp_path):
    with pytest.raises(
        UserError, match=r"no state .* fits a row of 10 tokens; raise --config\.row_length, or lower .*min_visits=3"
    ):
        examples.step_values([search_tree(3)], encoder, tmp_path, **HOW | {"row_length": 10})
    with pytest.raises(UserError, match=r"no state .* fits a row of 10 tokens; raise --config\.row_length$"):
        examples.step_values([search_tree(3)], encoder, tmp_path, **HOW | {"row_length": 10, "min_visits": 1})
    episode = Trajectory(TASK, "leave", "A door.", (Step(Action("Action: up"), Outcome("Observation: a wall.")),))
    with pytest.raises(UserError, match=r"no trajectory fits a row of 10 tokens; raise --config\.row_length"):
        examples.imitation([episode], encoder, tmp_path, row_length=10, context_weight=0.0)


def test_held_out_trees_are_measured_on_and_not_trained_on(encoder, tmp_path, capsys):
    trees = [search_tree(3, number) for number in range(10)]
    source = examples.step_values(trees, encoder, tmp_path, **HOW, heldout_fraction=0.2)
    assert len(source) == 8
    held = heldout.read(tmp_path)
    assert held is not None
    assert len(set(held.task.tolist())) == 2
    assert len(held.target) == 4
    assert "held out to measure: 4 target states of 2 trees" in capsys.readouterr().out
    trained = {row["tokens"].tobytes() for row in (source[i] for i in range(8))}
    assert len(trained) == 1, "these trees differ in nothing but their task"
    assert int(np.sum([source[i]["value_weight"].sum() for i in range(8)])) == 16


def test_the_order_in_which_tasks_finished_changes_nothing_that_is_learned(encoder, tmp_path):
    """Trees of a file that was written in another order give the same data, weights and held-out states included."""
    trees = [search_tree(3 + number % 4, number) for number in range(10)]
    how = HOW | {"heldout_fraction": 0.2, "balance_tasks": True, "balance_values": True, "weight_visits": 2.0}
    found = []
    for name, order in (("as they came", range(10)), ("other", [7, 2, 9, 0, 4, 1, 8, 3, 6, 5])):
        (tmp_path / name / "trees").mkdir(parents=True)
        formats.append_jsonl(tmp_path / name / "trees/trees.jsonl", (formats.tree_to_json(trees[i]) for i in order))
        read = examples.explored(tmp_path / name, "reward")
        assert [t.task.id for t in read] == [str(i) for i in order]
        source = examples.step_values(read, encoder, tmp_path / name / "data", **how)
        held = heldout.read(tmp_path / name / "data")
        rows = [dict(source[i]) for i in range(len(source))] + [
            dict(held.rows),
            {"target": held.target, "task": held.task},
        ]
        found.append(rows)
    assert len(found[0]) == len(found[1]) == 10
    for one, other in zip(*found, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_plain_rollouts_are_learned_from_where_a_workdir_holds_no_trees(encoder, tmp_path):
    """As temporal differences want them: every state knows the one before it, and only ends have outcomes."""
    paths = (("up", "left"), 1.0), (("up", "right"), 0.0), (("down",), 0.5)
    rollouts = [
        Trajectory(
            TASK,
            "leave",
            "A door.",
            tuple(
                Step(
                    Action(f"Action: {word}"),
                    Outcome("Observation: a wall.", *((end, end, True) if i == len(words) - 1 else ())),
                )
                for i, word in enumerate(words)
            ),
        )
        for words, end in paths
    ]
    formats.append_jsonl(tmp_path / "trajectories.jsonl", map(formats.trajectory_to_json, rollouts))
    (one,) = examples.explored(tmp_path, "reward")
    source = examples.step_values([one], encoder, tmp_path / "data", **HOW | {"min_visits": 1})
    (row,) = (source[i] for i in range(len(source)))
    at = np.flatnonzero(row["value_weight"])
    assert row["value"][at].tolist() == [0.5, 1.0, 0.0, 0.5], "up, left, right, down"
    assert row["before"][at].tolist() == [-1, at[0], at[0], -1]
    assert row["count"][at].tolist() == [2, 1, 1, 1]
