"""The inference engine: batches of requests in, samples or values out, nothing computed twice.

Shapes are rounded up to a few sizes, so after warm-up nothing is compiled; paths that share a beginning share its cache.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from agentrm_jax import parallel
from agentrm_jax.engine import kernels, layout
from agentrm_jax.engine.prefix import PrefixCache
from agentrm_jax.engine.requests import EngineConfig, EngineStats, GenerateRequest, Sample
from agentrm_jax.models.transformer import Transformer
from agentrm_jax.types import UserError

J = TypeVar("J")
_STEPS = 4  # decoding steps between two looks at which rows are done


@dataclasses.dataclass(frozen=True)
class _Job:
    """`width` samples of one request, from sample `first` on."""

    request: int
    first: int
    width: int


class Engine:
    """Policy or reward model (or both) on local devices. Calls are synchronous and must not overlap.

    Args:
      end_id: the end-of-turn token.
      dtype: of weights, activations and cache.

    Raises:
      UserError: the cache cannot hold one path of the longest allowed length, or there are not `config.tensor` devices.
    """

    def __init__(self, model: Transformer, config: EngineConfig, *, end_id: int, dtype: jnp.dtype = jnp.float32):
        self.model_config, self.config, self.end_id = model.config, config, end_id
        if config.cache_tokens < config.context[-1]:
            raise UserError(
                f"the engine's cache of {config.cache_tokens} tokens cannot hold a history of {config.context[-1]}; "
                "raise --config.engine.cache_tokens"
            )
        self.stats = EngineStats()
        mesh = local_mesh(config.tensor)
        self._placed: Callable[[], Any] = functools.partial(jax.set_mesh, mesh) if mesh else contextlib.nullcontext
        if mesh:
            graph, params = nnx.split(model)
            model = nnx.merge(graph, jax.device_put(params, parallel.shardings(params, mesh)))
        with self._placed():
            self._weights = jax.jit(lambda m: kernels.Weights(m, dtype))(model)
            empty = jax.jit(kernels.empty_pool, static_argnums=(0, 1, 2))
            self._pool = empty(model.config, config.cache_tokens, dtype)
        self._cache = PrefixCache(config.cache_tokens)
        # The value at every cached token; not a number where it was sampled and not read.
        self._value = np.full(config.cache_tokens, np.nan, np.float32)
        self._read = jax.jit(kernels.read, static_argnums=1)
        self._write = jax.jit(kernels.write, donate_argnums=0)
        self._start = jax.jit(functools.partial(kernels.start, max_new=config.max_new, end_id=end_id), static_argnums=1)
        self._decode = jax.jit(
            functools.partial(kernels.decode, end_id=end_id),
            static_argnums=1,
            static_argnames="columns",
            donate_argnums=2,
        )
        self._keep_rows = jax.jit(kernels.keep_rows)
        self._store = jax.jit(kernels.store, static_argnums=0, static_argnames="columns", donate_argnums=1)

    @property
    def compilations(self) -> int:
        """Programs compiled so far, for engines of one kind together; constant once all sizes that occur have occurred."""
        programs = (self._read, self._write, self._start, self._decode, self._keep_rows, self._store)
        return sum(p._cache_size() for p in programs)  # type: ignore[attr-defined]

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Sample]]:
        """`n` samples for every request, in order. Sample i depends on the request's path, seed and i alone.

        Raises:
          UserError: a path leaves no room for a reply.
        """
        limit = self.config.context[-1]
        for request in requests:
            if len(request.tokens) + self.config.max_new > limit:
                raise UserError(
                    f"a history of {len(request.tokens)} tokens leaves no room for {self.config.max_new} more in {limit}"
                )
        with self._placed():
            parts = [self._generate(part) for part in self._portions(requests, lambda r: r.tokens)]
        return [samples for part in parts for samples in part]

    def score(self, paths: Sequence[np.ndarray]) -> np.ndarray:
        """float32[len(paths)]: the value at the end of every path. Of many paths, every distinct token is read once.

        Raises:
          UserError: a path is longer than the engine allows.
        """
        for path in paths:
            if len(path) > self.config.context[-1]:
                raise UserError(
                    f"a history of {len(path)} tokens is longer than the engine's {self.config.context[-1]}"
                )
        with self._placed():
            parts = [self._values(part) for part in self._portions(paths, lambda path: path)]
        return np.concatenate([np.zeros(0, np.float32), *parts])

    def _portions(self, requests: Sequence[J], path: Callable[[J], np.ndarray]) -> list[list[J]]:
        """Requests in portions whose paths fit the cache together, so that nothing of a portion is ever evicted."""
        portions: list[list[J]] = []
        room = 0
        before = np.zeros(0, np.int32)
        for request in requests:
            tokens = path(request)
            need = len(tokens) - (layout.common_length(before, tokens) if portions else 0)
            if need > room:
                portions.append([])
                room, need = self.config.cache_tokens, len(tokens)
            portions[-1].append(request)
            room -= need
            before = tokens
        return portions

    # --- sampling ----------------------------------------------------------------------------------------------------

    def _generate(self, requests: Sequence[GenerateRequest]) -> list[list[Sample]]:
        hidden = self._hidden([r.tokens for r in requests])
        histories = [self._cache.match(r.tokens) for r in requests]
        jobs: list[_Job] = []
        for i, request in enumerate(requests):
            width = self.config.samples if request.n > 1 else 1
            jobs += [_Job(i, first, width) for first in range(0, request.n, width)]
        found: dict[_Job, list[Sample]] = {}
        for group in self._decode_batches(jobs, histories):
            states = np.stack([hidden[requests[j.request].tokens.tobytes()] for j in group])
            found.update(self._sample_batch(requests, histories, group, states))
        out: list[list[Sample]] = [[] for _ in requests]
        for job in jobs:
            out[job.request] += found[job]
        return [samples[: r.n] for samples, r in zip(out, requests, strict=True)]

    def _decode_batches(self, jobs: Sequence[_Job], histories: Sequence[np.ndarray]) -> list[list[_Job]]:
        """Jobs of one width and similar length together, in batches that fill the allowed numbers of rows well."""
        groups: dict[tuple[int, int], list[_Job]] = {}
        for job in jobs:
            groups.setdefault((job.width, self._bucket(len(histories[job.request]), "context")), []).append(job)
        out = []
        for _, group in sorted(groups.items()):
            at = 0
            for count in layout.cover(len(group), self.config.rows):
                out.append(group[at : at + count])
                at += count
        return out

    def _sample_batch(
        self,
        requests: Sequence[GenerateRequest],
        histories: Sequence[np.ndarray],
        jobs: Sequence[_Job],
        hidden: np.ndarray,
    ) -> dict[_Job, list[Sample]]:
        """Samples for jobs of one width; rows whose samples have all ended leave the batch."""
        columns = self._bucket(max(len(histories[j.request]) for j in jobs), "context")
        batch, new_slots = self._sample_arrays(requests, histories, jobs, hidden, columns)
        state = self._start(self._weights, self.model_config, self._pool, batch)
        order = np.full(len(new_slots), -1)
        order[: len(jobs)] = np.arange(len(jobs))
        results: dict[str, np.ndarray] = {}
        step, max_new = 1, self.config.max_new
        while True:
            step = min(step + _STEPS, max_new)
            state = self._decode(self._weights, self.model_config, state, np.int32(step), columns=columns)
            live = np.flatnonzero(~np.asarray(state["done"]).all(axis=1))
            over = step == max_new or not len(live)
            fewer = self._bucket(len(live), "rows")
            if not over and fewer == len(order):
                continue
            out = {"tokens": np.asarray(state["tokens"]).transpose(1, 2, 0)}
            out |= {name: np.asarray(state[name]) for name in ("length", "logprob")}
            for name, value in out.items():
                full = results.setdefault(name, np.zeros((len(jobs), *value.shape[1:]), value.dtype))
                full[order[order >= 0]] = value[order >= 0]
            at = np.where((order >= 0)[:, None, None], new_slots[order], self.config.cache_tokens).astype(np.int32)
            self._pool = self._store(self.model_config, self._pool, at, state, columns=columns)
            if over:
                break
            ended = np.setdiff1d(np.arange(len(order)), live)
            chosen = np.concatenate([live, ended])[:fewer]
            state = self._keep_rows(state, chosen.astype(np.int32))
            order = order[chosen]
        return {
            job: self._samples(
                requests[job.request], histories[job.request], job, {k: v[i] for k, v in results.items()}, slots
            )
            for i, (job, slots) in enumerate(zip(jobs, new_slots, strict=False))
        }

    def _sample_arrays(
        self,
        requests: Sequence[GenerateRequest],
        histories: Sequence[np.ndarray],
        jobs: Sequence[_Job],
        hidden: np.ndarray,
        columns: int,
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The padded arguments of `kernels.start`, and int32[u, n, m] slots for what is sampled (past the pool: nowhere)."""
        u, n, m = self._bucket(len(jobs), "rows"), jobs[0].width, self.config.max_new
        batch = {
            "context": np.zeros((u, columns), np.int32),
            "context_length": np.ones(u, np.int32),
            "hidden": np.zeros((u, hidden.shape[1]), hidden.dtype),
            "temperature": np.zeros(u, np.float32),
            "seeds": np.zeros((u, n), np.uint32),
            "wanted": np.zeros((u, n), bool),
        }
        batch["hidden"][: len(jobs)] = hidden
        for row, job in enumerate(jobs):
            request, history = requests[job.request], histories[job.request]
            batch["context"][row, : len(history)] = history
            batch["context_length"][row] = len(history)
            batch["temperature"][row] = request.temperature
            batch["seeds"][row] = [layout.fold(request.seed, job.first + j) for j in range(n)]
            batch["wanted"][row] = np.arange(n) + job.first < request.n
        slots = np.full((u, n, m), self.config.cache_tokens, np.int32)
        reserved = self._cache.allocate(len(jobs) * n * m)
        if reserved is not None:
            slots[: len(jobs)] = reserved.reshape(len(jobs), n, m)
        self._count(len(jobs), u)
        return batch, slots

    def _samples(
        self,
        request: GenerateRequest,
        history: np.ndarray,
        job: _Job,
        out: Mapping[str, np.ndarray],
        slots: np.ndarray,
    ) -> list[Sample]:
        """A row's results; what was written for them is kept in the cache (their last token never was)."""
        samples = []
        for j in range(job.width):
            count = int(out["length"][j])
            tokens = out["tokens"][j, :count].copy()
            samples.append(Sample(tokens, float(out["logprob"][j]), bool(tokens[-1] == self.end_id)))
            if slots[j, 0] == self.config.cache_tokens:
                continue
            keep = 0
            if job.first + j < request.n:
                keep = count - 1
                self.stats.sampled_tokens += count
                path = np.concatenate([request.tokens, tokens[:keep]])
                held = self._cache.insert(path, np.concatenate([history, slots[j, :keep]]))
                new = held[len(history) :]
                self._value[new[new == slots[j, :keep]]] = np.nan
            self._cache.release(slots[j, keep:])
        return samples

    # --- reading -----------------------------------------------------------------------------------------------------

    def _hidden(self, paths: Sequence[np.ndarray]) -> dict[bytes, np.ndarray]:
        """Makes sure that all of `paths` is in the pool; the final hidden state [d] at the end of each, by its bytes."""
        self._cache.tick()
        left = {path.tobytes(): path for path in paths}
        found: dict[bytes, np.ndarray] = {}
        while left:
            for batch in self._read_batches(list(left.values())):
                found |= self._read_batch(batch)
            left = {key: path for key, path in left.items() if key not in found}
        return found

    def _values(self, paths: Sequence[np.ndarray]) -> np.ndarray:
        self._cache.tick()
        values = np.full(len(paths), np.nan, np.float32)
        while True:
            unknown = np.flatnonzero(np.isnan(values)).tolist()
            for i in unknown:
                slots = self._cache.match(paths[i])
                if len(slots) == len(paths[i]):
                    values[i] = self._value[slots[-1]]
            left = [paths[i] for i in unknown if np.isnan(values[i])]
            if not left:
                return values
            for batch in self._read_batches(left):
                self._read_batch(batch)

    def _read_batches(self, paths: Sequence[np.ndarray]) -> list[list[layout.Row]]:
        """What to read next, as rows in batches: the tokens that are not cached, of every path at least one.

        Paths that are cached already have their last token read again. What exceeds a row, or shares a beginning with a row
        that is full, is left for the next round, when that beginning is cached.
        """
        groups: dict[int, tuple[np.ndarray, list[np.ndarray]]] = {}
        for path in paths:
            cached = self._cache.match(path)[: len(path) - 1]
            groups.setdefault(int(cached[-1]) if len(cached) else -1, (cached, []))[1].append(path)
        rows = [row for cached, group in groups.values() for row in layout.rows(cached, group, self.config.new_tokens)]
        by_size: dict[int, list[layout.Row]] = {}
        for row in sorted(rows, key=lambda row: -len(row.cached)):
            by_size.setdefault(self._bucket(len(row.tokens), "new_tokens"), []).append(row)
        batches = []
        for new, group in by_size.items():
            tile = layout.tile(new)
            batches += layout.fill(group, tile, tuple(-(-size // tile) for size in self.config.batch_tokens))
        return batches

    def _read_batch(self, rows: Sequence[layout.Row]) -> dict[bytes, np.ndarray]:
        """Reads rows into the pool; the hidden states at the ends of paths, by path (a few may be left out)."""
        slots = self._cache.allocate(sum(len(row.tokens) for row in rows))
        if slots is None:
            raise UserError("the engine's cache is full; raise --config.engine.cache_tokens")
        own = np.split(slots, np.cumsum([len(row.tokens) for row in rows])[:-1])
        c = self.config
        new = self._bucket(max(len(row.tokens) for row in rows), "new_tokens")
        tile = layout.tile(new)
        count = sum(-(-len(row.tokens) // tile) for row in rows)
        padded = -(-self._bucket(count * tile, "batch_tokens") // tile)
        cached = max(len(row.cached) for row in rows)
        columns = self._bucket(cached, "context") if cached else 0
        batch, at, ends = layout.tiles(rows, own, (padded, tile), new, columns, nowhere=c.cache_tokens)
        out, entries = self._read(self._weights, self.model_config, self._pool, batch)
        self._pool = self._write(self._pool, at, entries)
        self._count(count, padded)
        self.stats.read_tokens += len(slots)
        self.stats.path_tokens += len(slots) + sum(len(row.cached) for row in rows)
        self._value[slots] = np.asarray(out["value"])[at < c.cache_tokens]
        for row, mine in zip(rows, own, strict=True):
            for path, index in zip(row.paths, row.index, strict=True):
                size = len(row.cached) + len(index)
                held = self._cache.insert(path[:size], np.concatenate([row.cached, mine[index]]))[len(row.cached) :]
                self._value[held] = self._value[mine[index]]
        return dict(zip((path.tobytes() for path in ends), np.asarray(out["hidden"]), strict=False))

    # --- sizes -------------------------------------------------------------------------------------------------------

    def _bucket(self, size: int, name: str) -> int:
        sizes: tuple[int, ...] = getattr(self.config, name)
        return next((s for s in sizes if s >= size), sizes[-1])

    def _count(self, rows: int, padded_to: int) -> None:
        self.stats.calls += 1
        self.stats.rows += rows
        self.stats.padded_rows += padded_to - rows


def local_mesh(tensor: int) -> Mesh | None:
    """The first `tensor` devices of this process as a mesh; None for one.

    Raises:
      UserError: there are fewer.
    """
    devices = jax.local_devices()
    if not 1 <= tensor <= len(devices):
        raise UserError(f"--config.engine.tensor={tensor}: this process has {len(devices)} devices")
    return None if tensor == 1 else parallel.make_mesh(1, 1, tensor, devices=devices[:tensor])


def make_engine(model: Transformer, sizes: Mapping[str, Any], *, end_id: int) -> Engine:
    """An engine with the sizes of a config's `engine` group."""
    fields = dict(sizes)
    dtype = jnp.dtype(fields.pop("dtype"))
    return Engine(model, EngineConfig(**fields), end_id=end_id, dtype=dtype)
