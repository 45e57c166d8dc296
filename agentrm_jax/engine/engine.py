"""The inference engine: batches of requests in, samples or values out, nothing computed twice.

Shapes are rounded up to a few sizes, so after warm-up nothing is compiled; paths that share a beginning share its cache.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax import tree
from agentrm_jax.engine import kernels
from agentrm_jax.engine.prefix import PrefixCache
from agentrm_jax.models.transformer import Transformer
from agentrm_jax.types import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class GenerateRequest:
    """`n` samples after the path `tokens` (int32[t], ends with a generation header)."""

    tokens: np.ndarray
    n: int
    temperature: float
    seed: int


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """Sampled ids (end-of-turn included if it was reached) and the sum of their log-probabilities at temperature 1."""

    tokens: np.ndarray
    logprob: float
    finished: bool


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreRequest:
    """The value at the last token of `segments`, a path."""

    segments: tuple[tree.Segment, ...]


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Sizes the engine compiles for.

    Attributes:
      cache_tokens: slots of the key/value pool.
      rows: allowed numbers of rows in a batch, ascending.
      new_tokens: allowed numbers of new tokens of a row, ascending; longer suffixes are read in pieces.
      context: allowed numbers of cached tokens of a row, ascending; the last one bounds the path.
      samples: samples of one history drawn together.
      max_new: tokens a sample may have.
    """

    cache_tokens: int = 65536
    rows: tuple[int, ...] = (8, 64)
    new_tokens: tuple[int, ...] = (64, 256)
    context: tuple[int, ...] = (256, 512, 1024)
    samples: int = 5
    max_new: int = 64


@dataclasses.dataclass
class EngineStats:
    """What has been done: tokens asked for, tokens really read, tokens sampled, calls, and rows of padding."""

    path_tokens: int = 0
    read_tokens: int = 0
    sampled_tokens: int = 0
    calls: int = 0
    rows: int = 0
    padded_rows: int = 0


@dataclasses.dataclass(eq=False)
class _Row:
    """One history of a batch: its cached slots, and the token tree to read after it."""

    path: np.ndarray
    cached: np.ndarray
    fresh: np.ndarray
    flat: tree.FlatTree
    slots: np.ndarray | None = None


