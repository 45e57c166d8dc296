"""The inference engine: requests in at any time, samples, values or log-probabilities out, nothing computed twice.

The scheduler decides, the programs compute; here one is told what the other has done. Shapes are rounded up to a few sizes, so
after warm-up nothing is compiled; paths that share a beginning share its cache.
"""

import collections
import contextlib
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from agentrm_jax import parallel
from agentrm_jax.engine import histories, layout, programs
from agentrm_jax.engine.batch import STEPS, DecodeShape, Trunk
from agentrm_jax.engine.drafting import Pace
from agentrm_jax.engine.facts import SlotFacts
from agentrm_jax.engine.prefix import PrefixCache
from agentrm_jax.engine.requests import (
    Completion,
    EngineConfig,
    EngineStats,
    GenerateRequest,
    LogprobsRequest,
    Request,
    RequestError,
    ScoreRequest,
)
from agentrm_jax.engine.rows import joining_rows, stop_ids, take_steps
from agentrm_jax.engine.scheduler import Decode, Prefill, Scheduler
from agentrm_jax.engine.seats import DecodeBatch
from agentrm_jax.engine.sequence import Job, Lane
from agentrm_jax.models.transformer import Transformer
from agentrm_jax.types import UserError

_SLOW_START = 5.0  # seconds of compiling or loading programs after which that is said


