"""Generation: our engine against reading everything again for every token, and against one cached sequence after the other.

All samples are greedy and of one length, so that both sides do the same work; ends of turns never occur.
"""

from collections.abc import Iterator

import numpy as np
from flax import nnx

from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.requests import EngineConfig, GenerateRequest, SamplingParams
from agentrm_jax.models.transformer import Transformer
from benchmarks import naive
from benchmarks.measure import Pass, Row, Size, compare, tokens

_OBSERVATION = 40


def run(size: Size, seconds: float) -> Iterator[Row]:
    model = Transformer(size.model, rngs=nnx.Rngs(0))
    room = -(-(size.context + 2 * size.new_tokens + _OBSERVATION) // 64) * 64
    few = max(size.histories // 8, 1)

    def histories(count: int, *seed: int) -> list[np.ndarray]:
        return [tokens(size.context, size, i, *seed) for i in range(count)]

    def fresh(count: int, n: int) -> Pass:
        mine = _engine(model, size, room)

        def generate(repeat: int) -> float:
            return _tokens(mine.generate(_greedy(histories(count, repeat), n)))

        return generate

    def one_by_one(count: int, n: int) -> Pass:
        def generate(repeat: int) -> float:
            return sum(map(len, naive.one_by_one(model, histories(count, repeat) * n, size.new_tokens, room)))

        return generate

    def recompute(repeat: int) -> float:
        return sum(map(len, naive.recompute(model, histories(few, repeat), size.new_tokens, room)))

    def next_turn(count: int) -> Pass:
        mine = _engine(model, size, room)
        first = histories(count)
        known = [np.concatenate([h, s[0].tokens]) for h, s in zip(first, mine.generate(_greedy(first)), strict=True)]

        def generate(repeat: int) -> float:
            seen = [np.concatenate([k, tokens(_OBSERVATION, size, i, repeat, 1)]) for i, k in enumerate(known)]
            return _tokens(mine.generate(_greedy(seen)))

        return generate

    n, case = size.histories, f"histories of {size.context} tokens, {size.new_tokens} new"
    cases = [
        (f"{few} {case}", fresh(few, 1), "read again for every token", recompute),
        (f"{n} {case}", fresh(n, 1), "cached, one by one", one_by_one(n, 1)),
        (f"{few} {case}, 5 samples", fresh(few, 5), "cached, one by one", one_by_one(few, 5)),
        (
            f"{n} next turns ({_OBSERVATION} tokens later)",
            next_turn(n),
            "cached, one by one, from the start",
            one_by_one(n, 1),
        ),
    ]
    for name, ours, baseline, theirs in cases:
        yield compare("decode", name, "tokens/s", ours, baseline, theirs, size=size, seconds=seconds)


def _engine(model: Transformer, size: Size, room: int) -> Engine:
    rows = tuple(sorted({max(size.histories // 8, 1), size.histories}))
    config = EngineConfig(
        cache_tokens=2 * size.histories * room,
        rows=rows,
        new_tokens=(64, 256),
        batch_tokens=(512, 2048),
        context=(room,),
        samples=5,
        max_new=size.new_tokens,
    )
    return Engine(model, config, end_id=-1)


def _greedy(histories: list[np.ndarray], n: int = 1) -> list[GenerateRequest]:
    return [GenerateRequest(h, SamplingParams(temperature=0.0, n=n)) for h in histories]


def _tokens(results: list) -> int:
    return sum(len(s.tokens) for samples in results for s in samples)
