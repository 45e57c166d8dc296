"""The engine by itself: prefill, decode, agents' episodes and step scoring, each against one cached sequence after the other.

Beside the rates: what a turn costs early and late in an episode, and how many slots of the cache candidates take that share most
of their tokens. Samples are greedy and of one length, so that both sides do the same work; ends of turns never occur.
"""

import asyncio
import statistics
import time
from collections.abc import Iterator

import numpy as np
from flax import nnx

from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.requests import EngineConfig, GenerateRequest, SamplingParams, ScoreRequest
from agentrm_jax.engine.service import EngineService
from agentrm_jax.models.transformer import Transformer
from benchmarks import naive
from benchmarks.measure import Pass, Row, Size, compare, tokens

_CANDIDATES, _OBSERVATION = 5, 48


def run(size: Size, seconds: float) -> Iterator[Row]:
    model = Transformer(size.model, rngs=nnx.Rngs(0), value_head=True)
    room = -(-(size.context + size.new_tokens) // 64) * 64
    one = "cached, one by one"
    for count in (1, 8, 32):
        count = min(count, size.histories)
        case = f"{count} histories of {size.context} tokens"

        def first_token(repeat: int, count: int = count) -> float:
            histories = _histories(size, count, repeat)
            naive.one_by_one(model, histories, 1, room)
            return sum(map(len, histories))

        yield compare(
            "engine",
            f"prefill, {case}",
            "tokens/s",
            _prefill(model, size, count),
            one,
            first_token,
            size=size,
            seconds=seconds,
        )

        def all_tokens(repeat: int, count: int = count) -> float:
            new = naive.one_by_one(model, _histories(size, count, 0), size.new_tokens, room)
            return sum(map(len, new))

        mine = _decode(model, size, count)
        case = f"decode, {case} (cached), {size.new_tokens} new"
        yield compare(
            "engine", case, "tokens/s", mine, f"{one}, prefill included", all_tokens, size=size, seconds=seconds
        )

    episodes = max(size.histories // 8, 1)
    room = -(-(size.context + size.turns * (size.new_tokens + _OBSERVATION)) // 64) * 64

    def one_turn_after_the_other(repeat: int) -> float:
        """The same number of tokens after histories of the middle turn."""
        middle = size.context + size.turns // 2 * (size.new_tokens + _OBSERVATION)
        histories = [tokens(middle, size, i, repeat) for i in range(_CANDIDATES)]
        return sum(map(len, naive.one_by_one(model, histories, size.new_tokens, room)))

    case = f"best of {_CANDIDATES}: {episodes * _CANDIDATES} episodes, {size.turns} turns"
    mine = _best_of_n(model, size, episodes, room)
    yield compare("engine", case, "tokens/s", mine, one, one_turn_after_the_other, size=size, seconds=seconds)
    print(f"cost of a turn: {cost_of_turns(model, size)}")
    print(f"slots of 25 candidates that share 90 % of their tokens: {shared_slots(model, size):.3f} of unshared ones")


def _engine(model: Transformer, size: Size, rows: int, room: int) -> Engine:
    config = EngineConfig(
        cache_tokens=4 * max(rows, 25) * room,
        rows=tuple(sorted({max(rows // 8, 1), rows})),
        new_tokens=(64, 256),
        batch_tokens=(512, 2048),
        context=(room // 2, room),
        samples=_CANDIDATES,
        max_new=size.new_tokens,
    )
    return Engine(model, config, end_id=-1)


def _histories(size: Size, count: int, repeat: int) -> list[np.ndarray]:
    return [tokens(size.context, size, i, repeat) for i in range(count)]


def _prefill(model: Transformer, size: Size, count: int) -> Pass:
    mine = _engine(model, size, count, 2 * size.context)

    def read(repeat: int) -> float:
        histories = _histories(size, count, repeat)
        mine.score(histories)
        return sum(map(len, histories))

    return read


def _decode(model: Transformer, size: Size, count: int) -> Pass:
    mine = _engine(model, size, count, 2 * size.context)
    requests = [GenerateRequest(h, SamplingParams(temperature=0.0)) for h in _histories(size, count, 0)]

    def generate(repeat: int) -> float:
        return sum(len(sample.tokens) for samples in mine.generate(requests) for sample in samples)

    return generate


def _best_of_n(model: Transformer, size: Size, tasks: int, room: int) -> Pass:
    """Episodes of agents that wait for nobody: an instruction they all share, their task, then turns."""
    service = EngineService(_engine(model, size, tasks * _CANDIDATES, room))

    async def episode(task: int, index: int, repeat: int) -> int:
        path = np.concatenate([tokens(size.context - 20, size, 0), tokens(20, size, task, repeat)])
        for turn in range(size.turns):
            params = SamplingParams(seed=index)
            [sample] = await service.generate(GenerateRequest(path, params))
            path = np.concatenate([path, sample.tokens, tokens(_OBSERVATION, size, task, index, turn, repeat)])
        return size.turns * size.new_tokens

    async def all_episodes(repeat: int) -> int:
        pairs = [(task, index) for task in range(tasks) for index in range(_CANDIDATES)]
        return sum(await asyncio.gather(*(episode(task, index, repeat) for task, index in pairs)))

    return lambda repeat: asyncio.run(all_episodes(repeat))


def cost_of_turns(model: Transformer, size: Size, turns: int = 10, repeats: int = 5) -> str:
    """What scoring five candidates costs at the second and the last turn of an episode, and the ratio of the medians."""
    step = 24
    mine = _engine(model, size, 8, -(-(size.context + turns * 2 * step) // 64) * 64)
    spent: dict[int, list[float]] = {turn: [] for turn in range(turns)}
    for repeat in range(repeats + 1):
        history = tokens(size.context, size, repeat)
        for turn in range(turns):
            candidates = [np.concatenate([history, tokens(step, size, repeat, turn, c)]) for c in range(_CANDIDATES)]
            begin = time.perf_counter()
            mine.score(candidates)
            if repeat:  # the first one compiles
                spent[turn].append(time.perf_counter() - begin)
            history = np.concatenate([candidates[0], tokens(step, size, repeat, turn, 9)])
    second, last = statistics.median(spent[1]), statistics.median(spent[turns - 1])
    return f"{1e3 * second:.1f} ms at turn 2, {1e3 * last:.1f} ms at turn {turns}, ratio {last / second:.2f}"


def shared_slots(model: Transformer, size: Size) -> float:
    """Cached tokens of 25 candidates of which 90 % are shared, as a part of what they would take apart."""
    mine = _engine(model, size, 8, 2 * size.context)
    trunk, own = tokens(size.context * 9 // 10, size, 1), size.context // 10
    jobs = [mine.submit(ScoreRequest(np.concatenate([trunk, tokens(own, size, 2, c)]))) for c in range(25)]
    while not all(job.done for job in jobs):
        mine.step()
    return mine.cache.held / (25 * (len(trunk) + own))
