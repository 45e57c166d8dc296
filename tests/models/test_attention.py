"""Tiled tree attention: equal to the dense rule in values and gradients, skipping what cannot be seen, linear in memory."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentrm_jax.models import attention
from agentrm_jax.models.attention import choose_kernel, dense_attention, tree_attention
from agentrm_jax.models.tiles import NO_WINDOW, Tiling, tile_pairs
from agentrm_jax.testing.tiny import tiny_model
from agentrm_jax.tree import FlatTree, Node, Segment, flatten, to_row, visible

SMALL = Tiling(1, 16, 16)


def random_tree(rng: np.random.Generator, tokens: int, depth_bias: float) -> FlatTree:
    """A tree of about `tokens` tokens; with a high bias new nodes continue the newest one, else any earlier one."""
    nodes: list[Node] = []
    total = 0
    while total < tokens:
        size = int(rng.integers(1, 12))
        parent = len(nodes) - 1 if rng.random() < depth_bias else int(rng.integers(-1, len(nodes)))
        nodes.append(Node(Segment(rng.integers(0, 99, size).astype(np.int32), "action"), parent))
        total += size
    return flatten(nodes)


def rows(seed: int, t: int, b: int = 2) -> tuple[jax.Array, jax.Array]:
    """subtree_end and positions of `b` rows: several trees of different shapes each, then padding."""
    rng = np.random.default_rng(seed)
    packed = []
    for _ in range(b):
        trees = [random_tree(rng, t // 4, bias) for bias in (0.95, 0.5)]
        packed.append(to_row(trees, t))
    return jnp.stack([r.subtree_end for r in packed]), jnp.stack([r.positions for r in packed])


def heads(seed: int, b: int, t: int, n: int, k: int, h: int = 8) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=(b, t, x, h)), jnp.float32) for x in (n, k, k, n))


def with_gradients(f, q, k, v, grad):
    out, pull = jax.vjp(f, q, k, v)
    return (out, *pull(grad))


@pytest.mark.parametrize(
    ("tiling", "t", "n", "k", "window"),
    [
        (SMALL, 64, 4, 2, None),
        (SMALL, 75, 2, 2, 9),
        (Tiling(2, 32, 16), 101, 6, 1, None),
        (Tiling(1, 16, 32), 75, 4, 2, 20),
    ],
)
def test_equals_the_dense_rule_on_packed_trees(tiling, t, n, k, window):
    end, positions = rows(t + n, t)
    arrays = heads(t, 2, t, n, k)

    def tiled(q, k, v):
        return tree_attention(q, k, v, end, positions_bt=positions, window=window, tiling=tiling)

    def dense(q, k, v):
        return dense_attention(q, k, v, jnp.asarray(end), jnp.asarray(positions), window or NO_WINDOW)

    got = jax.jit(lambda *a: with_gradients(tiled, *a))(*arrays)
    want = jax.jit(lambda *a: with_gradients(dense, *a))(*arrays)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, atol=2e-5)


def test_dense_form_is_the_rule_written_out():
    end, positions = rows(5, 40, b=1)
    q, k, v, _ = heads(5, 1, 40, 1, 1)
    scores = np.where(visible(end[0]), q[0, :, 0] @ k[0, :, 0].T * 8**-0.5, -np.inf)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    want = weights / weights.sum(1, keepdims=True) @ v[0, :, 0]
    got = dense_attention(q, k, v, jnp.asarray(end), jnp.asarray(positions), NO_WINDOW)
    np.testing.assert_allclose(got[0, :, 0], want, atol=1e-5)


@pytest.mark.parametrize("t", [40, 130])
def test_default_tiling_takes_any_length(t):
    end, positions = rows(t, t)
    q, k, v, _ = heads(t, 2, t, 4, 2)
    got = tree_attention(q, k, v, jnp.asarray(end))
    np.testing.assert_allclose(
        got, dense_attention(q, k, v, jnp.asarray(end), jnp.asarray(positions), NO_WINDOW), atol=1e-5
    )


def test_a_padding_token_attends_to_itself_alone():
    end, positions = rows(3, 96, b=1)
    used = int(np.flatnonzero(end[0] == np.arange(96) + 1)[-1])
    q, k, v, _ = heads(3, 1, 96, 2, 2)
    out = tree_attention(q, k, v, end, tiling=SMALL)
    assert (end[0, used], positions[0, used]) == (used + 1, 0)
    np.testing.assert_allclose(out[0, used], v[0, used], rtol=1e-6)


def test_the_window_may_differ_from_call_to_call_of_one_compiled_function():
    end, positions = rows(8, 64)
    q, k, v, _ = heads(8, 2, 64, 2, 1)
    f = jax.jit(lambda w: tree_attention(q, k, v, end, positions_bt=positions, window=w, tiling=SMALL))
    for window in (3, 20, NO_WINDOW):
        want = dense_attention(q, k, v, jnp.asarray(end), jnp.asarray(positions), window)
        np.testing.assert_allclose(f(window), want, atol=1e-5)


def test_a_window_without_positions_is_refused():
    q, k, v, _ = heads(0, 1, 8, 1, 1)
    with pytest.raises(ValueError, match="positions"):
        tree_attention(q, k, v, jnp.full((1, 8), 8), window=4)


def listed(end: np.ndarray, positions: np.ndarray, window: int, tiling: Tiling) -> set[tuple[int, int, int]]:
    pairs = tile_pairs(jnp.asarray(end), jnp.asarray(positions), window, tiling)
    total = int(pairs.total)
    return set(zip(*(np.asarray(a)[:total].tolist() for a in pairs[:3]), strict=True))


@pytest.mark.parametrize("window", [NO_WINDOW, 10])
def test_every_tile_with_something_visible_is_listed(window):
    end, positions = map(np.asarray, rows(11, 96))
    for tiling in (SMALL, Tiling(2, 32, 16)):
        pairs = listed(end, positions, window, tiling)
        for b in range(2):
            seen = visible(end[b]) & (positions[b][:, None] - positions[b][None] < window)
            for i, j in zip(*np.nonzero(seen), strict=True):
                assert (b // tiling.rows, i // tiling.queries, j // tiling.keys) in pairs


def test_other_documents_closed_branches_and_what_left_the_window_are_skipped():
    """8 tiles of 16: a full triangle has 36 pairs."""
    t = 128
    positions = np.arange(t)[None]
    assert len(listed(np.full((1, t), t), positions, NO_WINDOW, SMALL)) == 36
    two_documents = np.where(np.arange(t) < 64, 64, t)[None]
    assert len(listed(two_documents, positions, NO_WINDOW, SMALL)) == 2 * 10
    trunk_and_seven_branches = np.where(np.arange(t) < 16, t, (np.arange(t) // 16 + 1) * 16)[None]
    assert len(listed(trunk_and_seven_branches, positions, NO_WINDOW, SMALL)) == 8 + 7
    assert len(listed(np.full((1, t), t), positions, 16, SMALL)) == 8 + 7


def test_memory_of_the_gradient_grows_linearly():
    def temporary(t: int) -> int:
        shapes = [jax.ShapeDtypeStruct((1, t, x, 32), jnp.float32) for x in (2, 1, 1)]
        end = jax.ShapeDtypeStruct((1, t), jnp.int32)
        f = jax.jit(jax.grad(lambda q, k, v, end: tree_attention(q, k, v, end).sum(), argnums=(0, 1, 2)))
        return f.lower(*shapes, end).compile().memory_analysis().temp_size_in_bytes

    short, long = temporary(2048), temporary(4096)
    assert long < 2.3 * short
    assert long < 4096 * 4096 * 4  # less than one head's scores


def test_bfloat16_in_bfloat16_out():
    end, _ = rows(2, 80)
    q, k, v, _ = (jnp.asarray(a, jnp.bfloat16) for a in heads(2, 2, 80, 2, 1))
    out = tree_attention(q, k, v, end, tiling=SMALL)
    full = tree_attention(*(a.astype(jnp.float32) for a in (q, k, v)), end, tiling=SMALL)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), full, atol=0.05)


EIGHT_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from agentrm_jax.models.attention import tree_attention
from agentrm_jax.models.tiles import Tiling
rng = np.random.default_rng(0)
b, t = 8, 96
q, k, v = (rng.normal(size=(b, t, x, 8)).astype(np.float32) for x in (4, 2, 2))
end = np.where(np.arange(t) < 50, 50, t) * np.ones((b, 1), int)
def loss(q, k, v, end):
    return (tree_attention(q, k, v, end, tiling=Tiling(1, 16, 16)) ** 2).sum()
grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
want = grad(q, k, v, end)
for shape in ((2, 2, 2), (8, 1, 1), (1, 4, 2)):
    mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    rows = NamedSharding(mesh, P(("data", "fsdp"), None, "tensor"))
    put = [jax.device_put(a, rows) for a in (q, k, v)] + [jax.device_put(end, NamedSharding(mesh, P(("data", "fsdp"))))]
    with jax.set_mesh(mesh):
        got = grad(*put)
        text = jax.jit(jax.grad(loss)).lower(*put).compile().as_text()
    assert "all-gather" not in text, shape
    for a, b_ in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        np.testing.assert_allclose(a, b_, rtol=1e-5, atol=1e-5)
print("equal")
"""


def test_rows_and_heads_split_over_eight_devices_give_the_same_without_gathering():
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    run = subprocess.run([sys.executable, "-c", EIGHT_DEVICES], capture_output=True, text=True, env=env, timeout=300)
    assert run.stdout.strip() == "equal", run.stderr[-2000:]


def test_layers_without_a_window_are_not_held_to_the_kernel_for_windows(monkeypatch):
    """Of a model with layers of two kinds, only those with a window need the loop that knows windows."""
    asked = []

    def choose(platform, shape, windowed, tiling=None):
        asked.append(windowed)
        return choose_kernel(platform, shape, windowed, tiling)

    monkeypatch.setattr(attention, "choose_kernel", choose)
    at = jnp.arange(80)[None]
    for short, want in ((5, [True, False]), (80, [False, False])):
        model = tiny_model(sliding_window=short, window_layers=(True, False))
        asked.clear()
        jax.eval_shape(lambda m: m(at, at, jnp.full_like(at, 80)), model)
        assert asked == want
