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


# --- Rows that are no records ------------------------------------------------------------------------------------------


def tree_row() -> dict:
    """A root with two children, four returns in all."""
    wall = Outcome("A wall.", 0.25, 0.5)
    nodes = (
        TreeNode(-1, None, Outcome("A door."), 4, 2.0, 1.5, 0.0, 1.0, expanded=True),
        TreeNode(0, Action("go", (5,)), wall, 3, 1.5, 1.25, 0.0, 1.0),
        TreeNode(0, Action("stay"), wall, 1, 0.5, 0.25, 0.5, 0.5),
    )
    return formats.tree_to_json(SearchTree(Task("hall", "1", "train", 5), "leave", nodes))


def node(index: int, **changes):
    """A tree row with changes in one node."""
    row = tree_row()
    row["nodes"][index] |= changes
    return row


def with_nodes(order) -> dict:
    row = tree_row()
    return row | {"nodes": [row["nodes"][i] for i in order]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (node(1, reward=1e6), r"nodes\[1\].reward is 1000000.0; expected a number from 0 to 1"),
        (node(1, reward="0.7"), r'nodes\[1\].reward is "0.7"; expected a number from 0 to 1'),
        (node(2, N=-3), r"nodes\[2\].N is -3; expected a whole number from 0 on"),
        (node(2, sumG=0.75), r"nodes\[2\].sumG is 0.75; expected the sum of 1 returns from 0.5 to 0.5"),
        (node(2, sumG2=0.5), r"nodes\[2\].sumG2 is 0.5; expected the sum of the squares of 1 returns"),
        (node(2, minG=0.75), r"nodes\[2\].maxG is 0.5; expected the greatest of N returns"),
        (node(0, N=3, sumG=1.5), r"nodes\[0\].N is 3, but its children's add up to 4"),
        (node(2, parent=2), r"nodes\[2\].parent is 2; expected a whole number from 0 to 1"),
        (node(2, parent=-1), r"nodes\[2\].parent is -1; expected a whole number from 0 to 1"),
        (node(0, parent=0), r"nodes\[0\].parent is 0; expected a whole number equal to -1"),
        (node(0, action={"text": "go"}), r"nodes\[0\].action is an object of 1; expected none at the root"),
        (
            node(1, action={"text": "go", "tokens": [-1]}),
            r"nodes\[1\].action.tokens is a list of 1; expected token ids",
        ),
        (with_nodes([0, 1, 1, 2]), r"nodes\[2\].id is 1; expected a whole number equal to 2"),
        (with_nodes([]), "nodes is a list of 0; expected at least the root"),
        (tree_row() | {"schema_version": 2}, "a tree record of schema_version 2; this program reads version 1"),
        (tree_row() | {"kind": "trajectory"}, 'kind is "trajectory"; expected tree'),
        (tree_row() | {"meta": [1]}, "meta is a list of 1; expected an object"),
    ],
)
def test_a_tree_that_is_none_is_refused_by_file_and_line(tmp_path, row, message):
    path = tmp_path / "trees.jsonl"
    path.write_text(json.dumps(tree_row()) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=rf"trees\.jsonl, line 2: {message}"):
        formats.read_trees(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"meta": {"score": "high"}}, r'meta.score is "high"; expected a number'),
        ({"meta": {"step_scores": [0.5, None, "x"]}}, r'meta.step_scores\[2\] is "x"; expected a number'),
        ({"meta": {"note": math.nan}}, "meta holds nan, which is no JSON number"),
        ({"task": {"env": "hall", "id": 1}}, "task.id is 1; expected text"),
        ({"steps": [3]}, r"steps\[0\] is 3; expected an object"),
    ],
)
def test_a_trajectory_that_is_none_is_refused_too(tmp_path, change, message):
    row = formats.trajectory_to_json(Trajectory(Task("hall", "1", "test", 5), "leave", "A door.", ()))
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(row | change) + "\n")
    with pytest.raises(UserError, match=rf"t\.jsonl, line 1: {message}"):
        formats.read_trajectories(path)


def test_text_is_made_clean_when_it_is_read_but_what_was_sampled_stays_as_it_was():
    """Text of an action must equal what its token ids decode to."""
    outcome = Outcome("a\x00 wall", parsed="go")
    made = Trajectory(
        Task("hall", "1", "test", 5), "le\ud800ave", "A\r\ndoor.", (Step(Action("go\x07", (5,)), outcome),)
    )
    read = formats.trajectory_from_json(formats.trajectory_to_json(made))
    assert (read.goal, read.observation) == ("le\ufffdave", "A\ndoor.")
    assert read.steps[0] == Step(
        Action("go\x07", (5,), read.steps[0].action.logprob), Outcome("a\ufffd wall", parsed="go")
    )


def test_a_row_that_json_cannot_hold_is_not_written_and_no_text_is_too_odd(tmp_path):
    path = tmp_path / "rows.jsonl"
    with pytest.raises(ValueError, match="not JSON compliant"):
        formats.append_jsonl(path, [{"n": 1}, {"n": math.nan}])
    formats.append_jsonl(path, [{"n": "\ud800"}])
    assert list(formats.read_jsonl(path)) == [{"n": 1}, {"n": "?"}]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read: Is a directory"):
        formats.read_trajectories(tmp_path)
