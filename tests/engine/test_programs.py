"""Prefill against a cache, and decode of rows that come and go, give what one dense pass gives."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentrm_jax import tree
from agentrm_jax.engine import batch as batches
from agentrm_jax.engine import decode as decoding
from agentrm_jax.engine import layout, memory
from agentrm_jax.engine import prefill as reading
from agentrm_jax.engine.batch import DecodeShape, RowState
from agentrm_jax.engine.prefill import PrefillBatch
from agentrm_jax.models.config import RopeScaling
from agentrm_jax.models.transformer import values
from agentrm_jax.testing.tiny import dense_hidden, dense_logits, dense_values, tiny_model

VARIANTS = {
    "grouped": {},
    "biases_norms_untied": {
        "num_kv_heads": 4,
        "qkv_bias": True,
        "o_bias": True,
        "mlp_bias": True,
        "qk_norm": True,
        "tie_embeddings": False,
    },
    "window_and_rope_in_some": {
        "num_kv_heads": 1,
        "sliding_window": 5,
        "window_layers": (True, False),
        "rope_layers": (False, True),
    },
    "window_everywhere": {"sliding_window": 7},
    "norms_on_both_sides": {
        **{"norms": "both", "norm_offset": 1.0, "activation": "gelu_tanh", "scale_embeddings": True, "qk_norm": True},
        **{"query_scalar": 24.0, "sliding_window": 5, "window_layers": (True, False), "local_rope_theta": 100.0},
    },
    "norms_behind": {
        **{"norms": "post", "qk_norm": True, "qk_norm_wide": True, "sliding_window": 6, "window_layers": (True, False)},
        **{"local_rope_theta": 1e4, "rope_scaling": RopeScaling("yarn", 4.0, original_length=16, amplitude=1.2)},
    },
    "partly_turned": {"rotary_dim": 6, "tie_embeddings": False},
    "experts": {"num_experts": 5, "experts_per_token": 2, "d_ff": 16},
}
SLOTS = 128
END = 3
PREFILL = jax.jit(reading.prefill, static_argnums=1, static_argnames="logprobs")
WRITE = jax.jit(memory.write)
EMPTY = jax.jit(batches.empty_state, static_argnums=(0, 1, 2))
TRUNK = jax.jit(batches.read_trunk, static_argnums=0)
ADMIT = jax.jit(batches.admit, static_argnums=(0, 1))
DECODE = jax.jit(decoding.decode, static_argnums=(1, 2, 3))
KEEP_ROWS = jax.jit(batches.keep_rows, static_argnums=0)
STORE = jax.jit(batches.store, static_argnums=(0, 1))


def ids(*shape, seed=0):
    return np.random.default_rng(seed).integers(4, 97, shape).astype(np.int32)


def segment(tokens):
    return tree.Segment(np.asarray(tokens, np.int32), "action")


class Cache:
    """A pool with one path read into scattered slots."""

    def __init__(self, model, prefix):
        self.model, self.weights = model, jax.jit(lambda m: memory.Weights(m, jnp.float32))(model)
        self.free = np.random.default_rng(7).permutation(SLOTS).astype(np.int32)
        self.pool = memory.empty_pool(model.config, SLOTS, jnp.float32)
        self.slots = np.zeros(0, np.int32)
        if len(prefix):
            self.read(tree.flatten([tree.Node(segment(prefix), -1)]))

    def read(self, flat, pad_to=None):
        """Reads a tree after everything read so far: values and log-probabilities [t]."""
        size, cached = len(flat), len(self.slots)
        total = pad_to or size
        slots, self.free = self.free[:size], self.free[size:]
        out = np.full(total, SLOTS, np.int32)
        out[:size] = slots
        index = np.arange(total, dtype=np.int32)

        tiles, width = -(-total // 4), 4  # whatever the tree's size, some tokens of a tile are padding

        def tiled(x, fill):
            return jnp.asarray(np.pad(x, (0, tiles * width - len(x)), constant_values=fill)).reshape(tiles, width)

        def of_all(x):
            return jnp.broadcast_to(jnp.asarray(x), (tiles, *np.shape(x)))

        batch = PrefillBatch(
            tokens=tiled(flat.tokens, 0),
            positions=tiled(flat.positions + cached, 0),
            query=tiled(index[:size], -1),
            previous=tiled(flat.previous, -1),
            context=of_all(np.pad(self.slots, (0, 3))),
            context_length=of_all(np.int32(cached)),
            new=of_all(np.pad(index[:size], (0, 2))),
            subtree_end=of_all(np.pad(flat.subtree_end, (0, 2))),
        )
        result, entries = PREFILL(self.weights, self.model.config, self.pool, batch, logprobs=True)
        self.pool = WRITE(self.pool, tiled(out, SLOTS), entries)
        self.slots = np.concatenate([self.slots, slots])
        return result.value.reshape(-1)[:total], result.logprob.reshape(-1)[:total]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_history_is_read_in_blocks_as_far_as_it_goes(name, monkeypatch):
    """Histories of one batch end in different blocks, one has none; windows begin in later ones. One program for all lengths."""
    monkeypatch.setattr(reading, "BLOCK", 4)
    read = jax.jit(functools.partial(reading.prefill, logprobs=True), static_argnums=1)
    model, paths = tiny_model(**VARIANTS[name]), [ids(size, seed=size) for size in (33, 9, 12, 5)]
    for cached in ((29, 4, 3, 0), (8, 1, 11, 4)):
        cache = Cache(model, [])
        rows, slots = [], []
        for path, known in zip(paths, cached, strict=True):
            cache.slots = np.zeros(0, np.int32)
            if known:
                cache.read(tree.flatten([tree.Node(segment(path[:known]), -1)]))
            index = np.arange(len(path) - known, dtype=np.int32)
            end = np.full(len(index), len(index), np.int32)
            rows.append(layout.PrefillRow(cache.slots, path[known:], index, end, [path], [index]))
            slots.append(np.arange(len(index)))
        batch, at = layout.tiles(rows, slots, (12, 8), 40, 38, nowhere=SLOTS)
        facts, _ = read(cache.weights, model.config, cache.pool, batch)
        got = np.asarray(facts.value)[at < SLOTS]
        want = [dense_values(model, path)[known:] for path, known in zip(paths, cached, strict=True)]
        np.testing.assert_allclose(got, np.concatenate(want), atol=1e-4)
    assert read._cache_size() == 1


@pytest.mark.parametrize("name", VARIANTS)
def test_a_tree_after_a_cached_prefix_equals_each_path_alone(name):
    model = tiny_model(**VARIANTS[name])
    prefix, trunk, left, right = ids(11), ids(5, seed=1), ids(6, seed=2), ids(4, seed=3)
    cache = Cache(model, prefix)
    flat = tree.flatten([tree.Node(segment(trunk), -1), tree.Node(segment(left), 0), tree.Node(segment(right), 0)])
    got, logprobs = cache.read(flat, pad_to=20)
    want_left = dense_values(model, np.concatenate([prefix, trunk, left]))[11:]
    want_right = dense_values(model, np.concatenate([prefix, trunk, right]))[11:]
    np.testing.assert_allclose(got[:11], want_left, atol=1e-4)
    np.testing.assert_allclose(got[11:15], want_right[5:], atol=1e-4)
    for path, tokens in ((left, slice(5, 11)), (right, slice(11, 15))):
        whole = np.concatenate([prefix, trunk, path])
        want = np.asarray(jax.nn.log_softmax(dense_logits(model, whole)))
        start = len(prefix) + len(trunk)
        expected = [want[start + i - 1, token] for i, token in enumerate(path)]
        np.testing.assert_allclose(logprobs[tokens], expected, atol=1e-4)


class Batch:
    """A decode batch after one cached path, driven as the engine drives it: a few steps at a time."""

    def __init__(self, cache, rows, samples, max_new, *, trunk=0):
        self.cache, self.config = cache, cache.model.config
        self.trunk = None
        if trunk:
            slots = np.pad(cache.slots[:trunk], (0, 3))
            self.trunk = TRUNK(self.config, cache.pool, slots, np.int32(trunk))
        self.history = cache.slots[trunk:-1]
        size = len(slots) if trunk else 0
        self.shape = DecodeShape(rows, samples, len(self.history) + 2, max_new, trunk=size)
        self.state = EMPTY(self.config, self.shape, jnp.dtype("float32"))
        self.tokens, self.logprobs = {}, {}

    def join(self, rows, token, *, temperature=1.0, limit=None, wanted=None):
        u, n = self.shape.rows, self.shape.samples
        context = np.zeros((u, self.shape.columns), np.int32)
        context[:, : len(self.history)] = self.history
        joining = RowState(
            context_length=np.full(u, len(self.history), np.int32),
            temperature=np.full(u, temperature, np.float32),
            stops=np.full((u, 8), END, np.int32),
            token=np.full((u, n), token, np.int32),
            count=np.zeros((u, n), np.int32),
            base=np.zeros((u, n), np.int32),
            limit=np.full((u, n), self.shape.max_new if limit is None else limit, np.int32),
            done=np.zeros((u, n), bool) if wanted is None else ~wanted,
            seeds=np.arange(u * n, dtype=np.uint32).reshape(u, n)[list(rows) + [0] * (u - len(rows))],
            shaping=None,
        )
        at_rows = np.array(list(rows) + [u] * (u - len(rows)), np.int32)
        self.state = ADMIT(
            self.config, self.shape, self.cache.pool, self.state, at_rows, np.int32(len(rows)), context, joining
        )
        for row in rows:
            for j in range(n):
                self.tokens[row, j], self.logprobs[row, j] = [], []

    def run(self, steps):
        """Runs up to `steps`; whether all are done, and how many were run."""
        ran = 0
        stopped = np.zeros((self.shape.rows, self.shape.samples), bool)
        while ran < steps:
            before = np.asarray(self.state.rows.count)
            most = np.int32(min(steps - ran, batches.STEPS))
            self.state, out = DECODE(
                self.cache.weights,
                self.config,
                self.shape,
                False,
                self.cache.pool,
                self.state,
                self.trunk,
                stopped,
                most,
            )
            for (i, j), tokens in self.tokens.items():
                gained = int(out.count[i, j]) - int(before[i, j])
                tokens += np.asarray(out.tokens)[:gained, i, j].tolist()
                self.logprobs[i, j] += np.asarray(out.logprobs)[:gained, i, j].tolist()
            ran += int(out.ran)
            if bool(np.asarray(out.done).all()):
                return True, ran
        return False, ran

    def check(self, path):
        """Every sample's log-probabilities are those of a dense pass."""
        for sample, tokens in self.tokens.items():
            whole = np.concatenate([path, np.array(tokens, np.int32)])
            logp = np.asarray(jax.nn.log_softmax(dense_logits(self.cache.model, whole)))
            want = [logp[len(path) - 1 + i, token] for i, token in enumerate(tokens)]
            np.testing.assert_allclose(self.logprobs[sample], want, atol=1e-4)
            assert END not in tokens[:-1]


