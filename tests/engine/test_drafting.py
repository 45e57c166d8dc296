"""What prompt lookup proposes, when it is used, and that nothing about a sample changes by it."""

import dataclasses

import jax
import numpy as np
import pytest

from agentrm_jax.engine.drafting import NGRAM, Pace, propose
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.requests import EngineConfig, GenerateRequest, SamplingParams
from agentrm_jax.testing.tiny import dense_greedy, tiny_model

END = 3
MODEL = tiny_model()
SIZES = EngineConfig(
    cache_tokens=2048,
    rows=(2, 4),
    batch_tokens=(96,),
    new_tokens=(24, 48),
    context=(64, 128),
    samples=3,
    max_new=24,
    draft=3,
)
PROPOSE = jax.jit(propose, static_argnums=2)


def said_before(known, count):
    """The rule in plain Python."""
    for size in range(NGRAM, 0, -1):
        for end in range(len(known) - 2, size - 2, -1):
            if known[end - size + 1 : end + 1] == known[-size:]:
                period = known[end + 1 :]
                return [period[i % len(period)] for i in range(count)]
    return [-1] * count


def test_proposals_follow_the_latest_of_the_longest_runs():
    rng = np.random.default_rng(0)
    paths = [rng.integers(0, 4, rng.integers(1, 30)).tolist() for _ in range(200)]
    known = np.full((200, 32), 2, np.int32)  # what lies behind a path's end must not matter
    for row, path in zip(known, paths, strict=True):
        row[: len(path)] = path
    got = PROPOSE(known, np.array([len(path) for path in paths]), 4)
    assert got.tolist() == [said_before(path, 4) for path in paths]


def test_the_faster_way_is_taken_and_the_other_tried_now_and_then():
    pace, ways = Pace(), []
    for _ in range(200):
        way = pace.choose()
        ways.append(way)
        pace.record(way, 8 if way else 4, 3.0 if way else 1.0)  # twice the tokens in thrice the time
    assert 0 < sum(ways[10:]) < 20
    for _ in range(200):
        way = pace.choose()
        ways.append(way)
        pace.record(way, 8 if way else 4, 1.5 if way else 1.0)
    assert sum(ways[-60:]) > 50


class Always(Pace):
    """Proposals in every call, or in every other one."""

    every = 1

    def choose(self):
        return self._since % self.every == 0

    def record(self, drafting, tokens, seconds):
        self._since += 1


class EveryOther(Always):
    every = 2


def engine(pace=None, **changes):
    mine = Engine(MODEL, dataclasses.replace(SIZES, **changes), end_id=END, text=lambda ids: " ".join(map(str, ids)))
    if pace is not None:
        mine._paces.default_factory = pace
    return mine


def repetitive(seed, size=40):
    rng = np.random.default_rng(seed)
    phrase = rng.integers(4, 97, 7)
    return np.concatenate([rng.integers(4, 97, 5), np.tile(phrase, size // 7)]).astype(np.int32)


REQUESTS = [
    GenerateRequest(repetitive(seed, 14 + 7 * seed), params)
    for seed, params in enumerate(
        [
            SamplingParams(temperature=0.0),
            SamplingParams(temperature=0.0, n=3),
            SamplingParams(temperature=0.4, n=2, seed=5),
            SamplingParams(temperature=0.1, n=4, max_tokens=40),  # longer than a row stays
            SamplingParams(temperature=0.3, max_tokens=1),
            SamplingParams(temperature=0.2, n=3, stop_token_ids=tuple(range(4, 12))),
            SamplingParams(temperature=0.3, n=2, stop=("7",)),
            SamplingParams(temperature=0.3, n=2, top_k=3, repetition_penalty=1.2, logprobs=2),
        ]
    )
]


@pytest.mark.parametrize("pace", [Always, EveryOther])
@pytest.mark.parametrize("trunk", [0, 8])
def test_samples_are_the_same_with_drafts(pace, trunk):
    plain, drafting = engine(draft=0, trunk=trunk), engine(pace, trunk=trunk)
    for want, got in zip(plain.generate(REQUESTS), drafting.generate(REQUESTS), strict=True):
        for a, b in zip(want, got, strict=True):
            assert a.tokens.tolist() == b.tokens.tolist()
            assert (a.finished, a.stop) == (b.finished, b.stop)
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-3)
    assert plain.stats.drafted == 0
    assert 0 < drafting.stats.accepted < drafting.stats.drafted
    assert drafting.stats.sampled_tokens == plain.stats.sampled_tokens


def test_accepted_drafts_save_steps_and_stay_cached():
    """A greedy sample that repeats itself takes fewer steps, and goes on from the cache as if it had been read."""
    seed = next(s for s in range(99) if len(set(dense_greedy(MODEL, repetitive(s), 24, END)[-8:])) == 1)
    path, mine = repetitive(seed), engine(Always)
    [[sample]] = mine.generate([GenerateRequest(path, SamplingParams(temperature=0.0))])
    assert sample.tokens.tolist() == dense_greedy(MODEL, path, 24, END)
    assert mine.stats.decode_steps < 20
    longer, before = np.concatenate([path, sample.tokens, repetitive(1)[:4]]), mine.stats.read_tokens
    [[reply]] = mine.generate([GenerateRequest(longer, SamplingParams(temperature=0.0))])
    assert reply.tokens.tolist() == dense_greedy(MODEL, longer, 24, END)
    assert mine.stats.read_tokens - before == 5  # the new ones and the sample's last, which was never read


def test_both_ways_share_what_is_compiled():
    mine = engine(EveryOther)
    mine.generate(REQUESTS)
    mine.generate(REQUESTS)
    compiled = mine.compilations
    mine.generate(REQUESTS)
    assert mine.compilations == compiled
