"""Decisions of the scheduler, without a model: what a prefill or a decode step would bring is made up."""

import dataclasses

import numpy as np
import pytest

from agentrm_jax.engine.facts import SlotFacts
from agentrm_jax.engine.prefix import PrefixCache
from agentrm_jax.engine.requests import EngineConfig, GenerateRequest, LogprobsRequest, SamplingParams, ScoreRequest
from agentrm_jax.engine.scheduler import Decode, Prefill, Scheduler
from agentrm_jax.engine.sequence import Job

SIZES = EngineConfig(
    cache_tokens=200, rows=(2, 4), batch_tokens=(32, 64), new_tokens=(8, 32), context=(32, 64), samples=3, max_new=8
)


def ids(size, seed):
    return np.random.default_rng(seed).integers(4, 97, size).astype(np.int32)


class Desk:
    """A scheduler whose work is done by hand."""

    def __init__(self, **changes):
        sizes = dataclasses.replace(SIZES, **changes)
        self.cache, self.facts = PrefixCache(sizes.cache_tokens), SlotFacts(sizes.cache_tokens)
        self.scheduler = Scheduler(sizes, self.cache, self.facts)
        self.log = []

    def ask(self, path, kind="generate", **params):
        request = {
            "generate": lambda: GenerateRequest(path, SamplingParams(**params)),
            "score": lambda: ScoreRequest(path),
            "logprobs": lambda: LogprobsRequest(path, **params),
        }[kind]()
        job = Job(request)
        self.scheduler.add(job)
        return job

    def step(self):
        work = self.scheduler.next()
        if isinstance(work, Prefill):
            self.log.append("prefill")
            for slots in work.slots:
                self.facts.set_values(slots, slots)
                if work.logprobs:
                    self.facts.set_logprobs(slots, slots)
            self.scheduler.prefilled(work)
        elif isinstance(work, Decode):
            self.log.append("decode")
            work.batch.state = work.batch.keep = None
            for row in work.joining:
                work.batch.rows[row].fresh = False
        return work

    def end(self, batch, rows):
        for row in rows:
            self.scheduler.release(batch, row)

    def read(self, work):
        return sum(len(row.tokens) for row in work.rows)


def test_rows_are_filled_before_they_are_decoded_but_those_that_run_are_not_held_up_long():
    desk = Desk(batch_tokens=(32,), cache_tokens=2000, rows=(2, 64))
    for i in range(12):
        desk.ask(ids(33, i))
    while desk.scheduler.waiting:
        desk.step()
    assert desk.log[:5] == ["prefill"] * 4 + ["decode"]
    desk.ask(ids(33, 99), kind="score")
    desk.log = []
    for _ in range(4):
        desk.step()
    assert desk.log.count("prefill") <= 2
    assert "decode" in desk.log


def test_one_prefill_reads_a_common_beginning_once():
    desk = Desk()
    trunk = ids(10, 1)
    for i in range(4):
        desk.ask(np.concatenate([trunk, ids(4, i)]))
    assert desk.read(desk.step()) == 10 + 4 * 3  # decode starts from the last token of each
    work = desk.step()
    assert len(work.joining) == 4


def test_what_is_cached_is_not_read_again():
    desk = Desk()
    path = ids(12, 1)
    job = desk.ask(path, kind="score")
    assert desk.read(desk.step()) == 12
    assert job.done
    again, shorter = desk.ask(path, kind="score"), desk.ask(path[:5], kind="score")
    assert desk.step() is None
    assert (again.result, shorter.done) == (job.result, True)
    logprobs = desk.ask(path, kind="logprobs", start=9)
    assert desk.read(desk.step()) == 12 - 8  # from the token before the first
    assert len(logprobs.result) == 3
    assert desk.cache.locked == 0


def test_a_long_path_is_read_in_chunks_and_others_go_on_meanwhile():
    desk = Desk(batch_tokens=(8,), new_tokens=(8,))
    first = desk.ask(ids(6, 1), max_tokens=60 - 6)
    desk.step()
    desk.step()
    desk.ask(ids(50, 2))
    desk.log = []
    while desk.scheduler.waiting:
        assert isinstance(desk.step(), (Prefill, Decode))
    assert desk.log.count("prefill") == 7
    assert "decode" in desk.log
    assert not first.done


