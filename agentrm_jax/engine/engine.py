"""The inference engine: batches of requests in, samples or values out, nothing computed twice.

Shapes are rounded up to a few sizes, so after warm-up nothing is compiled; paths that share a beginning share its cache.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax import tree
from agentrm_jax.engine import kernels, layout
from agentrm_jax.engine.prefix import PrefixCache
from agentrm_jax.engine.requests import EngineConfig, EngineStats, GenerateRequest, Sample, ScoreRequest
from agentrm_jax.models.transformer import Transformer
from agentrm_jax.types import UserError

J = TypeVar("J")
_SHARE = 128  # tokens that must be saved for a shared beginning to be read in a call of its own
_STEPS = 4  # decoding steps between two looks at which rows are done


@dataclasses.dataclass(eq=False)
class _Row:
    """One history of a batch: its cached slots, the token tree to read after it, and once that is read, its slots."""

    path: np.ndarray
    cached: np.ndarray
    flat: tree.FlatTree
    slots: np.ndarray | None = None

    def history(self) -> np.ndarray:
        """Slots of the whole path."""
        assert self.slots is not None
        return np.concatenate([self.cached, self.slots])


@dataclasses.dataclass(frozen=True)
class _Job:
    """`width` samples of one request, from sample `first` on."""

    request: int
    first: int
    width: int


class Engine:
    """Policy or reward model (or both) on the local device. Calls are synchronous and must not overlap.

    Args:
      end_id: the end-of-turn token.
      dtype: of weights, activations and cache.

    Raises:
      UserError: the cache cannot hold one path of the longest allowed length.
    """

    def __init__(self, model: Transformer, config: EngineConfig, *, end_id: int, dtype: jnp.dtype = jnp.float32):
        self.model_config, self.config, self.end_id = model.config, config, end_id
        if config.cache_tokens < config.context[-1]:
            raise UserError(
                f"the engine's cache of {config.cache_tokens} tokens cannot hold a history of {config.context[-1]}; "
                "raise --config.engine.cache_tokens"
            )
        self.stats = EngineStats()
        self._weights = jax.jit(lambda m: kernels.Weights(m, dtype))(model)
        self._cache = PrefixCache(config.cache_tokens)
        self._pool = kernels.empty_pool(model.config, config.cache_tokens, dtype)
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
        return [samples for part in self._portions(requests, lambda r: r.tokens) for samples in self._generate(part)]

    def score(self, requests: Sequence[ScoreRequest]) -> np.ndarray:
        """float32[len(requests)]: the value at the end of every path; siblings are read together as one tree.

        Raises:
          UserError: a path is longer than the engine allows.
        """
        paths = {r: np.concatenate([s.tokens for s in r.segments]) for r in requests}
        for path in paths.values():
            if len(path) > self.config.context[-1]:
                raise UserError(
                    f"a history of {len(path)} tokens is longer than the engine's {self.config.context[-1]}"
                )
        values: list[np.ndarray] = [np.zeros(0, np.float32)]
        for part in self._portions(requests, paths.__getitem__):
            values.append(self._values(part, [paths[r] for r in part]))
        return np.concatenate(values)

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
        paths = {r.tokens.tobytes(): r.tokens for r in requests}
        self._read_before(list(paths.values()), as_trees=False)
        rows = {key: self._prepare(path) for key, path in paths.items()}
        hidden: dict[bytes, np.ndarray] = {}
        for batch in self._batches(list(rows.items()), lambda item: self._bucket(len(item[1].flat), "new_tokens")):
            read = self._read_batch([row for _, row in batch])
            hidden.update(zip((key for key, _ in batch), read["hidden"], strict=True))

        jobs: list[_Job] = []
        for i, request in enumerate(requests):
            width = self.config.samples if request.n > 1 else 1
            jobs += [_Job(i, first, width) for first in range(0, request.n, width)]
        owners = [rows[r.tokens.tobytes()] for r in requests]
        found: dict[_Job, list[Sample]] = {}
        for group in self._batches(jobs, lambda j: (j.width, self._bucket(len(owners[j.request].path), "context"))):
            states = np.stack([hidden[requests[j.request].tokens.tobytes()] for j in group])
            found.update(self._sample_batch(requests, owners, group, states))
        out: list[list[Sample]] = [[] for _ in requests]
        for job in jobs:
            out[job.request] += found[job]
        return [samples[: r.n] for samples, r in zip(out, requests, strict=True)]

    def _sample_batch(
        self, requests: Sequence[GenerateRequest], owners: Sequence[_Row], jobs: Sequence[_Job], hidden: np.ndarray
    ) -> dict[_Job, list[Sample]]:
        """Samples for jobs of one width; rows whose samples have all ended leave the batch."""
        columns = self._bucket(max(len(owners[j.request].path) for j in jobs), "context")
        batch, new_slots = self._sample_arrays(requests, owners, jobs, hidden, columns)
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
                requests[job.request], owners[job.request], job, {k: v[i] for k, v in results.items()}, slots
            )
            for i, (job, slots) in enumerate(zip(jobs, new_slots, strict=False))
        }

    def _sample_arrays(
        self,
        requests: Sequence[GenerateRequest],
        owners: Sequence[_Row],
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
            request, history = requests[job.request], owners[job.request].history()
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
        self, request: GenerateRequest, owner: _Row, job: _Job, out: Mapping[str, np.ndarray], slots: np.ndarray
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
                path, history = np.concatenate([owner.path, tokens[:keep]]), owner.history()
                self._cache.insert(path, np.concatenate([history, slots[j, :keep]]))
            self._cache.release(slots[j, keep:])
        return samples

    # --- scoring -----------------------------------------------------------------------------------------------------

    def _values(self, requests: Sequence[ScoreRequest], paths: Sequence[np.ndarray]) -> np.ndarray:
        self._read_before(paths, as_trees=True)
        values = np.zeros(len(requests), np.float32)
        jobs = [row for group in self._siblings(requests, paths) for row in self._score_rows(requests, paths, group)]
        for batch in self._batches(jobs, lambda job: self._bucket(len(job[0].flat), "new_tokens")):
            read = self._read_batch([row for row, _ in batch])["value"]
            for (_, wanted), row_values in zip(batch, read, strict=True):
                for request, token in wanted:
                    values[request] = row_values[token]
        return values

    def _siblings(self, requests: Sequence[ScoreRequest], paths: Sequence[np.ndarray]) -> list[list[int]]:
        """Requests whose cached beginnings are the same tokens, so that one row can read their rest as a tree."""
        groups: dict[bytes, list[int]] = {}
        for i, path in enumerate(paths):
            cached = min(len(self._cache.match(path)), self._before_last(requests[i], path))
            groups.setdefault(path[:cached].tobytes(), []).append(i)
        return list(groups.values())

    def _before_last(self, request: ScoreRequest, path: np.ndarray) -> int:
        """Where the path's last segment starts; siblings differ from there, so caching more of one would part them."""
        size = len(request.segments[-1].tokens)
        return len(path) - (size if size <= self.config.new_tokens[-1] else 1)

    def _score_rows(
        self, requests: Sequence[ScoreRequest], paths: Sequence[np.ndarray], group: list[int]
    ) -> list[tuple[_Row, list[tuple[int, int]]]]:
        """Rows for requests with one cached beginning, each with (request, token index) of the values wanted from it."""
        first = group[0]
        cached = self._cache.match(paths[first])[: self._before_last(requests[first], paths[first])]
        pending = [(i, layout.after(requests[i].segments, len(cached))) for i in group]
        rows = []
        while pending:
            taken: list[tuple[int, list[tree.Segment]]] = []
            nodes: list[tree.Node] = []
            for entry in pending:
                trial = tree.merge_paths([rest for _, rest in [*taken, entry]])
                if taken and sum(len(n.segment.tokens) for n in trial) > self.config.new_tokens[-1]:
                    break
                taken.append(entry)
                nodes = trial
            pending = pending[len(taken) :]
            flat = tree.flatten(nodes)
            ends = tree.last_token(flat)
            wanted = [(i, int(ends[layout.find(nodes, rest)])) for i, rest in taken]
            rows.append((_Row(paths[first][: len(cached)], cached, flat), wanted))
        return rows

    # --- reading -----------------------------------------------------------------------------------------------------

    def _read_before(self, paths: Sequence[np.ndarray], *, as_trees: bool) -> None:
        """Reads beginnings that several paths share and the pool does not hold, and whatever exceeds the largest suffix.

        `as_trees`: paths with one cached beginning are read as a tree afterwards, so nothing is shared before that fits.
        """
        self._cache.tick()
        most = self.config.new_tokens[-1]
        groups: dict[bytes, list[np.ndarray]] = {}
        for path in paths:
            cached = len(self._cache.match(path))
            if cached < len(path):
                groups.setdefault(path[: cached + 1].tobytes(), []).append(path)
        shared = []
        for key, group in groups.items():
            cached = len(key) // group[0].itemsize - 1
            common = min(layout.common_length(group[0], p) for p in group)
            fits = as_trees and sum(len(p) - cached for p in group) <= most
            if (len(group) - 1) * (common - cached) >= _SHARE and not fits:
                shared.append(group[0][:common])
        self._read_prefixes(shared)
        self._read_prefixes([path[:-most] for path in paths if len(path) > most])

    def _read_prefixes(self, paths: Sequence[np.ndarray]) -> None:
        """Makes sure that all of `paths` is in the pool."""
        while True:
            pieces: dict[bytes, _Row] = {}
            for path in paths:
                if (cached := len(self._cache.match(path))) < len(path):
                    piece = path[: cached + self.config.new_tokens[-1]]
                    pieces[piece.tobytes()] = self._prepare(piece)
            if not pieces:
                return
            for batch in self._batches(list(pieces.values()), lambda row: self._bucket(len(row.flat), "new_tokens")):
                self._read_batch(batch)

    def _prepare(self, path: np.ndarray) -> _Row:
        """The row that reads what is not cached of `path`; its last token always, for its hidden state is needed."""
        cached = self._cache.match(path)[: len(path) - 1]
        return _Row(path, cached, layout.line(path[len(cached) :]))

    def _read_batch(self, rows: Sequence[_Row]) -> dict[str, np.ndarray]:
        """`hidden` and `value` of `kernels.read` for these rows. What is read stays in the pool, at the rows' slots."""
        sizes = [len(r.flat) for r in rows]
        slots = self._cache.allocate(sum(sizes))
        if slots is None:  # rows may share what they read, so one after the other can fit where all at once do not
            if len(rows) == 1:
                raise UserError("the engine's cache is full; raise --config.engine.cache_tokens")
            halves = [self._read_batch(part) for part in (rows[: len(rows) // 2], rows[len(rows) // 2 :])]
            return {name: np.concatenate([half[name] for half in halves]) for name in ("hidden", "value")}
        for row, own in zip(rows, np.split(slots, np.cumsum(sizes)[:-1]), strict=True):
            row.slots = own
        batch, at = self._read_arrays(rows)
        out, entries = self._read(self._weights, self.model_config, self._pool, batch)
        self._pool = self._write(self._pool, at, entries)
        self._remember(rows)
        return {name: np.asarray(value)[: len(rows)] for name, value in out.items()}

    def _read_arrays(self, rows: Sequence[_Row]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The padded arguments of `kernels.read`, and where its entries go. Padding tokens see themselves only."""
        c = self.config
        u = self._bucket(len(rows), "rows")
        t = self._bucket(max(len(r.flat) for r in rows), "new_tokens")
        s = self._bucket(max(len(r.cached) for r in rows), "context")
        batch = {
            "tokens": np.zeros((u, t), np.int32),
            "positions": np.zeros((u, t), np.int32),
            "subtree_end": np.broadcast_to(np.arange(1, t + 1, dtype=np.int32), (u, t)).copy(),
            "context": np.zeros((u, s), np.int32),
            "context_length": np.zeros(u, np.int32),
            "last": np.zeros(u, np.int32),
        }
        slots = np.full((u, t), c.cache_tokens, np.int32)
        for i, row in enumerate(rows):
            size, cached = len(row.flat), len(row.cached)
            batch["tokens"][i, :size] = row.flat.tokens
            batch["positions"][i, :size] = row.flat.positions + cached
            batch["subtree_end"][i, :size] = row.flat.subtree_end
            batch["context"][i, :cached] = row.cached
            batch["context_length"][i] = cached
            batch["last"][i] = size - 1
            slots[i, :size] = row.history()[cached:]
            self.stats.read_tokens += size
            self.stats.path_tokens += size + cached
        self._count(len(rows), u)
        return batch, slots

    def _remember(self, rows: Sequence[_Row]) -> None:
        """Records every root-to-leaf path of what was just read."""
        for row in rows:
            assert row.slots is not None
            prefix = row.path[: len(row.cached)]
            for path in layout.leaf_paths(row.flat):
                tokens = np.concatenate([prefix, row.flat.tokens[path]])
                held = self._cache.insert(tokens, np.concatenate([row.cached, row.slots[path]]))
                row.slots[path] = held[len(row.cached) :]  # another row may have been first with the same tokens

    # --- sizes -------------------------------------------------------------------------------------------------------

    def _bucket(self, size: int, name: str) -> int:
        sizes: tuple[int, ...] = getattr(self.config, name)
        return next((s for s in sizes if s >= size), sizes[-1])

    def _batches(self, jobs: Sequence[J], size: Callable[[J], Any]) -> list[list[J]]:
        """Jobs of one size together, in order, in batches that fill the allowed numbers of rows well."""
        groups: dict[Any, list[J]] = {}
        for job in jobs:
            groups.setdefault(size(job), []).append(job)
        out = []
        for _, group in sorted(groups.items()):
            at = 0
            for count in layout.cover(len(group), self.config.rows):
                out.append(group[at : at + count])
                at += count
        return out

    def _count(self, rows: int, padded_to: int) -> None:
        self.stats.calls += 1
        self.stats.rows += rows
        self.stats.padded_rows += padded_to - rows


def make_engine(model: Transformer, sizes: Mapping[str, Any], *, end_id: int) -> Engine:
    """An engine with the sizes of a config's `engine` group."""
    fields = dict(sizes)
    dtype = jnp.dtype(fields.pop("dtype"))
    return Engine(model, EngineConfig(**fields), end_id=end_id, dtype=dtype)
