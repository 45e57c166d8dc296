"""Batches fill while the device works, errors reach everyone they concern, and nobody waits for someone who left."""

import asyncio
import threading
import time

import pytest

from agentrm_jax.engine.service import Batcher
from agentrm_jax.types import UserError


class Device:
    """Doubles numbers, slowly if asked to, and remembers its batches."""

    def __init__(self, seconds=0.0):
        self.batches, self.seconds, self.threads = [], seconds, set()

    def __call__(self, batch):
        self.batches.append(list(batch))
        self.threads.add(threading.current_thread().name)
        time.sleep(self.seconds)
        if "bad" in batch:
            raise UserError("a bad request")
        return [2 * x for x in batch]


async def ask_all(batcher, requests):
    return await asyncio.gather(*(batcher.ask(r) for r in requests))


def test_answers_come_back_in_the_askers_order():
    device = Device()
    assert asyncio.run(ask_all(Batcher(device, most=4), range(10))) == [2 * x for x in range(10)]
    assert max(len(b) for b in device.batches) == 4
    assert sorted(x for batch in device.batches for x in batch) == list(range(10))


def test_what_arrives_while_a_batch_runs_becomes_the_next_batch():
    device = Device(seconds=0.1)

    async def run():
        batcher = Batcher(device, most=64)
        first = asyncio.create_task(batcher.ask(0))
        await asyncio.sleep(0.05)
        late = [asyncio.create_task(batcher.ask(i)) for i in (1, 2, 3)]
        return await asyncio.gather(first, *late)

    assert asyncio.run(run()) == [0, 2, 4, 6]
    assert device.batches == [[0], [1, 2, 3]]


def test_the_event_loop_goes_on_while_the_device_works():
    device = Device(seconds=0.2)

    async def run():
        ticks = 0
        answer = asyncio.create_task(Batcher(device, most=1).ask(1))
        while not answer.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return ticks

    assert asyncio.run(run()) >= 3


def test_an_error_reaches_everyone_in_the_batch_and_nobody_else():
    async def run():
        batcher = Batcher(Device(), most=3)
        return await asyncio.gather(*(batcher.ask(x) for x in (1, "bad", 2, 3)), return_exceptions=True)

    *failed, fine = asyncio.run(run())
    assert [str(e) for e in failed] == ["a bad request"] * 3
    assert all(isinstance(e, UserError) for e in failed)
    assert fine == 6


def test_a_wrong_number_of_answers_is_an_error_for_those_left_out():
    async def run():
        batcher = Batcher(lambda batch: [0], most=2)
        return await asyncio.wait_for(
            asyncio.gather(*(batcher.ask(x) for x in (1, 2)), return_exceptions=True), timeout=5
        )

    assert any(isinstance(e, ValueError) for e in asyncio.run(run()))


def test_requests_that_were_given_up_are_not_run():
    device = Device(seconds=0.1)

    async def run():
        batcher = Batcher(device, most=8)
        first = asyncio.create_task(batcher.ask(1))
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(batcher.ask(x)) for x in (2, 3)]
        await asyncio.sleep(0.01)
        waiting[0].cancel()
        results = await asyncio.gather(first, *waiting, return_exceptions=True)
        return results, await batcher.ask(4)

    results, after = asyncio.run(run())
    assert isinstance(results[1], asyncio.CancelledError)
    assert (results[0], results[2], after) == (2, 6, 8)
    assert device.batches == [[1], [3], [4]]


def test_giving_up_during_the_run_does_not_hurt_the_others():
    async def run():
        batcher = Batcher(Device(seconds=0.1), most=8)
        tasks = [asyncio.create_task(batcher.ask(x)) for x in (1, 2)]
        await asyncio.sleep(0.05)
        tasks[0].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    cancelled, other = asyncio.run(run())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert other == 4


def test_two_engines_take_turns_on_one_thread():
    log = []

    def worker(name):
        def run(batch):
            log.append((name, "begins"))
            time.sleep(0.02)
            log.append((name, "ends"))
            return batch

        return run

    async def run():
        policy, reward = (Batcher(worker(name), most=1) for name in ("policy", "reward"))

        async def episode():
            for _ in range(3):
                await policy.ask(0)
                await reward.ask(0)

        await asyncio.gather(episode(), episode())

    asyncio.run(run())
    assert len(log) == 24
    for begins, ends in zip(log[::2], log[1::2], strict=True):
        assert (begins[0], begins[1], ends[1]) == (ends[0], "begins", "ends")
    assert {name for name, _ in log[:8]} == {"policy", "reward"}


def test_a_batcher_outlives_its_event_loop():
    device = Device()
    batcher = Batcher(device, most=4)
    assert [asyncio.run(batcher.ask(x)) for x in (1, 2)] == [2, 4]
    assert len(device.threads) == 1


def test_an_interrupted_run_leaves_nothing_behind():
    device = Device(seconds=0.2)
    batcher = Batcher(device, most=4)

    async def impatient():
        await asyncio.wait_for(batcher.ask("late"), timeout=0.05)

    with pytest.raises(TimeoutError):
        asyncio.run(impatient())
    assert asyncio.run(batcher.ask(5)) == 10