def cache_of(model, path):
    cache = Cache(model, path[:4])
    cache.read(tree.flatten([tree.Node(segment(path[4:]), -1)]))
    return cache


@pytest.mark.parametrize("trunk", [0, 8])
@pytest.mark.parametrize("name", VARIANTS)
def test_decode_reports_the_log_probabilities_of_a_dense_pass(name, trunk):
    """Rows that join at different steps, and rows whose columns cross the end of the ring."""
    model, path = tiny_model(**VARIANTS[name]), ids(13)
    batch = Batch(cache_of(model, path), 2, 3, 10, trunk=trunk)
    batch.join([0], path[-1], temperature=1.5)
    batch.run(3)
    batch.join([1], path[-1], temperature=1.5)
    over, _ = batch.run(40)
    assert over
    batch.check(path)
    first = dict(batch.tokens)
    assert all(len(tokens) == 10 or tokens[-1] == END for tokens in first.values())
    assert len({tuple(tokens) for tokens in first.values()}) > 1
    while int(batch.state.at) < batch.shape.ring - 3:  # so that the next ones cross the end of the ring
        batch.join([0], path[-1], temperature=1.5)
        batch.run(5)
    batch.join([0, 1], path[-1], temperature=1.5)
    batch.run(40)
    batch.check(path)
    assert batch.tokens == first