class Engine:
    """Policy or reward model (or both) on the local device. Calls are synchronous and must not overlap.

    Args:
      end_id: the end-of-turn token.
      dtype: of weights, activations and cache.
    """

    def __init__(self, model: Transformer, config: EngineConfig, *, end_id: int, dtype: jnp.dtype = jnp.float32):
        self.model_config, self.config, self.end_id = model.config, config, end_id
        self.stats = EngineStats()
        self._weights = jax.jit(lambda m: kernels.Weights(m, dtype))(model)
        self._cache = PrefixCache(config.cache_tokens)
        self._pool = kernels.empty_pool(model.config, config.cache_tokens, dtype)
        self._score = jax.jit(kernels.score, static_argnums=1, donate_argnums=2)
        self._generate = jax.jit(
            functools.partial(kernels.generate, max_new=config.max_new, end_id=end_id),
            static_argnums=1,
            donate_argnums=2,
        )

    @property
    def compilations(self) -> int:
        return self._score._cache_size() + self._generate._cache_size()

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
        self._read_common([r.tokens for r in requests])
        jobs: list[tuple[int, int, int]] = []  # request, first sample, samples
        for i, request in enumerate(requests):
            width = self.config.samples if request.n > 1 else 1
            jobs += [(i, first, width) for first in range(0, request.n, width)]
        out: list[list[Sample]] = [[] for _ in requests]
        rows = {i: self._prepare(r.tokens) for i, r in enumerate(requests)}

        def size(job: tuple[int, int, int]) -> tuple[int, int]:
            return job[2], self._bucket(len(rows[job[0]].fresh), self.config.new_tokens)

        for batch in _batches(jobs, size, self.config.rows[-1]):
            for (i, _, _), samples in zip(batch, self._generate_batch(requests, rows, batch), strict=True):
                out[i] += samples
        return [samples[: r.n] for samples, r in zip(out, requests, strict=True)]

    def score(self, requests: Sequence[ScoreRequest]) -> np.ndarray:
        """float32[len(requests)]: the value at the end of every path; siblings are read together as one tree."""
        paths = [np.concatenate([s.tokens for s in r.segments]) for r in requests]
        for path in paths:
            if len(path) > self.config.context[-1]:
                raise UserError(
                    f"a history of {len(path)} tokens is longer than the engine's {self.config.context[-1]}"
                )
        self._read_common(paths)
        values = np.zeros(len(requests), np.float32)
        jobs = []
        for group in self._siblings(requests, paths):
            jobs += self._score_rows(requests, paths, group)

        def size(job: tuple[_Row, list[tuple[int, int]]]) -> int:
            return self._bucket(len(job[0].flat), self.config.new_tokens)

        for batch in _batches(jobs, size, self.config.rows[-1]):
            read = self._score_batch([row for row, _ in batch])
            for (_, wanted), row_values in zip(batch, read, strict=True):
                for request, token in wanted:
                    values[request] = row_values[token]
        return values

    # --- what is read once for many --------------------------------------------------------------------------------

    def _read_common(self, paths: Sequence[np.ndarray]) -> None:
        """Reads beginnings that several paths share and the pool does not hold, and whatever exceeds the largest suffix."""
        self._cache.tick()
        groups: dict[bytes, list[np.ndarray]] = {}
        for path in paths:
            cached = len(self._cache.match(path))
            if cached < len(path):
                groups.setdefault(path[: cached + 1].tobytes(), []).append(path)
        for group in groups.values():
            shared = min(_common_length(group[0], p) for p in group)
            if len(group) > 1 and shared - len(self._cache.match(group[0])) >= 16:
                self._read_prefix(group[0][:shared])
        for path in paths:
            self._read_prefix(path[: max(0, len(path) - self.config.new_tokens[-1])])

    def _read_prefix(self, path: np.ndarray) -> None:
        most = self.config.new_tokens[-1]
        while (cached := len(self._cache.match(path))) < len(path):
            stop = min(cached + most, len(path))
            self._score_batch([self._prepare(path[:stop])])
            if len(self._cache.match(path)) < stop:
                raise UserError("the engine's cache is full; raise --config.engine.cache_tokens")

    def _prepare(self, path: np.ndarray) -> _Row:
        """The row that reads what is not cached of `path`; its last token always, for its hidden state is needed."""
        cached = self._cache.match(path)[: len(path) - 1]
        fresh = path[len(cached) :]
        return _Row(path, cached, fresh, tree.flatten(tree.path_tree([tree.Segment(fresh, "prompt")])))

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
        match = self._cache.match(paths[first])
        cached = match[: self._before_last(requests[first], paths[first])]
        rows = []
        pending: list[tuple[int, list[tree.Segment]]] = []
        for i in group:
            pending.append((i, _after(requests[i].segments, len(cached))))
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
            wanted = [(i, int(ends[_find(nodes, rest)])) for i, rest in taken]
            row = _Row(paths[first][: len(cached)], cached, flat.tokens, flat)
            rows.append((row, wanted))
        return rows

    # --- one compiled call -----------------------------------------------------------------------------------------

    def _score_batch(self, rows: Sequence[_Row]) -> np.ndarray:
        batch = self._arrays(rows)
        values, self._pool = self._score(self._weights, self.model_config, self._pool, batch)
        self._remember(rows)
        return np.asarray(values)[: len(rows)]

    def _generate_batch(
        self, requests: Sequence[GenerateRequest], rows: dict[int, _Row], jobs: Sequence[tuple[int, int, int]]
    ) -> list[list[Sample]]:
        owners = [rows[i] for i, _, _ in jobs]
        repeated = [
            dataclasses.replace(r) for r in owners
        ]  # a request split over several rows reads its suffix in each
        batch = self._arrays(repeated)
        u, width, m = batch["tokens"].shape[0], jobs[0][2], self.config.max_new
        seeds = np.zeros((u, width), np.uint32)
        new_slots = np.full((u, width, m), self.config.cache_tokens, np.int32)
        temperature = np.zeros(u, np.float32)
        reserved = self._cache.allocate(len(jobs) * width * m)
        for row, (i, first, _) in enumerate(jobs):
            temperature[row] = requests[i].temperature
            seeds[row] = [_fold(requests[i].seed, first + j) for j in range(width)]
        if reserved is not None:
            new_slots[: len(jobs)] = reserved.reshape(len(jobs), width, m)
        length = np.ones(u, np.int32)
        length[: len(jobs)] = [len(r.fresh) for r in repeated]
        batch |= {"length": length, "temperature": temperature, "seeds": seeds, "new_slots": new_slots}
        out, self._pool = self._generate(self._weights, self.model_config, self._pool, batch)
        out = jax.device_get(out)
        self._remember(repeated)
        results = []
        for row, (i, first, _) in enumerate(jobs):
            samples = []
            for j in range(width):
                count = int(out["length"][row, j])
                tokens = out["tokens"][row, j, :count]
                finished = bool(tokens[-1] == self.end_id)
                samples.append(Sample(tokens, float(out["logprob"][row, j]), finished))
                mine = new_slots[row, j]
                keep = count - 1 if reserved is not None and first + j < requests[i].n else 0
                if keep and repeated[row].slots is not None:
                    owner = repeated[row]
                    history = np.concatenate([owner.cached, owner.slots])
                    self._cache.insert(
                        np.concatenate([owner.path, tokens[:keep]]), np.concatenate([history, mine[:keep]])
                    )
                else:
                    keep = 0
                if reserved is not None:
                    self._cache.release(mine[keep:])
                self.stats.sampled_tokens += count if first + j < requests[i].n else 0
            results.append(samples)
        return results

    def _arrays(self, rows: Sequence[_Row]) -> dict[str, np.ndarray]:
        """Padded arrays of a batch. Padding rows read one token of their own and write nothing."""
        c = self.config
        u = self._bucket(len(rows), c.rows)
        t = self._bucket(max(len(r.flat) for r in rows), c.new_tokens)
        s = self._bucket(max(len(r.cached) for r in rows), c.context)
        nowhere = c.cache_tokens
        out = {
            "tokens": np.zeros((u, t), np.int32),
            "positions": np.zeros((u, t), np.int32),
            "subtree_end": np.broadcast_to(np.arange(1, t + 1, dtype=np.int32), (u, t)).copy(),
            "context": np.zeros((u, s), np.int32),
            "context_length": np.zeros(u, np.int32),
            "slots": np.full((u, t), nowhere, np.int32),
        }
        for i, row in enumerate(rows):
            size, cached = len(row.flat), len(row.cached)
            out["tokens"][i, :size] = row.flat.tokens
            out["positions"][i, :size] = row.flat.positions + cached
            out["subtree_end"][i, :size] = row.flat.subtree_end
            out["context"][i, :cached] = row.cached
            out["context_length"][i] = cached
            row.slots = self._cache.allocate(size)
            if row.slots is not None:
                out["slots"][i, :size] = row.slots
            self.stats.read_tokens += size
            self.stats.path_tokens += size + cached
        self.stats.calls += 1
        self.stats.rows += len(rows)
        self.stats.padded_rows += u - len(rows)
        return out

    def _remember(self, rows: Sequence[_Row]) -> None:
        """Records every root-to-leaf path of what was just read."""
        for row in rows:
            if row.slots is None:
                continue
            prefix = row.path[: len(row.cached)]
            for leaf in np.flatnonzero(_is_leaf(row.flat)):
                path = _ancestors(row.flat, int(leaf))
                tokens = np.concatenate([prefix, row.flat.tokens[path]])
                held = self._cache.insert(tokens, np.concatenate([row.cached, row.slots[path]]))
                row.slots[path] = held[len(row.cached) :]  # another row may have been first with the same tokens

    def _bucket(self, size: int, sizes: tuple[int, ...]) -> int:
        return next((s for s in sizes if s >= size), sizes[-1])


