"""Coroutines share an engine: each gets its own answer or its own error, and nobody waits for someone who left."""

import asyncio

import numpy as np
import pytest

from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.requests import EngineConfig, GenerateRequest, LogprobsRequest, RequestError, SamplingParams
from agentrm_jax.engine.service import EngineService
from agentrm_jax.testing.tiny import dense_greedy, dense_values, tiny_model

END = 3
MODEL = tiny_model()
SIZES = EngineConfig(
    cache_tokens=1024, rows=(2, 4), batch_tokens=(24, 96), new_tokens=(8, 24), context=(32, 64), samples=3, max_new=6
)


def ids(size, seed):
    return np.random.default_rng(seed).integers(4, 97, size).astype(np.int32)


def greedy(path, max_tokens=6):
    return GenerateRequest(path, SamplingParams(temperature=0.0, max_tokens=max_tokens, stop_token_ids=()))


def want(path, max_tokens=6):
    return dense_greedy(MODEL, path, max_tokens, end_id=-1)


def value(path):
    return pytest.approx(float(dense_values(MODEL, path)[-1]), abs=1e-4)


@pytest.fixture(scope="module")
def engine():
    return Engine(MODEL, SIZES, end_id=END)


@pytest.fixture
def service(engine):
    yield EngineService(engine)
    assert engine.cache.locked == 0, "whatever happened, nothing is held"


class Failing:
    """An engine that breaks at its n-th step."""

    def __init__(self, engine, step):
        self.engine, self.left = engine, step

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def step(self):
        self.left -= 1
        if self.left == 0:
            raise OSError("the device is gone")
        return self.engine.step()


def test_every_asker_gets_its_own_answer(service):
    paths = [ids(5 + 4 * i, i) for i in range(7)]

    async def run():
        samples = (service.generate(greedy(path)) for path in paths)
        scores = (service.score([path, path[:3]]) for path in paths)
        return await asyncio.gather(*samples), await asyncio.gather(*scores), await service.score([])

    samples, scores, nothing = asyncio.run(run())
    assert [s.tokens.tolist() for [s] in samples] == [want(path) for path in paths]
    assert scores == [[value(path), value(path[:3])] for path in paths]
    assert nothing == []


def test_those_that_ask_at_once_are_served_together(service, engine):
    paths = [ids(8, 50 + i) for i in range(4)]

    async def run():
        await asyncio.gather(*(service.generate(greedy(path)) for path in paths))

    prefills, steps = engine.stats.prefills, engine.stats.decode_steps
    asyncio.run(run())
    assert engine.stats.prefills - prefills == 1
    assert engine.stats.decode_steps - steps == 6


def test_a_late_request_joins_those_that_run(service, engine):
    long, late = ids(9, 20), ids(30, 21)

    async def run():
        first = asyncio.create_task(service.generate(greedy(long, 50)))
        steps = engine.stats.decode_steps
        while engine.stats.decode_steps < steps + 8:
            await asyncio.sleep(0)
        [sample] = await service.generate(greedy(late))
        assert not first.done()
        return sample, (await first)[0]

    sample, other = asyncio.run(run())
    assert (sample.tokens.tolist(), other.tokens.tolist()) == (want(late), want(long, 50))


def test_the_event_loop_goes_on_while_the_device_works(service):
    async def run():
        ticks = 0
        answer = asyncio.create_task(service.generate(greedy(ids(9, 22), 40)))
        while not answer.done():
            await asyncio.sleep(0)
            ticks += 1
        return ticks

    assert asyncio.run(run()) > 10


def test_a_request_that_cannot_be_served_fails_alone(service):
    fine, long, foreign = ids(9, 1), ids(65, 2), np.array([5, 97], np.int32)

    async def run():
        asks = (
            service.score([fine]),
            service.score([fine, long]),
            service.generate(greedy(foreign)),
            service.logprobs(LogprobsRequest(fine, 0)),
            service.generate(greedy(fine)),
        )
        return await asyncio.gather(*asks, return_exceptions=True)

    score, too_long, no_row, no_first, samples = asyncio.run(run())
    assert score == [value(fine)]
    assert samples[0].tokens.tolist() == want(fine)
    assert all(isinstance(error, RequestError) for error in (too_long, no_row, no_first))
    assert "a history of 65 tokens is longer than the engine's 64" in str(too_long)
    assert "token id 97 has no embedding: the model has 97" in str(no_row)


@pytest.mark.parametrize("after", [0, 3])
def test_whoever_leaves_is_dropped_and_the_others_go_on(service, engine, after):
    """Before the first step, and in the middle of decoding."""

    async def run():
        leaving = asyncio.create_task(service.generate(greedy(ids(9, 30), 50)))
        staying = asyncio.create_task(service.generate(greedy(ids(9, 31), 20)))
        steps = engine.stats.decode_steps
        await asyncio.sleep(0)
        while after and engine.stats.decode_steps < steps + after:
            await asyncio.sleep(0)
        leaving.cancel()
        [left], [sample] = await asyncio.gather(asyncio.gather(leaving, return_exceptions=True), staying)
        return left, sample

    left, sample = asyncio.run(run())
    assert isinstance(left, asyncio.CancelledError)
    assert sample.tokens.tolist() == want(ids(9, 31), 20)
    assert engine.idle


def test_a_broken_step_fails_those_who_wait_and_nobody_after_them(engine):
    service = EngineService(Failing(engine, 2))

    async def run():
        asks = (service.generate(greedy(ids(9, 40 + i), 20)) for i in range(3))
        failed = await asyncio.gather(*asks, return_exceptions=True)
        return failed, (await service.generate(greedy(ids(9, 43))))[0]

    failed, sample = asyncio.run(run())
    assert [str(error) for error in failed] == ["the device is gone"] * 3
    assert sample.tokens.tolist() == want(ids(9, 43))


def test_two_engines_take_turns(service, engine):
    other = EngineService(Engine(MODEL, SIZES, end_id=END))

    async def episode(i):
        path = ids(6 + i, 60 + i)
        for _ in range(3):
            [sample] = await service.generate(greedy(path))
            path = np.concatenate([path, sample.tokens])
            assert await other.score([path]) == [value(path)]

    async def run():
        await asyncio.gather(*(episode(i) for i in range(3)))

    asyncio.run(run())


def test_a_service_outlives_its_event_loop(service, engine):
    async def impatient():
        await asyncio.wait_for(service.generate(greedy(ids(9, 70), 50)), timeout=0.005)

    with pytest.raises(TimeoutError):
        asyncio.run(impatient())
    for i in range(2):
        [sample] = asyncio.run(service.generate(greedy(ids(9, 71 + i))))
        assert sample.tokens.tolist() == want(ids(9, 71 + i))
    assert engine.idle