def test_what_was_sampled_can_be_read_from_the_pool():
    """Keys and values of sampled tokens, written to the pool, continue a path as if it had been read."""
    model, path, new = tiny_model(), ids(9), 8
    cache = cache_of(model, path)
    batch = Batch(cache, 2, 5, new)
    batch.join([0], path[-1])
    batch.run(5)
    batch.join([1], path[-1])
    batch.state = KEEP_ROWS(cache.model.config, batch.state, np.array([1, 0], np.int32))
    batch.tokens = {(1 - i, j): tokens for (i, j), tokens in batch.tokens.items()}
    batch.logprobs = {(1 - i, j): logprobs for (i, j), logprobs in batch.logprobs.items()}
    batch.run(30)
    batch.check(path)
    ring = batch.shape.ring
    slots = np.full((2, 5, ring), SLOTS, np.int32)
    slots[0, :, :new] = cache.free[: 5 * new].reshape(5, new)
    pool = STORE(model.config, batch.shape, cache.pool, batch.state, np.zeros(2, np.int32), np.int32(1), slots)
    for sample in (0, 4):
        tokens = np.array(batch.tokens[0, sample])
        after = Cache(model, [])
        after.pool, after.free = pool, cache.free[5 * new :]
        after.slots = np.concatenate([cache.slots[:-1], slots[0, sample, : len(tokens)]])
        got, _ = after.read(tree.flatten([tree.Node(segment(tokens[-1:]), -1)]))
        np.testing.assert_allclose(got, dense_values(model, np.concatenate([path, tokens]))[-1:], atol=1e-4)