def make_engine(model: Transformer, sizes: Mapping[str, Any], *, end_id: int) -> Engine:
    """An engine with the sizes of a config's `engine` group."""
    fields = dict(sizes)
    dtype = jnp.dtype(fields.pop("dtype"))
    return Engine(model, EngineConfig(**fields), end_id=end_id, dtype=dtype)


def _batches(jobs: list, size, most: int) -> list[list]:
    """Jobs of one size together, at most `most` at a time, in order."""
    groups: dict = {}
    for job in jobs:
        groups.setdefault(size(job), []).append(job)
    return [g[i : i + most] for _, g in sorted(groups.items()) for i in range(0, len(g), most)]


def _fold(seed: int, index: int) -> int:
    """A 32-bit seed for sample `index` of a request (a Weyl step and a finaliser: neighbours are unrelated)."""
    x = (seed * 0x9E3779B1 + index * 0x85EBCA77 + 0x165667B1) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    x = ((x ^ (x >> 12)) * 0x297A2D39) & 0xFFFFFFFF
    return x ^ (x >> 15)


def _common_length(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    return int(different.argmax()) if different.any() else n


def _after(segments: Sequence[tree.Segment], skip: int) -> list[tree.Segment]:
    """The path without its first `skip` tokens; a segment that is cut keeps its rest."""
    rest = []
    for segment in segments:
        size = len(segment.tokens)
        if skip >= size:
            skip -= size
            continue
        rest.append(dataclasses.replace(segment, tokens=segment.tokens[skip:]) if skip else segment)
        skip = 0
    return rest


def _find(nodes: Sequence[tree.Node], path: Sequence[tree.Segment]) -> int:
    """Index of the node at the end of `path` in a merged tree."""
    parent = -1
    for segment in path:
        parent = next(
            i
            for i, n in enumerate(nodes)
            if n.parent == parent
            and n.segment.kind == segment.kind
            and np.array_equal(n.segment.tokens, segment.tokens)
        )
    return parent


def _is_leaf(flat: tree.FlatTree) -> np.ndarray:
    """bool[t]: the token is the last of a path."""
    leaf = np.ones(len(flat), bool)
    leaf[flat.previous[flat.previous >= 0]] = False
    return leaf


def _ancestors(flat: tree.FlatTree, token: int) -> np.ndarray:
    """Indices of the path that ends in `token`, in order."""
    path = []
    while token >= 0:
        path.append(token)
        token = int(flat.previous[token])
    return np.array(path[::-1])
