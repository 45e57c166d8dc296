"""Decode: rows that come and go at any step, each a history with n samples after it, one token of every sample a step.

A row's samples are siblings in a token tree: they share the columns of their history, and each token they write is one more
column that only its own sample sees. Columns for what is written form a ring that all rows write at the same place, whatever
their age: a row sees as many of the last columns as it has lived steps. So a step writes one slice, and nothing is scattered.
What all rows of a batch begin with (the instruction of an environment, say) may lie in a `Trunk` that is read once for all.

Letters: u rows, n samples of a row, c columns in b blocks of w, s columns of a trunk, k key/value heads, g query heads per
key/value head, h head dim, d model, v vocabulary. Where heads and rows share an axis it is [k * u], heads first: on a mesh each
device holds whole heads. Attention is written as plain batched matrix products over key blocks of about 64 columns, [b, h, w]:
XLA's CPU backend multiplies a few rows by such blocks twice as fast as by one wide matrix.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.engine.memory import (
    MASK_VALUE,
    Entries,
    Weights,
    by_heads,
    everywhere,
    gather,
    logits,
    rotates,
    window,
)
from agentrm_jax.engine.requests import SamplingParams
from agentrm_jax.engine.sampling import Shaping, most_likely, sample
from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.layers import rms_norm

Array = jax.Array | np.ndarray
STEPS = 4  # decode steps of one dispatch at most: the host looks at the tokens after them
_BLOCK = 64  # columns of a key block


@dataclasses.dataclass(frozen=True)
class DecodeShape:
    """What a batch's programs are compiled for.

    Attributes:
      rows, samples: u and n.
      columns: cached tokens a row has room for, without the trunk's.
      max_new: tokens a sample can be given while its row stays.
      shaped: whether samples may have filters, penalties and top log-probabilities.
      trunk: columns of the trunk, 0 for none.
    """

    rows: int
    samples: int
    columns: int
    max_new: int
    shaped: bool = False
    trunk: int = 0

    @property
    def width(self) -> int:
        """Columns of a key block: whole steps of n samples."""
        return self.samples * max(_BLOCK // self.samples, 1)

    @property
    def history_blocks(self) -> int:
        return -(-self.columns // self.width)

    @property
    def ring_blocks(self) -> int:
        """A row that has reached `max_new` is given up to `STEPS` more steps before it leaves, and must not be overwritten."""
        return -(-(self.max_new + STEPS) * self.samples // self.width)

    @property
    def ring(self) -> int:
        """Steps after which the same columns are written again."""
        return self.ring_blocks * self.width // self.samples


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowState:
    """What a row is given when it joins; also the part of a batch's state that has rows first.

    Attributes:
      context_length: int32[u] cached tokens, the trunk's not counted.
      temperature: float32[u].
      stops: int32[u, MOST_STOP_IDS] tokens that end a sample, padded with -1.
      token: int32[u, n] the last token so far, whose keys and values are not known yet.
      count: int32[u, n] tokens that a sample has.
      limit: int32[u, n] tokens that it may have.
      done: bool[u, n] it is not continued (nor was it wanted, perhaps).
      seeds: uint32[u, n].
      shaping: filters of rows (`seen` is bool[u, n, v]), or None.
    """

    context_length: Array
    temperature: Array
    stops: Array
    token: Array
    count: Array
    limit: Array
    done: Array
    seeds: Array
    shaping: Shaping | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """A decode batch on the device. Donate it to every program that returns a new one.

    Attributes:
      caches: keys [k * u, b, h, w] and values [k * u, b * w, h] of every layer.
      at: int32[] steps since the batch was opened; the next is written at `at % ring`.
      joined: int32[u] value of `at` when each row joined.
      rows: the rest, by row.
    """

    caches: Entries
    at: Array
    joined: Array
    rows: RowState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trunk:
    """What every row's history begins with: keys [k, h, s] and values [k, s, h] of every layer, and int32[] its length."""

    caches: Entries
    length: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Steps:
    """What some steps have brought: tokens of sample j of row i are `tokens[:gained, i, j]`.

    Attributes:
      tokens, logprobs: int32 and float32[STEPS, u, n].
      top: int32 and float32[STEPS, u, n, MOST_LOGPROBS] of shaped batches, or None.
      count, done: int32 and bool[u, n] as in the state.
      ran: int32[] steps run.
    """

    tokens: Array
    logprobs: Array
    top: tuple[Array, Array] | None
    count: Array
    done: Array
    ran: Array