class Engine:
    """Policy or reward model (or both) on local devices. Calls are synchronous and must not overlap; `service` has coroutines.

    Args:
      end_id: the end-of-turn token, which ends a sample unless its request says otherwise.
      dtype: of activations and cache, and of weights unless `config.weights` says otherwise.
      text: the text of token ids, for requests with stop texts.

    Raises:
      UserError: the cache cannot hold one path of the longest allowed length, the model's positions do not reach so far, or there
        are not `config.tensor` devices.
    """

    def __init__(
        self,
        model: Transformer,
        config: EngineConfig,
        *,
        end_id: int,
        dtype: jnp.dtype = jnp.float32,
        text: Callable[[list[int]], str] | None = None,
    ):
        self.model_config, self.config, self.end_id, self.text = model.config, config, end_id, text
        scaling, longest = model.config.rope_scaling, model.config.max_length
        if scaling and scaling.kind in ("longrope", "dynamic") and config.context[-1] > longest:
            raise UserError(
                f"--config.engine.context={config.context[-1]}: positions of this model ({scaling.kind} rope) are those of paths of "
                f"at most {longest} tokens; lower the last of engine.context"
            )
        if config.cache_tokens < config.context[-1]:
            raise UserError(
                f"the engine's cache of {config.cache_tokens} tokens cannot hold a history of {config.context[-1]}; "
                "raise --config.engine.cache_tokens"
            )
        self.stats = EngineStats()
        self._dtype = jnp.dtype(dtype)
        mesh = local_mesh(config.tensor)
        self._placed: Callable[[], Any] = functools.partial(jax.set_mesh, mesh) if mesh else contextlib.nullcontext
        if mesh:
            graph, params = nnx.split(model)
            model = nnx.merge(graph, jax.device_put(params, parallel.shardings(params, mesh)))
        with self._placed():
            self._weights = programs.lay_out(model, self._dtype, config.weights)
            self._pool = programs.empty_pool(model.config, config.cache_tokens, self._dtype)
            self._reader = histories.choose_reader(
                parallel.platform(), model.config, config.cache_tokens, config.tensor
            )
        value_d = self._weights.value_d
        heads = value_d.shape[1] if value_d is not None and value_d.ndim == 2 else 1
        self.cache, self._facts = PrefixCache(config.cache_tokens), SlotFacts(config.cache_tokens, heads)
        self.scheduler = Scheduler(config, self.cache, self._facts, self._reader)
        self._paces: dict[DecodeShape, Pace] = collections.defaultdict(Pace)

    @property
    def compilations(self) -> int:
        """Programs compiled so far by the engines of this process; constant once all sizes that occur have occurred."""
        return programs.compilations()

    @property
    def idle(self) -> bool:
        """Nothing is asked for that is not done."""
        return self.scheduler.idle

    # --- asking ----------------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> Job:
        """Takes a request; its job is done after some calls of `step`.

        Raises:
          RequestError: it can never be served by this engine.
        """
        self._check(request)
        job = Job(request)
        self.scheduler.add(job)
        return job

    def cancel(self, job: Job) -> None:
        """Gives up what is not done of a request."""
        if not job.done:
            self.scheduler.cancel(job)

    def preempt(self, job: Job) -> None:
        """Takes back rows and cache of a request that is not done; it goes on later, from where it is, to the same result."""
        for batch, row, sequence in list(self.scheduler.running()):
            if sequence.job is job and not sequence.fresh:
                with self._placed():
                    self._retire(batch, [row])
        self.scheduler.preempt(job)

    def step(self) -> bool:
        """Does one thing that the scheduler decides: a prefill batch, or some steps of a decode batch. False if there is none."""
        work = self.scheduler.next()
        programs_before, begin = self.compilations, time.perf_counter()
        with self._placed():
            if isinstance(work, Prefill):
                self._prefill(work)
            elif isinstance(work, Decode):
                self._decode(work)
        new, spent = self.compilations - programs_before, time.perf_counter() - begin
        if new and spent > _SLOW_START:
            what = "reading" if isinstance(work, Prefill) else "writing"
            print(f"note: {new} programs for {what} were made ready in {spent:.0f} s", file=sys.stderr, flush=True)
        return work is not None

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        """`n` samples for every request, in order. Sample i depends on the request's path, parameters and i alone.

        Raises:
          RequestError: a request cannot be served.
        """
        return self._all(requests)

    def score(self, paths: Sequence[np.ndarray]) -> np.ndarray:
        """float32[len(paths)], or [len(paths), e] of several value heads: the value at the end of every path.

        Of many paths, every distinct token is read once.

        Raises:
          RequestError: a path cannot be scored.
        """
        return np.array(self._all([ScoreRequest(path) for path in paths]), np.float32)

    def logprobs(self, requests: Sequence[LogprobsRequest]) -> list[np.ndarray]:
        """float32[len(tokens) - start] for every request.

        Raises:
          RequestError: a request cannot be served.
        """
        return self._all(requests)

    def _all(self, requests: Sequence[Request]) -> list[Any]:
        jobs: list[Job] = []
        try:
            jobs += [self.submit(request) for request in requests]
            while not all(job.done for job in jobs):
                self.step()
        except BaseException:
            for job in jobs:
                self.cancel(job)
            raise
        return [job.result for job in jobs]

    def _check(self, request: Request) -> None:
        tokens, limit, rows = np.asarray(request.tokens), self.config.context[-1], self.model_config.vocab_size
        if tokens.ndim != 1 or not len(tokens) or tokens.dtype.kind not in "iu":
            raise RequestError("a path is one or more token ids")
        if tokens.min() < 0 or tokens.max() >= rows:
            wrong = int(tokens.min() if tokens.min() < 0 else tokens.max())
            raise RequestError(
                f"token id {wrong} has no embedding: the model has {rows}; its tokenizer is another model's"
            )
        if isinstance(request, GenerateRequest):
            more = request.params.max_tokens or self.config.max_new
            if len(tokens) + more > limit:
                raise RequestError(f"a history of {len(tokens)} tokens leaves no room for {more} more in {limit}")
            if request.params.stop and self.text is None:
                raise RequestError("this engine has no tokenizer, so it cannot look for stop texts")
            return
        if len(tokens) > limit:
            raise RequestError(f"a history of {len(tokens)} tokens is longer than the engine's {limit}")
        if isinstance(request, ScoreRequest) and self._weights.value_d is None:
            raise RequestError("the model has no value head, so it cannot score")
        if isinstance(request, LogprobsRequest) and not 1 <= request.start <= len(tokens):
            raise RequestError(
                f"log-probabilities from token {request.start} of {len(tokens)}: the first has none before it"
            )

    # --- doing -----------------------------------------------------------------------------------------------------------

    def _prefill(self, work: Prefill) -> None:
        c = self.config
        new = layout.bucket(max(len(row.tokens) for row in work.rows), c.new_tokens)
        tile = layout.tile(new)
        count = sum(-(-len(row.tokens) // tile) for row in work.rows)
        padded = -(-layout.bucket(count * tile, c.batch_tokens) // tile)
        batch, at = layout.tiles(work.rows, work.slots, (padded, tile), new, c.context[-1], nowhere=c.cache_tokens)
        facts, entries = programs.prefill(
            self._weights, self.model_config, self._pool, batch, logprobs=work.logprobs, in_place=self._reader
        )
        self._pool = programs.write(self._pool, at, entries)
        real = at < c.cache_tokens
        if self._weights.value_d is not None:
            self._facts.set_values(at[real], np.asarray(facts.value)[real])
        if work.logprobs:
            known = real & (batch.previous >= 0)
            self._facts.set_logprobs(at[known], np.asarray(facts.logprob)[known])
        self.stats.prefills += 1
        self.stats.tiles += count
        self.stats.padded_tiles += padded - count
        self.stats.read_tokens += int(real.sum())
        self.stats.path_tokens += int(real.sum()) + sum(len(row.cached) for row in work.rows)
        self.scheduler.prefilled(work)

    def _decode(self, work: Decode) -> None:
        batch, model = work.batch, self.model_config
        if batch.state is None:
            batch.state = programs.empty_state(model, batch.shape, self._dtype)
        elif batch.keep is not None:
            batch.state = programs.keep_rows(model, batch.state, batch.keep)
        batch.keep = None
        if work.joining:
            arguments = joining_rows(batch, work.joining, model.vocab_size, self.end_id, self.config.max_new)
            batch.state = programs.admit(model, batch.shape, self._pool, batch.state, *arguments)
            for row in work.joining:
                sequence = batch.rows[row]
                assert sequence is not None
                sequence.fresh = False
                self.stats.read_tokens += sequence.lanes[0].base == 0
        if batch.shape.trunk and batch.shared is None:
            batch.shared = self._read_trunk(batch)
        stopped = np.ones((batch.shape.rows, batch.shape.samples), bool)
        for row, sequence in enumerate(batch.rows):
            for j, lane in enumerate(sequence.lanes if sequence is not None else ()):
                stopped[row, j] = lane.ended
        pace = self._paces[batch.shape]
        drafting = batch.shape.draft > 0 and pace.drafting
        begin = time.perf_counter()
        batch.state, steps = programs.decode(
            self._weights, model, batch.shape, drafting, self._pool, batch.state, batch.shared, stopped, np.int32(STEPS)
        )
        steps = jax.device_get(steps)
        over = take_steps(batch, steps, self.end_id, self.text)
        ran, accepted = int(steps.ran), int(steps.accepted)
        if batch.shape.draft:
            pace.record(ran, int(steps.read), accepted, time.perf_counter() - begin)
        self.stats.decode_steps += ran
        self.stats.rows += ran * batch.live
        self.stats.drafted += int(steps.drafted)
        self.stats.accepted += accepted
        if over:
            self._retire(batch, over)

    def _read_trunk(self, batch: DecodeBatch) -> Any:
        """What all rows begin with, from where any of them has it."""
        sequence = next(row for row in batch.rows if row is not None)
        assert sequence.lock is not None
        slots = np.zeros(batch.shape.trunk, np.int32)
        slots[: len(batch.trunk)] = sequence.lock.slots[: len(batch.trunk)]
        length = np.int32(len(batch.trunk))
        if batch.shape.in_place:
            return Trunk([], length, slots)
        return programs.read_trunk(self.model_config, self._pool, slots, length)

    def _retire(self, batch: DecodeBatch, rows: list[int]) -> None:
        """Ends rows: what their samples have written is cached, those that have ended are handed over, others wait again."""
        shape, nowhere = batch.shape, self.config.cache_tokens
        slots = np.full((shape.rows, shape.samples, shape.ring), nowhere, np.int32)
        for i, row in enumerate(rows):
            sequence = batch.rows[row]
            assert sequence is not None
            for j, lane in enumerate(sequence.lanes):
                self._keep_tokens(sequence.path, sequence.lock, lane, slots[i, j])
        self._pool = programs.store(
            self.model_config, shape, self._pool, batch.state, _padded(rows, shape.rows), np.int32(len(rows)), slots
        )
        for row in rows:
            sequence = batch.rows[row]
            assert sequence is not None
            for lane in sequence.lanes:
                if lane.ended:
                    self.stats.sampled_tokens += len(lane.tokens)
                    sequence.job.add_sample(
                        lane.index, _sample(lane, sequence.params.logprobs, stop_ids(sequence.params, self.end_id))
                    )
            if all(lane.ended for lane in sequence.lanes):
                self.scheduler.release(batch, row)
            else:
                self.scheduler.requeue(batch, row)

    def _keep_tokens(self, path: np.ndarray, lock: Any, lane: Lane, slots: np.ndarray) -> None:
        """Caches the path's last token and a sample's, but its last, which was never read; fills in their slots."""
        new = lane.tokens[lane.base :]
        own = self.cache.allocate(len(new))
        if own is None:
            return
        self._facts.forget(own)
        cached = len(path) - 1
        whole = np.concatenate([path, np.asarray(new[:-1], np.int32)])
        held = self.cache.insert(whole, np.concatenate([lock.slots, own]))[cached:]
        mine = held == own  # the rest was cached by another sample
        slots[: len(own)][mine] = own[mine]
        self._facts.set_logprobs(held[1:], np.asarray(lane.logprobs[lane.base : len(lane.tokens) - 1], np.float32))


def _sample(lane: Lane, most: int, ends: tuple[int, ...]) -> Completion:
    top = None
    if most:
        top = (
            np.array([ids[:most] for ids, _ in lane.top], np.int32),
            np.array([p[:most] for _, p in lane.top], np.float32),
        )
    tokens = np.array(lane.tokens, np.int32)
    finished = lane.stop is not None or lane.tokens[-1] in ends
    return Completion(tokens, np.array(lane.logprobs, np.float32), finished, lane.stop, top)


def _padded(rows: list[int], size: int) -> np.ndarray:
    return np.array(rows + [0] * (size - len(rows)), np.int32)


def local_mesh(tensor: int) -> Mesh | None:
    """The first `tensor` devices of this process as a mesh; None for one.

    Raises:
      UserError: there are fewer.
    """
    devices = jax.local_devices()
    if not 1 <= tensor <= len(devices):
        raise UserError(f"--config.engine.tensor={tensor}: this process has {len(devices)} devices")
    return None if tensor == 1 else parallel.make_mesh(1, 1, tensor, devices=devices[:tensor])


def make_engine(
    model: Transformer,
    sizes: Mapping[str, Any],
    *,
    end_id: int,
    text: Callable[[list[int]], str] | None = None,
) -> Engine:
    """An engine with the sizes of a config's `engine` group."""
    fields = dict(sizes)
    dtype = jnp.dtype(fields.pop("dtype"))
    return Engine(model, EngineConfig(**fields), end_id=end_id, dtype=dtype, text=text)
