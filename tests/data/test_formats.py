"""Records on disk are read back as they were written, also after a writer was killed."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrm_jax.data import formats
from agentrm_jax.text import clean
from agentrm_jax.types import Action, Outcome, SearchTree, Step, Task, Trajectory, TreeNode, UserError

texts = st.text(max_size=20)
shown = texts.map(clean)  # goals and observations: what comes from outside is made clean
units = st.floats(0, 1)
tasks = st.builds(
    Task, texts, texts, st.sampled_from(["train", "test"]), st.integers(1, 99), st.dictionaries(texts, st.integers())
)
actions = st.builds(
    Action,
    texts,
    st.lists(st.integers(0, 99), max_size=3).map(tuple),
    st.one_of(st.just(math.nan), st.floats(-99, 0)),
    st.sampled_from(["stop", "length", "error"]),
)
outcomes = st.builds(Outcome, shown, units, units, st.booleans(), st.booleans(), st.booleans(), st.none() | texts)
metas = st.dictionaries(texts, st.none() | st.integers() | texts)
trajectories = st.builds(
    Trajectory, tasks, shown, shown, st.lists(st.builds(Step, actions, outcomes)).map(tuple), metas
)


@st.composite
def search_trees(draw: st.DrawFn) -> SearchTree:
    """Trees in which every node's statistics are those of the returns at or below it."""
    parents = [-1, *(draw(st.integers(0, i)) for i in range(draw(st.integers(0, 4))))]
    returns = [draw(st.lists(units, max_size=3)) for _ in parents]
    for i in range(len(parents) - 1, 0, -1):
        returns[parents[i]] = returns[parents[i]] + returns[i]
    nodes = [
        TreeNode(
            parent, draw(actions) if i else None, draw(outcomes), len(found), sum(found, 0.0), sum((g * g for g in found), 0.0),
            min(found, default=0.0), max(found, default=0.0), draw(st.integers(1, 5)), draw(st.booleans()), draw(st.booleans()),
        )
        for i, (parent, found) in enumerate(zip(parents, returns, strict=True))
    ]  # fmt: skip
    return SearchTree(draw(tasks), draw(shown), tuple(nodes), draw(metas))


def same(a: object, b: object) -> bool:
    """Equality in which two unknown log-probabilities are equal, and a task's arguments count."""
    return repr(a) == repr(b)


def through_json(row: dict) -> dict:
    return json.loads(json.dumps(row, allow_nan=False))


@given(trajectories)
def test_a_trajectory_survives_json(trajectory):
    row = through_json(formats.trajectory_to_json(trajectory))
    assert (row["schema_version"], row["kind"]) == (formats.VERSION, "trajectory")
    assert same(formats.trajectory_from_json(row), trajectory)


@given(search_trees())
def test_a_search_tree_survives_json(tree):
    row = through_json(formats.tree_to_json(tree))
    assert (row["schema_version"], row["kind"]) == (formats.VERSION, "tree")
    assert [n["id"] for n in row["nodes"]] == list(range(len(tree.nodes)))
    assert same(formats.tree_from_json(row), tree)


def test_an_unknown_logprob_is_left_out_of_the_file_and_unknown_when_read():
    step = Step(Action("go"), Outcome("a door"))
    row = formats.trajectory_to_json(Trajectory(Task("hall", "1", "train", 5), "leave", "", (step,)))
    assert row["steps"][0]["action"] == {"text": "go"}
    assert math.isnan(formats.trajectory_from_json(row).steps[0].action.logprob)


@pytest.mark.parametrize("cut", [1, 3, 4, 9])
def test_the_line_a_killed_writer_left_unfinished_is_skipped_and_then_replaced(tmp_path, cut):
    path = tmp_path / "new" / "rows.jsonl"
    formats.append_jsonl(path, [{"n": 1}, {"n": "a dóor"}])
    path.write_bytes(path.read_bytes()[:-cut])  # 4 bytes off the end lies within the two bytes of ó... or after it
    assert list(formats.read_jsonl(path)) == [{"n": 1}]
    formats.append_jsonl(path, [{"n": 3}])
    assert list(formats.read_jsonl(path)) == [{"n": 1}, {"n": 3}]


def test_appending_to_a_whole_file_adds_to_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    for n in range(3):
        formats.append_jsonl(path, [{"n": n}])
    assert [r["n"] for r in formats.read_jsonl(path)] == [0, 1, 2]
    path.write_bytes(b'{"n": 0')
    formats.append_jsonl(path, [{"n": 9}])
    assert [r["n"] for r in formats.read_jsonl(path)] == [9]


@pytest.mark.parametrize("line", [b"no json", b'"\xff"'])
def test_a_broken_line_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n": 0}\n' + line + b'\n{"n": 2}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl, line 2: not JSON"):
        list(formats.read_jsonl(path))


def test_trees_of_a_folder_are_read_by_file_name_and_their_absence_names_the_command(tmp_path):
    root = TreeNode(-1, None, Outcome("a door"), 0, 0.0, 0.0, 0.0, 0.0)
    trees = [SearchTree(Task("hall", str(i), "train", 5), "", (root,)) for i in range(3)]
    for name, tree in zip("bac", trees, strict=True):
        formats.append_jsonl(tmp_path / f"{name}.jsonl", [formats.tree_to_json(tree)])
    assert [t.task.id for t in formats.read_trees(tmp_path)] == ["1", "0", "2"]
    with pytest.raises(UserError, match=r"no search trees in .*nowhere; make some with: python search\.py"):
        formats.read_trees(tmp_path / "nowhere")


def test_trajectories_of_a_file_are_read_in_order(tmp_path):
    rows = [Trajectory(Task("hall", str(i), "test", 5), "", "", ()) for i in range(3)]
    formats.append_jsonl(tmp_path / "t.jsonl", map(formats.trajectory_to_json, rows))
    assert [t.task.id for t in formats.read_trajectories(tmp_path / "t.jsonl")] == ["0", "1", "2"]
