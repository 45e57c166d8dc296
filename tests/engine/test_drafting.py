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


@dataclasses.dataclass
class Machine:
    """What a step costs here without and with proposals, in seconds, 8 samples a call; every third call is disturbed."""

    cost: tuple[float, float] = (1.0, 2.0)
    calls: int = 0

    def run(self, pace: Pace, calls: int, accepted: int) -> list[bool]:
        """The ways of some calls in which so many proposed tokens are right, of those with proposals."""
        ways = []
        for _ in range(calls):
            ways.append(pace.drafting)
            self.calls += 1
            disturbed = 5.0 if self.calls % 3 == 0 else 1.0
            pace.record(4, 8, accepted * pace.drafting, 4 * disturbed * self.cost[pace.drafting])
        return ways


def test_a_way_that_does_not_pay_is_tried_ever_less():
    ways = Machine().run(Pace(), 2000, accepted=4)
    assert ways[:8] == [True] * 4 + [False] * 4, "both are tried, and what may have been compiled does not count"
    assert sum(ways[8:]) == 3 * 5, "half a token more is too little for twice the time"


def test_proposals_that_pay_are_made_all_the_time_but_for_trials():
    ways = Machine().run(Pace(), 2000, accepted=16)
    assert sum(not way for way in ways[8:]) == 3 * 5


def test_it_is_seen_when_proposals_begin_or_cease_to_pay():
    pace, machine = Pace(), Machine()
    machine.run(pace, 400, accepted=0)
    ways = machine.run(pace, 600, accepted=16)
    assert all(ways[ways.index(True) :][:60]), "the next trial shows that they pay now"
    ways = machine.run(pace, 400, accepted=0)
    assert sum(ways) < 20, "that they do not any more shows at once"


def test_a_machine_that_becomes_slower_for_one_way_is_noticed():
    pace, machine = Pace(), Machine(cost=(1.0, 1.2))
    machine.run(pace, 100, accepted=4)
    assert pace.drafting
    machine.cost = 1.0, 3.0
    machine.run(pace, 200, accepted=4)
    assert not pace.drafting


def test_calls_that_may_have_been_compiled_do_not_count():
    pace = Pace()
    for seconds in (60.0, 1.2, 1.2, 1.2, 90.0, 1.0, 1.0, 1.0):
        pace.record(1, 8, 8 * pace.drafting, seconds)
    assert pace.cost == [1.0, 1.2]
    assert pace.drafting


class Always(Pace):
    """Proposals in every call."""

    def record(self, *call):
        pass


class EveryOther(Pace):
    """Calls with and without proposals in turn."""

    def record(self, *call):
        self.drafting = not self.drafting


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
