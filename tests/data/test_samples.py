"""Sampled trajectories of a task become one tree, with the statistics of their returns."""

import pytest

from agentrm_jax.data import formats
from agentrm_jax.data.samples import read_samples, sample_trees
from agentrm_jax.types import Action, Outcome, Step, Task, Trajectory, UserError

TASK = Task("hall", "1", "train", 5)


def trajectory(*words: str, reward: float, task: Task = TASK, observation: str = "A door.", done: bool = True):
    steps = [Step(Action(f"Action: {w}"), Outcome(f"you {w}")) for w in words[:-1]]
    last = Outcome("the end", reward=reward, progress=0.5, done=done, success=reward == 1)
    return Trajectory(task, "leave", observation, (*steps, Step(Action(f"Action: {words[-1]}"), last)))


def test_what_trajectories_share_is_there_once_and_knows_their_returns():
    [tree] = sample_trees(
        [
            trajectory("up", "left", reward=1.0),
            trajectory("up", "right", reward=0.25),
            trajectory("up", "left", reward=1.0),
            trajectory("down", reward=0.0),
        ]
    )
    shape = [(n.parent, n.action.text if n.action else "", n.visits, n.value) for n in tree.nodes]
    assert shape == [
        (-1, "", 4, 0.5625),
        (0, "Action: up", 3, 0.75),
        (1, "Action: left", 2, 1.0),
        (1, "Action: right", 1, 0.25),
        (0, "Action: down", 1, 0.0),
    ]
    up = tree.nodes[1]
    assert (up.return_min, up.return_max, up.return_sq_sum) == (0.25, 1.0, 2.0625)
    assert tree.nodes[0].outcome.observation == "A door."


def test_the_return_is_the_field_that_is_asked_for():
    [tree] = sample_trees([trajectory("up", reward=1.0)], outcome="progress")
    assert tree.nodes[0].value == 0.5


def test_equal_turns_with_other_answers_or_tokens_are_not_shared():
    one, two = trajectory("up", "left", reward=1.0), trajectory("up", "left", reward=1.0)
    other = Trajectory(TASK, "leave", "A door.", (Step(Action("Action: up"), Outcome("you fall")), *two.steps[1:]))
    sampled = Trajectory(
        TASK, "leave", "A door.", (Step(Action("Action: up", (5, 6)), Outcome("you up")), *two.steps[1:])
    )
    [tree] = sample_trees([one, other, sampled])
    assert len(tree.nodes) == 7


def test_tasks_and_beginnings_have_trees_of_their_own_and_unfinished_episodes_none():
    second = Task("hall", "2", "train", 5)
    trees = sample_trees(
        [
            trajectory("up", reward=1.0),
            trajectory("up", reward=1.0, task=second),
            trajectory("up", reward=1.0, observation="A window."),
            trajectory("up", reward=1.0, task=Task("hall", "3", "train", 5), done=False),
            Trajectory(Task("hall", "4", "train", 5), "leave", "A door.", ()),
        ]
    )
    assert [(t.task.key, t.nodes[0].outcome.observation) for t in trees] == [
        ("hall/1", "A door."),
        ("hall/2", "A door."),
        ("hall/1", "A window."),
    ]


def test_they_are_read_from_a_workdir_or_a_file(tmp_path):
    rows = [formats.trajectory_to_json(trajectory("up", reward=1.0))]
    formats.append_jsonl(tmp_path / "trajectories.jsonl", rows)
    assert read_samples(tmp_path) == read_samples(tmp_path / "trajectories.jsonl")
    assert len(read_samples(tmp_path)) == 1
    with pytest.raises(
        UserError, match=r"holds no trajectories; make some with: python search.py --config=configs/sample"
    ):
        read_samples(tmp_path / "nowhere")
