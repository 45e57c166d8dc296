"""Expert episodes: solved ones come out in task order as ReAct turns, everything else is counted."""

import asyncio
import dataclasses
import importlib
import itertools
import time

import pytest

from agentrm_jax.envs.experts import expert_trajectories, stream_expert_trajectories
from agentrm_jax.envs.pool.faults import faulty
from agentrm_jax.testing import toy_env
from agentrm_jax.types import UserError

SPEC = toy_env.SPEC
TASKS = toy_env.tasks("train", {})[:5]
UNSOLVABLE = next(
    t for i in itertools.count() if toy_env.optimum(t := toy_env.make_task(1, str(i)))[1] < toy_env.SUCCESS
)


BROODING = """
import dataclasses, time
from agentrm_jax.testing import toy_env

def expert(env, task):
    if task.id.endswith("101"):
        time.sleep(1e6)
    if task.id.endswith("102"):
        while True:
            yield "round and round", "not a letter"
    if task.id.endswith("103"):
        raise LookupError("no idea")
    yield from toy_env.expert(env, task)

SPEC = dataclasses.replace(toy_env.SPEC, expert=expert)
"""


def test_every_solved_task_in_order():
    trajectories = list(expert_trajectories(SPEC, TASKS, {}))
    assert [t.task for t in trajectories] == TASKS
    first = trajectories[0]
    word, reward = toy_env.optimum(TASKS[0])
    assert [s.outcome.parsed for s in first.steps] == list(word)
    assert first.steps[0].action.text == f"Thought: Letter 1 of the best word is {word[0]}.\nAction: {word[0]}"
    assert (first.last.reward, first.last.success, first.meta["policy"]) == (reward, True, "expert")
    assert (first.goal, first.observation) == ("Write the best word of 4 letters.", 'The word is "".')


def test_order_and_content_do_not_depend_on_the_number_of_workers():
    assert list(expert_trajectories(SPEC, TASKS, {}, workers=3)) == list(expert_trajectories(SPEC, TASKS, {}))


def test_unsolved_tasks_are_left_out_and_counted():
    seen = []
    tasks = [TASKS[0], UNSOLVABLE, TASKS[1]]
    trajectories = list(
        expert_trajectories(SPEC, tasks, {}, progress=lambda c: seen.append((c.finished, c.solved, c.failed, c.total)))
    )
    assert [t.task for t in trajectories] == [TASKS[0], TASKS[1]]
    assert seen == [(1, 1, 0, 3), (2, 1, 1, 3), (3, 2, 1, 3)]


def test_a_broken_expert_costs_its_task_only(tmp_path, monkeypatch):
    (tmp_path / "brooding_env.py").write_text(BROODING)
    monkeypatch.syspath_prepend(tmp_path)
    spec = importlib.import_module("brooding_env").SPEC
    counts = []

    async def collect():
        stream = stream_expert_trajectories(spec, TASKS, {}, time_limit=0.4, workers=2, progress=counts.append)
        return [t async for t in stream]

    solved = asyncio.run(collect())
    assert [t.task.id for t in solved] == ["h4-100", "h5-104"]
    last = counts[-1]
    assert (last.solved, last.failed, last.broken, last.finished) == (2, 1, 2, len(TASKS))
    assert "no expert within 0.4 s" in last.errors["toy/h5-101"]
    assert "LookupError: no idea" in last.errors["toy/h4-103"]


def test_an_environment_that_dies_or_raises_costs_its_task_only():
    counts = []
    spec = faulty(SPEC, crash=0.1, error=0.1, seed=1)
    solved = list(expert_trajectories(spec, TASKS, {}, progress=counts.append))
    broken = counts[-1].errors
    assert 0 < len(broken) < len(TASKS)
    assert solved == [t for t in expert_trajectories(SPEC, TASKS, {}) if t.task.key not in broken]


def test_a_spec_that_a_worker_cannot_load_is_named():
    spec = dataclasses.replace(SPEC, expert=lambda env, task: iter(()))
    with pytest.raises(UserError, match="module-level"):
        list(expert_trajectories(spec, TASKS, {}))


def test_leaving_early_ends_the_workers():
    stream = expert_trajectories(SPEC, TASKS, {"delay": 0.01}, workers=2)
    next(stream)
    begun = time.monotonic()
    stream.close()
    assert time.monotonic() - begun < 3


def test_an_environment_without_expert_says_so():
    with pytest.raises(UserError, match="'toy' has no expert"):
        list(expert_trajectories(dataclasses.replace(SPEC, expert=None), TASKS, {}))
