"""Reading against a cache and decoding give what one dense pass gives; sampling follows the softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentrm_jax import tree
from agentrm_jax.engine import kernels
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
}
SLOTS = 128
END = 3
READ = jax.jit(kernels.read, static_argnums=1)
WRITE = jax.jit(kernels.write)
START = jax.jit(kernels.start, static_argnums=1, static_argnames=("max_new", "end_id"))
DECODE = jax.jit(kernels.decode, static_argnums=1, static_argnames=("columns", "end_id"))
KEEP_ROWS = jax.jit(kernels.keep_rows)
STORE = jax.jit(kernels.store, static_argnums=0, static_argnames="columns")
SAMPLE = jax.jit(kernels.sample)


def ids(*shape, seed=0):
    return np.random.default_rng(seed).integers(4, 97, shape).astype(np.int32)


def segment(tokens):
    return tree.Segment(np.asarray(tokens, np.int32), "action")


class Cache:
    """A pool with one path read into scattered slots."""

    def __init__(self, model, prefix):
        self.model, self.weights = model, jax.jit(lambda m: kernels.Weights(m, jnp.float32))(model)
        self.free = np.random.default_rng(7).permutation(SLOTS).astype(np.int32)
        self.pool = kernels.empty_pool(model.config, SLOTS, jnp.float32)
        self.slots = np.zeros(0, np.int32)
        if len(prefix):
            self.read(tree.flatten([tree.Node(segment(prefix), -1)]))

    def read(self, flat, pad_to=None):
        """Reads a tree after everything read so far: (hidden [d] at the last token, values [t])."""
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

        batch = {
            "tokens": tiled(flat.tokens, 0),
            "positions": tiled(flat.positions + cached, 0),
            "query": tiled(index[:size], -1),
            "context": of_all(np.pad(self.slots, (0, 3))),
            "context_length": of_all(np.int32(cached)),
            "new": of_all(np.pad(index[:size], (0, 2))),
            "subtree_end": of_all(np.pad(flat.subtree_end, (0, 2))),
            "last": of_all(np.int32(size - 1)),
        }
        result, entries = READ(self.weights, self.model.config, self.pool, batch)
        self.pool = WRITE(self.pool, tiled(out, SLOTS), entries)
        self.slots = np.concatenate([self.slots, slots])
        return result["hidden"][0], result["value"].reshape(-1)[:total]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_tree_after_a_cached_prefix_equals_each_path_alone(name):
    model = tiny_model(**VARIANTS[name])
    prefix, trunk, left, right = ids(11), ids(5, seed=1), ids(6, seed=2), ids(4, seed=3)
    cache = Cache(model, prefix)
    flat = tree.flatten([tree.Node(segment(trunk), -1), tree.Node(segment(left), 0), tree.Node(segment(right), 0)])
    _, got = cache.read(flat, pad_to=20)
    want_left = dense_values(model, np.concatenate([prefix, trunk, left]))[11:]
    want_right = dense_values(model, np.concatenate([prefix, trunk, right]))[11:]
    np.testing.assert_allclose(got[:11], want_left, atol=1e-4)
    np.testing.assert_allclose(got[11:15], want_right[5:], atol=1e-4)


def decode_in_pieces(cache, hidden, *, seeds, temperature, max_new, wanted=None, keep=None):
    """Decoding as the engine does it: a start, then a few steps at a time; `keep` rows are chosen after the first piece."""
    u, n = seeds.shape
    columns = len(cache.slots) + 2
    context = np.zeros((u, columns), np.int32)
    context[:, : len(cache.slots)] = cache.slots
    batch = {
        "context": context,
        "context_length": np.full(u, len(cache.slots), np.int32),
        "hidden": jnp.broadcast_to(hidden, (u, len(hidden))),
        "temperature": np.full(u, temperature, np.float32),
        "seeds": seeds,
        "wanted": np.ones((u, n), bool) if wanted is None else wanted,
    }
    config = cache.model.config
    state = START(cache.weights, config, cache.pool, batch, max_new=max_new, end_id=END)
    for until in (3, max_new):
        state = DECODE(cache.weights, config, state, jnp.int32(until), columns=columns, end_id=END)
        if keep is not None and until == 3:
            state = KEEP_ROWS(state, np.array(keep, np.int32))
    return state, columns


@pytest.mark.parametrize("name", VARIANTS)
def test_decoding_reports_the_log_probabilities_of_a_dense_pass(name):
    model = tiny_model(**VARIANTS[name])
    prefix, new = ids(13), 10
    cache = Cache(model, prefix[:6])
    hidden, _ = cache.read(tree.flatten([tree.Node(segment(prefix[6:]), -1)]))
    seeds = np.arange(6, dtype=np.uint32).reshape(2, 3)
    state, _ = decode_in_pieces(cache, hidden, seeds=seeds, temperature=1.5, max_new=new)
    different = set()
    for row in range(2):
        for sample in range(3):
            count = int(state["length"][row, sample])
            tokens = np.asarray(state["tokens"])[:count, row, sample]
            path = np.concatenate([prefix, tokens])
            logp = np.asarray(jax.nn.log_softmax(dense_logits(model, path)))
            want = sum(logp[12 + i, token] for i, token in enumerate(tokens))
            assert state["logprob"][row, sample] == pytest.approx(want, abs=1e-3)
            assert (count == new) or tokens[-1] == END
            assert END not in tokens[:-1]
            different.add(tuple(tokens))
    assert len(different) > 1


def test_what_was_sampled_can_be_read_from_the_pool():
    """Keys and values of sampled tokens, written to the pool, continue a path as if it had been read."""
    model, prefix, new = tiny_model(), ids(9), 8
    cache = Cache(model, prefix[:4])
    hidden, _ = cache.read(tree.flatten([tree.Node(segment(prefix[4:]), -1)]))
    seeds = np.arange(10, dtype=np.uint32).reshape(2, 5)
    state, columns = decode_in_pieces(cache, hidden, seeds=seeds, temperature=1.0, max_new=new, keep=[1])
    slots = cache.free[: 5 * new].reshape(1, 5, new)
    pool = STORE(model.config, cache.pool, slots, state, columns=columns)
    for sample in (0, 4):
        count = int(state["length"][0, sample])
        tokens = np.asarray(state["tokens"])[:count, 0, sample]
        after = Cache(model, [])
        after.pool, after.free = pool, cache.free[5 * new :]
        after.slots = np.concatenate([cache.slots, slots[0, sample, : count - 1]])
        got, _ = after.read(tree.flatten([tree.Node(segment(tokens[-1:]), -1)]))
        np.testing.assert_allclose(got, dense_hidden(model, np.concatenate([prefix, tokens]))[-1], atol=1e-4)


def test_rows_can_be_dropped_and_unwanted_samples_do_not_run():
    model, prefix = tiny_model(), ids(7)
    cache = Cache(model, prefix[:3])
    hidden, _ = cache.read(tree.flatten([tree.Node(segment(prefix[3:]), -1)]))
    seeds = np.arange(8, dtype=np.uint32).reshape(4, 2)
    whole, _ = decode_in_pieces(cache, hidden, seeds=seeds, temperature=1.0, max_new=9)
    part, _ = decode_in_pieces(cache, hidden, seeds=seeds, temperature=1.0, max_new=9, keep=[3, 1])
    for name in ("length", "logprob"):
        np.testing.assert_allclose(part[name], whole[name][np.array([3, 1])], rtol=1e-5)
    np.testing.assert_array_equal(part["tokens"], whole["tokens"][:, np.array([3, 1])])
    none, _ = decode_in_pieces(cache, hidden, seeds=seeds, temperature=1.0, max_new=9, wanted=np.zeros((4, 2), bool))
    assert int(none["step"]) == 1


def test_a_model_without_value_head_scores_zero():
    model = tiny_model()
    del model.value_d
    _, got = Cache(model, ids(3)).read(tree.flatten([tree.Node(segment(ids(4)), -1)]))
    np.testing.assert_array_equal(got, np.zeros(4))
    assert not hasattr(model, "value_d")
    with pytest.raises(AttributeError):
        values(model, dense_hidden(model, ids(3))[None])


def draws(logits, temperature, count):
    row = jnp.asarray(logits, jnp.float32)
    many = jnp.broadcast_to(row, (count, len(row)))
    token, logprob = SAMPLE(many, jnp.full(count, temperature), jnp.arange(count, dtype=jnp.uint32), jnp.int32(4))
    return np.asarray(token), np.asarray(logprob)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("size", [5, 64, 131])
def test_samples_follow_the_softmax(size, temperature):
    logits = np.random.default_rng(size).normal(size=size) * 1.5
    token, logprob = draws(logits, temperature, 20_000)
    expected = np.asarray(jax.nn.softmax(jnp.asarray(logits / temperature))) * len(token)
    observed = np.bincount(token, minlength=size)
    assert len(observed) == size
    common = expected >= 5
    chi = ((observed - expected)[common] ** 2 / expected[common]).sum()
    rest = observed[~common].sum(), expected[~common].sum()
    freedom = common.sum() - 1
    assert chi < freedom + 5 * np.sqrt(2 * freedom)  # five standard deviations
    assert abs(rest[0] - rest[1]) <= 5 * np.sqrt(rest[1] + 1)
    np.testing.assert_allclose(logprob, jax.nn.log_softmax(jnp.asarray(logits))[token], atol=1e-5)


def test_greedy_takes_the_highest_and_the_first_of_equals():
    logits = np.full(131, -2.0)
    logits[[70, 90, 130]] = 1.0
    token, _ = draws(logits, 0.0, 3)
    assert token.tolist() == [70] * 3
    assert draws(np.zeros(131), 0.0, 2)[0].tolist() == [0, 0]


@pytest.mark.parametrize("temperature", [0.0, 0.01, 1.0])
def test_extreme_logits_stay_finite(temperature):
    logits = np.full(70, -1e30)
    logits[69] = 1e30
    token, logprob = draws(logits, temperature, 50)
    assert set(token.tolist()) == {69}
    np.testing.assert_array_equal(logprob, np.zeros(50))
    impossible = np.full(70, -np.inf)
    impossible[[3, 66]] = 0.0
    assert set(draws(impossible, 1.0, 200)[0].tolist()) == {3, 66}


def test_a_row_samples_the_same_in_any_company():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(6, 97)), jnp.float32)
    temperature, seeds = jnp.array([1.0, 0.0, 0.7, 2.0, 1.0, 1.0]), jnp.arange(6, dtype=jnp.uint32) * 999
    together, _ = SAMPLE(logits, temperature, seeds, jnp.int32(2))
    for i in range(6):
        alone, _ = SAMPLE(logits[i : i + 1], temperature[i : i + 1], seeds[i : i + 1], jnp.int32(2))
        assert alone[0] == together[i]


def test_uniform_numbers_differ_between_seeds_and_steps():
    flat = jnp.zeros((1000, 97))
    seeds = jnp.arange(1000, dtype=jnp.uint32)
    first, _ = SAMPLE(flat, jnp.ones(1000), seeds, jnp.int32(0))
    second, _ = SAMPLE(flat, jnp.ones(1000), seeds, jnp.int32(1))
    assert np.mean(np.asarray(first) == np.asarray(second)) < 0.05
    assert len(set(np.asarray(first).tolist())) == 97