def test_samples_of_a_request_share_rows_and_lone_ones_have_batches_of_their_own():
    desk = Desk()
    desk.ask(ids(9, 1), n=5)
    desk.ask(ids(9, 2))
    desk.step()
    shapes = {}
    for _ in range(3):
        batch = desk.step().batch
        shapes[batch.shape.samples] = [len(row.lanes) for row in batch.rows if row is not None]
    assert shapes == {3: [3, 2], 1: [1]}


def test_batches_grow_for_those_that_come_and_shrink_behind_those_that_go():
    desk = Desk(cache_tokens=1000)
    for i in range(2):
        desk.ask(ids(9, i))
    desk.step()
    batch = desk.step().batch
    assert (batch.shape.rows, batch.live) == (2, 2)
    for i in range(5):
        desk.ask(ids(9, 10 + i))
    desk.step()
    work = desk.step()
    assert (work.batch is batch, batch.shape.rows, batch.live) == (True, 4, 4)
    desk.end(batch, [0, 2])
    assert desk.step().joining == [0, 2]  # free rows are taken first
    desk.end(batch, [1, 2])
    assert len(desk.step().joining) == 1
    desk.end(batch, [i for i, row in enumerate(batch.rows) if row is not None][1:])
    assert desk.step().batch.shape.rows == 2


def test_rows_of_all_batches_together_are_bounded():
    desk = Desk(cache_tokens=1000)
    for i in range(4):
        desk.ask(ids(9, i))
        desk.ask(ids(50, i))
        desk.ask(ids(9, i), n=3)
    while desk.scheduler.waiting:
        desk.step()
    for _ in range(4):
        desk.step()
        assert sum(batch.shape.rows for batch in desk.scheduler.seats.batches) <= 4


def test_nobody_is_passed_over_for_ever():
    """A request that needs a batch of its own gets it though others keep coming that do not."""
    desk = Desk(cache_tokens=1000)
    for i in range(4):
        desk.ask(ids(9, i))
    desk.step()
    desk.step()
    different = desk.ask(ids(9, 50), n=3)
    for i in range(200):
        desk.ask(ids(9, 100 + i))
        work = desk.step()
        if isinstance(work, Decode):
            if work.batch.rows[0] is not None and work.batch.rows[0].job is different:
                return
            desk.end(work.batch, [next(j for j, row in enumerate(work.batch.rows) if row is not None)])
    pytest.fail("it was never given a row")


def test_a_full_cache_makes_the_later_give_way_and_wait_for_those_that_run():
    desk = Desk(cache_tokens=64, batch_tokens=(32,))
    first = desk.ask(ids(40, 1))
    desk.step()
    desk.step()
    [batch] = [desk.step().batch]
    assert batch.rows[0].job is first
    second, third = desk.ask(ids(50, 2), kind="score"), desk.ask(ids(20, 3), kind="score")
    for _ in range(6):
        desk.step()
    assert not second.done
    desk.end(batch, [0])
    while desk.step() is not None:
        pass
    assert second.done
    assert third.done
    assert desk.cache.locked == 0


def test_a_cancelled_request_gives_back_its_row_and_its_place():
    desk = Desk()
    running, waiting = desk.ask(ids(9, 1), n=4), desk.ask(ids(9, 2))
    desk.step()
    desk.step()
    for job in (running, waiting):
        desk.scheduler.cancel(job)
    assert desk.scheduler.idle
    assert desk.cache.locked == 0
    assert desk.step() is None


def test_a_preempted_sample_goes_on_from_where_it_was():
    desk = Desk()
    path = ids(9, 1)
    job = desk.ask(path, n=2)
    desk.step()
    work = desk.step()
    [lane, other] = work.batch.rows[0].lanes
    lane.tokens, other.ended = [7, 8], True
    desk.scheduler.preempt(job)
    [sequence] = desk.scheduler.waiting
    assert sequence.path.tolist() == [*path.tolist(), 7, 8]
    assert desk.cache.locked == 0
    desk.step()
    assert [row.lanes for _, _, row in desk.scheduler.running()] == [[lane]] or desk.step().joining == [0]
    assert lane.base == 2