def test_rows_can_be_dropped_and_unwanted_samples_do_not_run():
    model, path = tiny_model(), ids(7)
    cache = cache_of(model, path)
    whole, part, none = (Batch(cache, 4, 2, 9) for _ in range(3))
    for batch in (whole, part):
        batch.join(range(4), path[-1])
    whole.run(20)
    part.run(3)
    part.state = KEEP_ROWS(model.config, part.state, np.array([3, -1, 1], np.int32))
    part.shape = dataclasses.replace(part.shape, rows=3)
    part.tokens = {(i, j): part.tokens[row, j] for i, row in ((0, 3), (2, 1)) for j in range(2)}
    part.run(20)
    for i, row in ((0, 3), (2, 1)):
        for j in range(2):
            assert part.tokens[i, j] == whole.tokens[row, j]
    none.join(range(4), path[-1], wanted=np.zeros((4, 2), bool))
    assert none.run(20) == (True, 0)


def test_a_model_without_value_head_scores_zero():
    model = tiny_model()
    del model.value_d
    got, _ = Cache(model, ids(3)).read(tree.flatten([tree.Node(segment(ids(4)), -1)]))
    np.testing.assert_array_equal(got, np.zeros(4))
    assert not hasattr(model, "value_d")
    with pytest.raises(AttributeError):
        values(model, dense_hidden(model, ids(3))[None])
