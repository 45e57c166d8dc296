"""The engine against a model that reads everything afresh, under any order of asking, leaving, preempting and evicting.

Covers the invariants that nothing about a request's company, order or cache may show in its answer, and that no slot is lost.
"""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agentrm_jax.engine import histories, sampling
from agentrm_jax.engine.drafting import Pace
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.requests import EngineConfig, GenerateRequest, LogprobsRequest, SamplingParams, ScoreRequest
from agentrm_jax.testing.tiny import dense_logits, dense_values, tiny_model

END = 3
MODEL = tiny_model()
SIZES = EngineConfig(
    cache_tokens=72,
    rows=(1, 3),
    batch_tokens=(24, 48),
    new_tokens=(8, 24),
    context=(32, 64),
    samples=2,
    max_new=6,
    trunk=8,
)
SEGMENTS = [np.random.default_rng(i).integers(4, 97, size).astype(np.int32) for i, size in enumerate((1, 9, 14, 9, 23))]
DRAW = jax.jit(sampling.sample)


@functools.cache
def oracle_sample(path: tuple[int, ...], params: SamplingParams, index: int) -> list[int]:
    """Sample `index` of a request, each token drawn after one dense pass over everything before it."""
    seed = np.array([sampling.fold(params.seed, index)], np.uint32)
    new: list[int] = []
    while len(new) < (params.max_tokens or SIZES.max_new) and new[-1:] != [END]:
        logits = jnp.asarray(dense_logits(MODEL, [*path, *new])[-1:])
        token, _ = DRAW(logits, jnp.full(1, params.temperature), seed, jnp.int32(len(new)))
        new.append(int(token[0]))
    return new


@functools.cache
def oracle(path: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Values of all tokens of a path, and log-probabilities of all but the first."""
    logp = np.asarray(jax.nn.log_softmax(jnp.asarray(dense_logits(MODEL, path))))
    return dense_values(MODEL, path), logp[np.arange(len(path) - 1), path[1:]]


paths = st.lists(st.sampled_from(range(len(SEGMENTS))), min_size=1, max_size=3).map(
    lambda chosen: np.concatenate([SEGMENTS[i] for i in chosen])[: SIZES.context[-1]]
)
params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1.0]),
    n=st.integers(1, 3),
    seed=st.integers(0, 2),
    max_tokens=st.sampled_from([None, 1, 8]),
)


class Machine(RuleBasedStateMachine):
    sizes = SIZES

    def __init__(self):
        super().__init__()
        self.engine = Engine(MODEL, self.sizes, end_id=END)
        self.jobs = []

    def submit(self, request):
        self.jobs.append(self.engine.submit(request))

    @initialize(path=paths, params=params)
    def first(self, path, params):
        self.generate(path, params)

    @rule(path=paths, params=params)
    def generate(self, path, params):
        path = path[: 64 - (params.max_tokens or SIZES.max_new)]
        self.submit(GenerateRequest(path, params))

    @rule(path=paths)
    def score(self, path):
        self.submit(ScoreRequest(path))

    @rule(path=paths, data=st.data())
    def logprobs(self, path, data):
        self.submit(LogprobsRequest(path, data.draw(st.integers(1, len(path)))))

    @rule(data=st.data())
    def cancel(self, data):
        self.engine.cancel(data.draw(st.sampled_from(self.jobs)))

    @rule(data=st.data())
    def preempt(self, data):
        self.engine.preempt(data.draw(st.sampled_from(self.jobs)))

    @rule(count=st.integers(1, SIZES.cache_tokens))
    def evict(self, count):
        """Everything that is not held, oldest first, until `count` slots are free."""
        slots = self.engine.cache.allocate(count)
        if slots is not None:
            self.engine.cache.release(slots)

    @rule(times=st.integers(1, 4))
    def step(self, times):
        for _ in range(times):
            self.engine.step()

    @invariant()
    def no_slot_is_lost(self):
        held, stack = [], [self.engine.cache._root]
        while stack:
            run = stack.pop()
            stack += run.children.values()
            held += run.slots.tolist()
        assert len(set(held)) == len(held)
        assert self.engine.cache.free + len(held) == SIZES.cache_tokens

    def teardown(self):
        steps = 0
        while self.engine.step():
            steps += 1
            assert steps < 2000, "it never ends"
        assert self.engine.idle
        assert self.engine.cache.locked == 0
        for job in self.jobs:
            assert job.done or job.cancelled
            if job.done:
                self.check(job.request, job.result)

    def check(self, request, result):
        path = tuple(request.tokens.tolist())
        if isinstance(request, GenerateRequest):
            want = [oracle_sample(path, request.params, i) for i in range(request.params.n)]
            assert [s.tokens.tolist() for s in result] == want
            for sample, tokens in zip(result, want, strict=True):
                np.testing.assert_allclose(sample.logprobs, oracle((*path, *tokens))[1][len(path) - 1 :], atol=1e-3)
        elif isinstance(request, ScoreRequest):
            np.testing.assert_allclose(result, oracle(path)[0][-1], atol=1e-4)
        else:
            np.testing.assert_allclose(result, oracle(path)[1][request.start - 1 :], atol=1e-3)


class EveryOther(Pace):
    """Calls with and without drafts in turn, whatever is faster."""

    def record(self, *call):
        self.drafting = not self.drafting


class DraftingMachine(Machine):
    """The same where decode steps verify proposed tokens. Paths are made of few segments, so there is much to propose."""

    sizes = dataclasses.replace(SIZES, draft=2)

    def __init__(self):
        super().__init__()
        self.engine._paces.default_factory = EveryOther


class InPlaceMachine(DraftingMachine):
    """The same where a kernel (interpreted here) reads histories in the pool, so that nothing shields them from what is evicted."""

    def __init__(self):
        with mock.patch.object(histories, "choose_reader", return_value="gpu"):
            super().__init__()


def case_of(machine, examples):
    case = machine.TestCase
    case.settings = settings(
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    return case


TestMachine = case_of(Machine, 20)
TestDraftingMachine = case_of(DraftingMachine, 8)
TestInPlaceMachine = case_of(InPlaceMachine, 3)
