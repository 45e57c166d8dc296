"""Mazes in words: AgentGym's starts and texts, search with partial sight, exact forks."""

import itertools
import random

import pytest

from agentrm_jax.envs.maze import environment as maze
from agentrm_jax.testing.shared import needs_shared, shared_data
from agentrm_jax.types import Task, UserError

DATA = shared_data()
needs_data = needs_shared("maze/agentgym_starts.json")
CORRIDOR = Task("maze", "double_t", "test", 30, {"start": [5, 4], "goal": [8, 6]})


@pytest.fixture
def env():
    return maze.make({})


def test_texts_are_those_of_the_original(env):
    start = env.reset(CORRIDOR)
    walls = "There are walls above you, below you."
    assert start.observation == f"The goal is at position 8, 6. Your current position is at position 5, 4. {walls}"
    assert start.goal == "Reach the goal at position 8, 6."
    texts = maze.board(maze.DOUBLE_T, (8, 6)).texts
    assert texts[5, 6].endswith("There is a wall above you.")
    assert texts[8, 6].endswith("There are walls to your right, to your left, below you.")
    assert texts[1, 3].endswith("There is a wall above you.")
    answers = [env.step(f"move {way}") for way in ("right", "right", "down", "down", "down")]
    assert [a.reward for a in answers] == [0, 0, 0, 0, 1]
    assert (answers[-1].observation, answers[-1].over) == ("Success", True)
    assert [a.progress for a in answers] == [pytest.approx(i / 5) for i in range(1, 6)]


@needs_data
def test_expert_solves_all_official_starts(env):
    tasks = maze.tasks("test", {"data": str(DATA)})
    lengths = []
    for task in tasks:
        env.reset(task)
        steps = [env.step(command) for _, command in maze.solve(env, task)]
        assert steps[-1].reward == 1
        lengths.append(len(steps))
    assert (len(tasks), min(lengths), max(lengths)) == (25, 1, 12)


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_expert_takes_a_shortest_way_through_generated_mazes(env, split):
    for task in maze.tasks(split, {"sizes": [3, 4, 7], "seeds": 10}):
        m = maze.maze_of(task)
        distance = maze.board(m.rows, m.goal).distance
        assert len(distance) == sum(row.count(".") for row in m.rows)  # every free cell reaches the goal
        env.reset(task)
        steps = [env.step(command) for _, command in maze.solve(env, task)]
        assert len(steps) == distance[m.start] <= task.max_steps
        progress = [s.progress for s in steps]
        assert progress == sorted(progress)
        assert progress[-1] == 1


def test_progress_never_falls_and_is_full_at_the_goal_only(env):
    rng = random.Random(0)
    for task in maze.tasks("train", {"seeds": 5}):
        env.reset(task)
        last = 0.0
        for _ in range(200):
            answer = env.step(rng.choice(list(maze.MOVES)))
            assert answer.progress >= last
            assert (answer.progress == 1) == answer.over == (answer.reward == 1)
            last = answer.progress
            if answer.over:
                break


@pytest.mark.parametrize(("command", "says"), [("move up", "The goal is"), ("jump", "The commands are")])
def test_what_cannot_be_done_changes_nothing(env, command, says):
    env.reset(CORRIDOR)
    before = env.snapshot()
    answer = env.step(command)
    assert not answer.valid
    assert answer.observation.startswith(says)
    assert env.snapshot() == before


def test_snapshots_restore_any_number_of_times(env):
    task = maze.tasks("test", {})[-1]
    start = env.reset(task)
    assert env.reset(task) == start
    here = env.snapshot()
    rng = random.Random(1)
    walk = [rng.choice(list(maze.MOVES)) for _ in range(30)]
    future = [env.step(c) for c in walk]
    other = maze.make({})
    for engine in (env, other, env):
        engine.restore(here)
        assert [engine.step(c) for c in walk] == future


def test_no_layout_is_in_two_splits():
    splits = [maze.tasks(s, {"seeds": 100}) for s in ("train", "dev", "test")]
    for a, b in itertools.combinations(splits, 2):
        assert not {maze.maze_of(t).rows for t in a} & {maze.maze_of(t).rows for t in b}
        assert not {t.id for t in a} & {t.id for t in b}


def test_wrong_options_are_named():
    with pytest.raises(UserError, match="no split 'val'"):
        maze.tasks("val", {})
    with pytest.raises(UserError, match="sizes must be 3 or more"):
        maze.tasks("train", {"sizes": [2]})
    with pytest.raises(UserError, match="too many"):
        maze.tasks("test", {"seeds": 20_000})
    with pytest.raises(UserError, match="holds no"):
        maze.tasks("test", {"data": "/nowhere"})
