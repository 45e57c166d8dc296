"""Many tasks at once: bounded, streamed, and ended cleanly."""

import asyncio

import pytest

from agentrm_jax.search.concurrency import attempt, together
from agentrm_jax.search.driver import run_tasks
from agentrm_jax.testing.toy_env import make_task
from agentrm_jax.types import EnvironmentFault, UserError

TASKS = [make_task(prefix=str(i)) for i in range(10)]


def test_all_tasks_run_at_most_so_many_at_once_and_results_come_as_they_finish():
    running, most, ends = 0, 0, []

    async def method(task):
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(10 if task is TASKS[0] else 2):
            await asyncio.sleep(0)
        running -= 1
        return task.id

    failed = asyncio.run(run_tasks(TASKS, method, concurrency=3, on_done=ends.append))
    assert failed == 0
    assert most == 3
    assert sorted(d.result for d in ends) == sorted(t.id for t in TASKS)
    assert all(d.task.id == d.result and d.fault is None and d.seconds >= 0 for d in ends)
    assert ends[0].task is not TASKS[0]  # a slow task does not hold up the others' results


def test_a_fault_fails_its_task_only():
    async def method(task):
        if task in TASKS[2:4]:
            raise EnvironmentFault("it hung twice")
        return 1

    ends = []
    assert asyncio.run(run_tasks(TASKS, method, concurrency=4, on_done=ends.append)) == 2
    faults = {d.task: d.fault for d in ends if d.fault is not None}
    assert faults == dict.fromkeys(TASKS[2:4], "it hung twice")
    assert sum(d.result == 1 for d in ends) == 8


def test_other_errors_come_through_as_they_are_and_leave_nothing_running():
    ended = []

    async def method(task):
        try:
            if task is TASKS[1]:
                await asyncio.sleep(0)
                raise UserError("mend me")
            await asyncio.sleep(3600)
        finally:
            ended.append(task)

    async def main():
        with pytest.raises(UserError, match="mend me"):
            await run_tasks(TASKS, method, concurrency=4, on_done=lambda done: None)
        assert set(ended) == set(TASKS[:4])
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_an_error_of_the_callback_ends_the_run():
    async def method(task):
        return task

    def on_done(done):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        asyncio.run(run_tasks(TASKS, method, concurrency=2, on_done=on_done))


def test_cancellation_reaches_the_methods_and_waits_for_them():
    cleaned = []

    async def method(task):
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            cleaned.append(task)

    async def main():
        run = asyncio.create_task(run_tasks(TASKS, method, concurrency=3, on_done=lambda done: None))
        for _ in range(3):
            await asyncio.sleep(0)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert cleaned == TASKS[:3]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_tasks_are_read_lazily():
    read = []

    def source():
        for task in TASKS:
            read.append(task)
            yield task

    async def method(task):
        assert len(read) <= 2 + len(ends)
        await asyncio.sleep(0)

    ends = []
    asyncio.run(run_tasks(source(), method, concurrency=2, on_done=ends.append))
    assert len(ends) == len(TASKS)


def test_together_keeps_order_and_attempt_turns_faults_into_none():
    async def work(i):
        for _ in range(5 - i):
            await asyncio.sleep(0)
        if i == 2:
            raise EnvironmentFault
        return i

    async def main():
        return await together(attempt(work(i)) for i in range(5))

    assert asyncio.run(main()) == [0, 1, None, 3, 4]