def empty_state(config: ModelConfig, shape: DecodeShape, dtype: jnp.dtype) -> DecodeState:
    """A batch whose rows are all free."""
    u, n, kv, h = shape.rows, shape.samples, config.num_kv_heads, config.head_dim
    blocks = shape.history_blocks + shape.ring_blocks

    def caches() -> tuple[jax.Array, jax.Array]:
        keys = jnp.zeros((kv * u, blocks, h, shape.width), dtype)
        return by_heads(keys, kv, 0), by_heads(jnp.zeros((kv * u, blocks * shape.width, h), dtype), kv, 0)

    def whole(size: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        return everywhere(jnp.zeros(size, dtype))

    rows = RowState(
        context_length=whole((u,), jnp.int32),
        temperature=whole((u,), jnp.float32),
        stops=whole((u, SamplingParams.MOST_STOP_IDS), jnp.int32),
        token=whole((u, n), jnp.int32),
        count=whole((u, n), jnp.int32),
        limit=whole((u, n), jnp.int32),
        done=everywhere(jnp.ones((u, n), bool)),
        seeds=whole((u, n), jnp.uint32),
        shaping=Shaping(
            whole((u,), jnp.int32),
            whole((u,), jnp.float32),
            whole((u,), jnp.float32),
            whole((u,), jnp.float32),
            whole((u, n, config.vocab_size), bool),
        )
        if shape.shaped
        else None,
    )
    return DecodeState([caches() for _ in range(config.num_layers)], whole((), jnp.int32), whole((u,), jnp.int32), rows)


def read_trunk(config: ModelConfig, pool: Entries, slots: jax.Array, length: jax.Array) -> Trunk:
    """The trunk in the pool's `slots` int32[s], of which `length` count."""
    kv = config.num_kv_heads

    def collect(keys: jax.Array, vals: jax.Array) -> tuple[jax.Array, jax.Array]:
        k, v = gather(keys, slots[None], kv)[0], gather(vals, slots[None], kv)[0]
        return by_heads(k.transpose(1, 2, 0), kv, 0), by_heads(v.transpose(1, 0, 2), kv, 0)

    return Trunk([collect(*layer) for layer in pool], length)


def admit(
    config: ModelConfig,
    shape: DecodeShape,
    pool: Entries,
    state: DecodeState,
    at_rows: jax.Array,
    number: jax.Array,
    context: jax.Array,
    joining: RowState,
) -> DecodeState:
    """Puts histories and their samples into rows. Donate the state.

    Args:
      at_rows: int32[u] which rows, u itself for padding; the first `number` of them count.
      context: int32[u, columns] pool slots of the histories, the trunk's left out.
      joining: as many rows; `seen` is bool[u, v], the same for all samples of a row.
    """
    u, kv, h, width = shape.rows, config.num_kv_heads, config.head_dim, shape.width
    blocks, pad = shape.history_blocks, shape.history_blocks * shape.width - shape.columns

    def put(i: jax.Array, caches: Entries) -> Entries:
        slots = jnp.pad(context[i], (0, pad))[None]
        zero = jnp.int32(0)
        out = []
        for (keys, vals), (pool_k, pool_v) in zip(caches, pool, strict=True):
            k, v = gather(pool_k, slots, kv)[0], gather(pool_v, slots, kv)[0]
            k = k.reshape(blocks, width, kv, h).transpose(2, 0, 3, 1)[:, None]
            v = v.transpose(1, 0, 2)[:, None]
            keys, vals = keys.reshape(kv, u, *keys.shape[1:]), vals.reshape(kv, u, *vals.shape[1:])
            keys = jax.lax.dynamic_update_slice(keys, k, (zero, at_rows[i], zero, zero, zero))
            vals = jax.lax.dynamic_update_slice(vals, v, (zero, at_rows[i], zero, zero))
            out.append(
                (
                    by_heads(keys.reshape(kv * u, *keys.shape[2:]), kv, 0),
                    by_heads(vals.reshape(kv * u, *vals.shape[2:]), kv, 0),
                )
            )
        return out

    caches = jax.lax.fori_loop(0, number, put, state.caches)

    def join(old: jax.Array, new: Array) -> jax.Array:
        new = jnp.asarray(new)
        if new.ndim < old.ndim:  # `seen`
            new = jnp.broadcast_to(new[:, None], old.shape)
        return everywhere(old.at[at_rows].set(new, mode="drop"))

    joined = everywhere(state.joined.at[at_rows].set(jnp.broadcast_to(state.at, (u,)), mode="drop"))
    return DecodeState(caches, everywhere(state.at), joined, jax.tree.map(join, state.rows, joining))


def keep_rows(config: ModelConfig, state: DecodeState, rows: jax.Array) -> DecodeState:
    """The state with other rows: int32[u'] rows of the old one, -1 for a free row."""
    u, kv = state.joined.shape[0], config.num_kv_heads
    chosen = jnp.maximum(rows, 0)

    def take(x: jax.Array) -> jax.Array:
        return by_heads(x.reshape(kv, u, *x.shape[1:])[:, chosen].reshape(-1, *x.shape[1:]), kv, 0)

    by_row = jax.tree.map(lambda x: everywhere(x[chosen]), state.rows)
    done = everywhere(by_row.done | (rows < 0)[:, None])
    caches = jax.tree.map(take, state.caches)
    return DecodeState(
        caches, everywhere(state.at), everywhere(state.joined[chosen]), dataclasses.replace(by_row, done=done)
    )


def decode(
    weights: Weights,
    config: ModelConfig,
    shape: DecodeShape,
    state: DecodeState,
    trunk: Trunk | None,
    stopped: jax.Array,
    most: jax.Array,
) -> tuple[DecodeState, Steps]:
    """Continues all samples by up to `most` (at most `STEPS`) tokens, or until all are done. Donate the state.

    A row that has no room for more steps is done as well: `count` says that it is below its limit.

    Args:
      stopped: bool[u, n] samples that are done from now on.
    """
    u, n = shape.rows, shape.samples
    fixed = state.rows
    columns = _Columns(shape, fixed, state.joined, trunk)
    windows = {window(config, l) for l in range(config.num_layers)}
    few = SamplingParams.MOST_LOGPROBS if shape.shaped else 0

    def more(carry: tuple) -> jax.Array:
        _, _, _, done, _, steps, _ = carry
        return (steps.ran < most) & ~jnp.all(done)

    def body(carry: tuple) -> tuple:
        caches, token, count, done, seen, steps, at = carry
        positions = jnp.broadcast_to(columns.position(at)[:, None], (u, n))
        biases = {w: columns.bias(at, w) for w in windows}
        x = weights.embed_vd[token]
        written: Entries = []
        for l, block in enumerate(weights.layers):

            def attend(q: jax.Array, k: jax.Array, v: jax.Array, l=l) -> jax.Array:
                cache = columns.put(caches[l], k, v, at)
                written.append(cache)
                shared = trunk.caches[l] if trunk is not None else None
                return _attend(q, *cache, shared, *biases[window(config, l)])

            x = block(x, positions, attend, rotates(config, l))
        hidden = rms_norm(x, weights.final_norm_d, config.norm_eps)
        scores = logits(weights, config, hidden).reshape(u * n, -1)
        temperature = jnp.repeat(fixed.temperature, n)
        shaping = None if fixed.shaping is None else _by_sample(dataclasses.replace(fixed.shaping, seen=seen), n)
        chosen, logprob = sample(scores, temperature, fixed.seeds.reshape(-1), count.reshape(-1), shaping)
        chosen, logprob = jnp.where(done, token, chosen.reshape(u, n)), logprob.reshape(u, n)
        top = None
        if steps.top is not None:
            most_ids, most_logprobs = most_likely(scores, few)
            most_ids, most_logprobs = (
                jnp.pad(x, ((0, 0), (0, few - x.shape[1]))).reshape(u, n, few) for x in (most_ids, most_logprobs)
            )
            top = steps.top[0].at[steps.ran].set(most_ids), steps.top[1].at[steps.ran].set(most_logprobs)
        if seen is not None:
            seen = jnp.where(
                done[..., None], seen, seen.at[jnp.arange(u)[:, None], jnp.arange(n)[None], chosen].set(True)
            )
        count = jnp.where(done, count, count + 1)
        full = columns.age(at + 1) >= shape.ring - STEPS
        done |= (chosen[..., None] == fixed.stops[:, None]).any(-1) | (count >= fixed.limit) | full[:, None]
        steps = Steps(
            steps.tokens.at[steps.ran].set(chosen),
            steps.logprobs.at[steps.ran].set(logprob),
            top,
            count,
            done,
            steps.ran + 1,
        )
        return written, chosen, count, done, seen, steps, at + 1

    done = fixed.done | stopped
    top = None
    if shape.shaped:
        top = jnp.zeros((STEPS, u, n, few), jnp.int32), jnp.zeros((STEPS, u, n, few), jnp.float32)
    nothing = jnp.zeros((STEPS, u, n), jnp.int32)
    steps = Steps(nothing, nothing.astype(jnp.float32), top, fixed.count, done, jnp.int32(0))
    seen = None if fixed.shaping is None else fixed.shaping.seen
    carry = (state.caches, fixed.token, fixed.count, done, seen, steps, state.at)
    caches, token, count, done, seen, steps, at = jax.lax.while_loop(more, body, carry)
    shaping = None if fixed.shaping is None else dataclasses.replace(fixed.shaping, seen=seen)
    rows = dataclasses.replace(fixed, token=token, count=count, done=done, shaping=shaping)
    rows, steps, at = jax.tree.map(everywhere, (rows, steps, at))
    return DecodeState(caches, at, jax.tree.map(everywhere, state.joined), rows), steps


def store(
    config: ModelConfig,
    shape: DecodeShape,
    pool: Entries,
    state: DecodeState,
    rows: jax.Array,
    number: jax.Array,
    slots: jax.Array,
) -> Entries:
    """The pool with what rows have written. Donate the pool.

    Args:
      rows: int32[u]; the first `number` of them count.
      slots: int32[u, n, ring] where the tokens go that a sample has written since its row joined, first the one it came with;
        past the pool's end for those that are to be dropped.
    """
    u, n, kv, h, ring = shape.rows, shape.samples, config.num_kv_heads, config.head_dim, shape.ring
    first, width = shape.history_blocks, shape.width

    def put(i: jax.Array, pool: Entries) -> Entries:
        row = rows[i]
        order = (state.joined[row] + jnp.arange(ring)) % ring
        at = slots[i].T.reshape(-1)  # [ring * n]
        out = []
        for (pool_k, pool_v), (keys, vals) in zip(pool, state.caches, strict=True):
            k = keys.reshape(kv, u, *keys.shape[1:])[:, row, first:]  # [k, b, h, w]
            v = vals.reshape(kv, u, *vals.shape[1:])[:, row, first * width :]
            k = k.transpose(1, 3, 0, 2).reshape(ring, n, kv * h)[order].reshape(-1, kv * h)
            v = v.transpose(1, 0, 2).reshape(ring, n, kv * h)[order].reshape(-1, kv * h)
            out.append((pool_k.at[at].set(k, mode="drop"), pool_v.at[at].set(v, mode="drop")))
        return out

    return jax.lax.fori_loop(0, number, put, pool)


class _Columns:
    """What lies in which column of a row: its history first, then the ring, n columns a step, one for each sample."""

    def __init__(self, shape: DecodeShape, rows: RowState, joined: Array, trunk: Trunk | None):
        self._shape, self._joined = shape, joined
        self._length = rows.context_length
        self._before = trunk.length if trunk is not None else 0
        index = jnp.arange((shape.history_blocks + shape.ring_blocks) * shape.width)
        own = index - shape.history_blocks * shape.width
        self._place = jnp.where(own >= 0, own // shape.samples, -1)  # in the ring
        self._owner = own % shape.samples
        self._index = index
        self._past = (own < 0) & (index < rows.context_length[:, None])

    def age(self, at: jax.Array) -> jax.Array:
        """int32[u]: steps that a row has run before step `at`."""
        return at - self._joined

    def position(self, at: jax.Array) -> jax.Array:
        """int32[u]: where in its path the token of step `at` stands."""
        return self._before + self._length + self.age(at)

    def bias(self, at: jax.Array, limit: int | None) -> tuple[jax.Array, jax.Array | None]:
        """float32[u, b, n, w] for a row's columns at step `at`, and [1 or u, 1, s] for the trunk's: 0 where a sample sees one."""
        s = self._shape
        u, n, blocks = s.rows, s.samples, s.history_blocks + s.ring_blocks
        back = (at - self._place) % s.ring
        mine = (self._owner == jnp.arange(n)[:, None])[None] & (self._place >= 0)
        seen = self._past[:, None] | (mine & (back <= self.age(at)[:, None, None]))
        column = jnp.arange(s.trunk)
        shared = (column < self._before)[None]
        if limit is not None:
            now = self.position(at)[:, None]
            key_position = jnp.where(self._place >= 0, now - back, self._before + self._index)
            seen &= (now - key_position < limit)[:, None]
            shared = shared & (now - column < limit)
        bias = jnp.where(seen, 0.0, MASK_VALUE).reshape(u, n, blocks, s.width).transpose(0, 2, 1, 3)
        return bias, jnp.where(shared, 0.0, MASK_VALUE)[:, None] if s.trunk else None

    def put(
        self, cache: tuple[jax.Array, jax.Array], k: jax.Array, v: jax.Array, at: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The cache with the keys and values [u, n, k, h] that step `at` has written."""
        keys, vals = cache
        u, n, kv, h = k.shape
        width, steps = self._shape.width, self._shape.width // n
        place = at % self._shape.ring
        zero, block, inside = jnp.int32(0), self._shape.history_blocks + place // steps, place % steps * n
        k, v = k.transpose(2, 0, 3, 1).reshape(kv * u, 1, h, n), v.transpose(2, 0, 1, 3).reshape(kv * u, n, h)
        keys = jax.lax.dynamic_update_slice(keys, k, (zero, block, zero, inside))
        vals = jax.lax.dynamic_update_slice(vals, v, (zero, block * width + inside, zero))
        return by_heads(keys, kv, 0), by_heads(vals, kv, 0)


def _attend(
    q_unxh: jax.Array,
    keys: jax.Array,
    vals: jax.Array,
    trunk: tuple[jax.Array, jax.Array] | None,
    bias: jax.Array,
    trunk_bias: jax.Array | None,
) -> jax.Array:
    """Attention of n samples a row over keys [k * u, b, h, w] and values [k * u, b * w, h], and over a trunk: [u, n, heads, h].

    This is the one place that decides how decode reads the cache. Shapes are those of the caches: a reshape of what was just
    written would make XLA copy it.
    """
    u, n, heads, h = q_unxh.shape
    _, blocks, _, width = keys.shape
    kv = keys.shape[0] // u
    g = heads // kv
    q = (q_unxh * h**-0.5).reshape(u, n, kv, g, h).transpose(2, 0, 1, 3, 4)
    wide = jnp.broadcast_to(q.reshape(kv * u, 1, n * g, h), (kv * u, blocks, n * g, h))
    scores = jnp.matmul(wide, keys, preferred_element_type=jnp.float32)
    scores = scores.reshape(kv, u, blocks, n, g, width) + bias[:, :, :, None]
    high = scores.max((2, 5), keepdims=True)
    if trunk is not None:
        shared = jnp.matmul(q.reshape(kv, u * n * g, h), trunk[0], preferred_element_type=jnp.float32)
        shared = shared.reshape(kv, u, n * g, -1) + trunk_bias
        high = jnp.maximum(high, shared.max(-1).reshape(kv, u, 1, n, g, 1))
        shared = jnp.exp(shared - high.reshape(kv, u, n * g, 1))
    scores = jnp.exp(scores - high)
    total = scores.sum((2, 5)).reshape(kv * u, n * g, 1)
    rows = scores.astype(vals.dtype).transpose(0, 1, 3, 4, 2, 5).reshape(kv * u, n * g, blocks * width)
    out = jnp.matmul(rows, vals)
    if trunk is not None:
        total += shared.sum(-1).reshape(total.shape)
        common = jnp.matmul(shared.astype(vals.dtype).reshape(kv, u * n * g, -1), trunk[1])
        out += common.reshape(out.shape)
    out = out / total
    return out.reshape(kv, u, n, g, h).transpose(1, 2, 0, 3, 4).reshape(u, n, heads, h).astype(q_unxh.dtype)


def _by_sample(shaping: Shaping, n: int) -> Shaping:
    """The shaping of rows for each of their samples, [u * n]."""
    by_row = (jnp.repeat(x, n) for x in (shaping.top_k, shaping.top_p, shaping.min_p, shaping.penalty))
    return Shaping(*by_row, shaping.seen.reshape(-1, shaping.seen.shape[-1]))
