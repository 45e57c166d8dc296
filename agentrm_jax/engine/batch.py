"""A decode batch on the device: rows that come and go at any step, each a history with n samples after it.

A row's samples are siblings in a token tree: they share the columns of their history, and each token they write is one more
column that only its own sample sees. Columns for what is written form a ring that all rows write at the same place, whatever
their age, so a step writes one slice and nothing is scattered; beside each column stands the offset of its token in the sample,
-1 where there is none (tokens that were drafted and refused, columns of rows that have left).
What all rows of a batch begin with (the instruction of an environment, say) may lie in a `Trunk` that is read once for all.

Letters: u rows, n samples of a row, c columns in b blocks of w, s columns of a trunk, t known tokens, k key/value heads, h head
dim, v vocabulary. Where heads and rows share an axis it is [k * u], heads first: on a mesh each device holds whole heads.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.engine.memory import Entries, by_heads, everywhere, gather
from agentrm_jax.engine.requests import SamplingParams
from agentrm_jax.engine.sampling import Shaping
from agentrm_jax.models.config import ModelConfig

Array = Any  # jax's on the device, numpy's on the way there and back
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
      draft: tokens that a step may propose for every sample and verify.
      in_place: the kernel that reads histories where they lie in the pool (see `histories`); empty where rows have copies of them.
    """

    rows: int
    samples: int
    columns: int
    max_new: int
    shaped: bool = False
    trunk: int = 0
    draft: int = 0
    in_place: str = ""

    @property
    def width(self) -> int:
        """Columns of a key block: whole steps of n samples."""
        step = self.samples * (self.draft + 1)
        return step * max(_BLOCK // step, 1)

    @property
    def history_blocks(self) -> int:
        """Key blocks of a row's copy of its history."""
        return 0 if self.in_place else -(-self.columns // self.width)

    @property
    def spare(self) -> int:
        """Places that rows write between two looks of the host: one that is done stays so long, and must not be overwritten."""
        return STEPS * (self.draft + 1) + self.draft

    @property
    def ring_blocks(self) -> int:
        """With drafts there are two places a token: where so few are right that a row needs more, it leaves and comes back."""
        places = self.max_new * (2 if self.draft else 1) + self.spare
        return -(-places * self.samples // self.width)

    @property
    def ring(self) -> int:
        """Places of n columns, one for each sample, after which the same columns are written again."""
        return self.ring_blocks * self.width // self.samples

    @property
    def known(self) -> int:
        """Tokens of a path and its sample."""
        return self.trunk + self.columns + 1 + self.ring


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowState:
    """What a row is given when it joins; also the part of a batch's state that has rows first.

    Attributes:
      context_length: int32[u] cached tokens, the trunk's not counted.
      temperature: float32[u].
      stops: int32[u, MOST_STOP_IDS] tokens that end a sample, padded with -1.
      token: int32[u, n] the last token so far, whose keys and values are not known yet.
      count: int32[u, n] tokens that a sample has; `base`: those that it had when its row joined.
      limit: int32[u, n] tokens that it may have.
      done: bool[u, n] it is not continued (nor was it wanted, perhaps).
      seeds: uint32[u, n].
      shaping: filters of rows (`seen` is bool[u, n, v]), or None.
      known: int32[u, n, t] tokens of the path and the sample where tokens are drafted, or None.
    """

    context_length: Array
    temperature: Array
    stops: Array
    token: Array
    count: Array
    base: Array
    limit: Array
    done: Array
    seeds: Array
    shaping: Shaping | None
    known: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """A decode batch on the device. Donate it to every program that returns a new one.

    Attributes:
      caches: keys [k * u, b, h, w] and values [k * u, b * w, h] of every layer: copies of the histories, if there are any, and
        then the ring.
      table: int32[u, c] the pool's slots of the histories that are read in place, or None.
      at: int32[] places written since the batch was opened; the next is `at % ring`.
      joined: int32[u] value of `at` when each row joined.
      offset: int32[u, ring * n] of each column's token after the one its sample came with; -1 for no token.
      rows: the rest, by row.
    """

    caches: Entries
    table: jax.Array | None
    at: jax.Array
    joined: jax.Array
    offset: jax.Array
    rows: RowState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trunk:
    """What every row's history begins with.

    Attributes:
      caches: copies, keys [k, h, s] and values [k, s, h] of every layer; none if it is read in place.
      length: int32[].
      slots: int32[s] where it lies in the pool.
    """

    caches: Entries
    length: Array | np.int32
    slots: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Steps:
    """What some steps have brought: tokens of sample j of row i are `tokens[:gained, i, j]`.

    Attributes:
      tokens, logprobs: int32 and float32[STEPS * (draft + 1), u, n].
      top: int32 and float32[STEPS, u, n, MOST_LOGPROBS] of shaped batches, or None.
      count, done: int32 and bool[u, n] as in the state.
      ran: int32[] steps run.
      read: int32[] how many samples all steps together have continued.
      drafted, accepted: int32[] tokens that were proposed for them, and those of them that were right.
    """

    tokens: Array
    logprobs: Array
    top: tuple[Array, Array] | None
    count: Array
    done: Array
    ran: Array
    read: Array
    drafted: Array
    accepted: Array


def empty_state(config: ModelConfig, shape: DecodeShape, dtype: jnp.dtype) -> DecodeState:
    """A batch whose rows are all free."""
    u, n, kv, h = shape.rows, shape.samples, config.num_kv_heads, config.head_dim
    blocks = shape.history_blocks + shape.ring_blocks

    def caches() -> tuple[jax.Array, jax.Array]:
        keys = jnp.zeros((kv * u, blocks, h, shape.width), dtype)
        return by_heads(keys, kv, 0), by_heads(jnp.zeros((kv * u, blocks * shape.width, h), dtype), kv, 0)

    def whole(size: tuple[int, ...], dtype: Any) -> jax.Array:
        return everywhere(jnp.zeros(size, dtype))

    rows = RowState(
        context_length=whole((u,), jnp.int32),
        temperature=whole((u,), jnp.float32),
        stops=whole((u, SamplingParams.MOST_STOP_IDS), jnp.int32),
        token=whole((u, n), jnp.int32),
        count=whole((u, n), jnp.int32),
        base=whole((u, n), jnp.int32),
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
        known=whole((u, n, shape.known), jnp.int32) if shape.draft else None,
    )
    at, joined = whole((), jnp.int32), whole((u,), jnp.int32)
    offset = everywhere(jnp.full((u, shape.ring * n), -1, jnp.int32))
    table = whole((u, shape.columns), jnp.int32) if shape.in_place else None
    return DecodeState([caches() for _ in range(config.num_layers)], table, at, joined, offset, rows)


def read_trunk(config: ModelConfig, pool: Entries, slots: jax.Array, length: jax.Array) -> Trunk:
    """A copy of the trunk in the pool's `slots` int32[s], of which `length` count."""
    kv = config.num_kv_heads

    def collect(keys: jax.Array, vals: jax.Array) -> tuple[jax.Array, jax.Array]:
        k, v = gather(keys, slots[None], kv)[0], gather(vals, slots[None], kv)[0]
        return by_heads(k.transpose(1, 2, 0), kv, 0), by_heads(v.transpose(1, 0, 2), kv, 0)

    return Trunk([collect(*layer) for layer in pool], length, slots)


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
      joining: as many rows; `seen` is bool[u, v] and `known` int32[u, t], the same for all samples of a row.
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

    if state.table is not None:
        caches, table = state.caches, everywhere(state.table.at[at_rows].set(context, mode="drop"))
    else:
        caches, table = jax.lax.fori_loop(0, number, put, state.caches), None

    def join(old: jax.Array, new: Array) -> jax.Array:
        new = jnp.asarray(new)
        if new.ndim < old.ndim:  # `seen` and `known`
            new = jnp.broadcast_to(new[:, None], old.shape)
        return everywhere(old.at[at_rows].set(new, mode="drop"))

    joined = everywhere(state.joined.at[at_rows].set(jnp.broadcast_to(state.at, (u,)), mode="drop"))
    offset = everywhere(state.offset.at[at_rows].set(-1, mode="drop"))
    return DecodeState(caches, table, everywhere(state.at), joined, offset, jax.tree.map(join, state.rows, joining))


def keep_rows(config: ModelConfig, state: DecodeState, rows: jax.Array) -> DecodeState:
    """The state with other rows: int32[u'] rows of the old one, -1 for a free row."""
    u, kv = state.joined.shape[0], config.num_kv_heads
    chosen = jnp.maximum(rows, 0)

    def take(x: jax.Array) -> jax.Array:
        return by_heads(x.reshape(kv, u, *x.shape[1:])[:, chosen].reshape(-1, *x.shape[1:]), kv, 0)

    by_row = jax.tree.map(lambda x: everywhere(x[chosen]), state.rows)
    done = everywhere(by_row.done | (rows < 0)[:, None])
    caches = jax.tree.map(take, state.caches)
    table = None if state.table is None else everywhere(state.table[chosen])
    joined, offset = everywhere(state.joined[chosen]), everywhere(state.offset[chosen])
    return DecodeState(caches, table, everywhere(state.at), joined, offset, dataclasses.replace(by_row, done=done))


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
      slots: int32[u, n, ring] where the tokens go that a sample has written since its row joined, by offset: first the one it
        came with; past the pool's end for those that are to be dropped.
    """
    u, n, kv, h, ring = shape.rows, shape.samples, config.num_kv_heads, config.head_dim, shape.ring
    first, width = shape.history_blocks, shape.width

    def put(i: jax.Array, pool: Entries) -> Entries:
        row = rows[i]
        offset = state.offset[row].reshape(ring, n)
        at = jnp.take_along_axis(slots[i].T, jnp.maximum(offset, 0), axis=0)
        at = jnp.where(offset >= 0, at, pool[0][0].shape[0]).reshape(-1)
        out = []
        for (pool_k, pool_v), (keys, vals) in zip(pool, state.caches, strict=True):
            k = keys.reshape(kv, u, *keys.shape[1:])[:, row, first:]  # [k, b, h, w]
            v = vals.reshape(kv, u, *vals.shape[1:])[:, row, first * width :]
            k = k.transpose(1, 3, 0, 2).reshape(ring * n, kv * h)
            v = v.transpose(1, 0, 2).reshape(ring * n, kv * h)
            out.append((pool_k.at[at].set(k, mode="drop"), pool_v.at[at].set(v, mode="drop")))
        return out

    return jax.lax.fori_loop(0, number, put, pool)
