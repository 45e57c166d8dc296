"""The fused kernels of TPUs and GPUs, run by Pallas' interpreter: the dense rule in values and gradients, on trees of any shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentrm_jax.models import attention_gpu, attention_tpu, attention_xla
from agentrm_jax.models.attention import choose_kernel, dense_attention, tree_attention
from agentrm_jax.models.tiles import NO_WINDOW, Tiling, tile_lists, visible_tiles
from agentrm_jax.tree import Node, Segment, flatten, to_row, visible

KERNELS = pytest.mark.parametrize("kernel", [attention_tpu, attention_gpu], ids=["tpu", "gpu"])


def packed(t: int) -> tuple[jax.Array, jax.Array]:
    """subtree_end and positions of two rows: bushy and long trees of random sizes, one after another, then padding."""
    rng = np.random.default_rng(t)
    rows = []
    for bushy in (False, True):
        trees = []
        for _ in range(2):
            nodes: list[Node] = []
            while sum(len(n.segment.tokens) for n in nodes) < t // 3:
                parent = int(rng.integers(-1, len(nodes))) if bushy else len(nodes) - 1
                nodes.append(Node(Segment(np.arange(rng.integers(1, 20), dtype=np.int32), "action"), parent))
            trees.append(flatten(nodes))
        rows.append(to_row(trees, t))
    return jnp.asarray([r.subtree_end for r in rows]), jnp.asarray([r.positions for r in rows])


def arrays(t: int, n: int, k: int, h: int, dtype=jnp.float32) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=(2, t, x, h)), dtype) for x in (n, k, k, n))


def both(kernel, end: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, grad: jax.Array) -> tuple[jax.Array, ...]:
    """Output, log-sum-exp and gradients."""

    @jax.jit
    def run(q, k, v, grad):
        out, lse = kernel.forward(q, k, v, end, end, 0, interpret=True)
        return (out, lse, *kernel.backward(q, k, v, end, end, 0, out, lse, grad, interpret=True))

    return run(q, k, v, grad)


@KERNELS
def test_equals_the_dense_rule_and_its_gradients(kernel):
    """The log-sum-exp is the portable kernel's, so either may compute the gradient of what the other computed."""
    end, positions = packed(300)
    q, k, v, grad = arrays(300, 4, 2, 32)
    want, pull = jax.vjp(lambda q, k, v: dense_attention(q, k, v, end, positions, NO_WINDOW), q, k, v)
    _, lse = attention_xla.forward(Tiling(1, 64, 64), False, q, k, v, end, positions, jnp.int32(0))
    for got, expected in zip(both(kernel, end, q, k, v, grad), (want, lse, *pull(grad)), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)


@KERNELS
def test_tiles_with_nothing_visible_are_not_even_read(kernel):
    """Three documents of two tiles each: what is not a number in the first does not reach the third, forward or backward."""
    t = 6 * 128
    end = jnp.asarray([(np.arange(t) // 256 + 1) * 256])
    q, k, v, grad = (x[:1] for x in arrays(t, 1, 1, 16))
    poison = jnp.where(jnp.arange(t)[:, None, None] < 256, jnp.nan, 0.0)
    out, _, *gradients = both(kernel, end, q, k + poison, v + poison, grad)
    assert all(np.isfinite(x[:, 512:]).all() for x in (out, *gradients))
    assert np.isnan(out[:, :256]).all()


@KERNELS
def test_bfloat16_in_bfloat16_out(kernel):
    end, positions = packed(128)
    q, k, v, grad = arrays(128, 2, 2, 16, jnp.bfloat16)
    out, _, *gradients = both(kernel, end, q, k, v, grad)
    assert {x.dtype for x in (out, *gradients)} == {jnp.dtype(jnp.bfloat16)}
    full = [x.astype(jnp.float32) for x in (q, k, v, grad)]
    want, pull = jax.vjp(lambda q, k, v: dense_attention(q, k, v, end, positions, NO_WINDOW), *full[:3])
    for got, expected in zip((out, *gradients), (want, *pull(full[3])), strict=True):
        np.testing.assert_allclose(got.astype(jnp.float32), expected, atol=0.08)


def test_lists_hold_every_visible_tile_once_and_stay_at_the_last():
    end, _ = packed(300)
    pad = np.concatenate([end, np.broadcast_to(np.arange(300, 304) + 1, (2, 4))], axis=1)
    seen = visible_tiles(jnp.asarray(pad), jnp.zeros((2, 304), jnp.int32), 1, Tiling(1, 16, 16))
    index, count = map(np.asarray, tile_lists(seen))
    for b in range(2):
        dense = visible(pad[b]).reshape(19, 16, 19, 16).any((1, 3))
        for i in range(19):
            listed = index[b, i, : count[b, i]].tolist()
            assert len(listed) == len(set(listed))
            assert set(np.flatnonzero(dense[i])) <= set(listed)
            assert set(index[b, i, count[b, i] :].tolist()) <= {listed[-1]}


def test_a_platform_gets_its_own_kernel_where_that_can_do_it():
    shape = (8, 4096, 32, 128)
    assert choose_kernel("tpu", shape, windowed=False).forward is attention_tpu.forward
    assert choose_kernel("gpu", shape, windowed=False).backward is attention_gpu.backward
    assert tiling("cpu", shape, windowed=False) == Tiling(1, 64, 64)
    assert tiling("tpu", shape, windowed=True) == Tiling(8, 1024, 256), "few large tiles where launches cost"
    assert tiling("gpu", (8, 300, 32, 96), windowed=False) == Tiling(8, 512, 256), "96 is no power of two"


def tiling(platform: str, shape: tuple[int, ...], windowed: bool) -> Tiling:
    kernel = choose_kernel(platform, shape, windowed)
    assert kernel.forward.func is attention_xla.forward  # type: ignore[attr-defined]
    return kernel.forward.args[0]  # type: ignore[attr-defined]


def test_a_model_on_a_tpu_calls_it(monkeypatch):
    """The choice is made from the devices of the mesh or the default backend, when a program is traced."""
    called = []
    monkeypatch.setattr("agentrm_jax.parallel.platform", lambda: "tpu")
    monkeypatch.setattr(attention_tpu, "forward", lambda q, *a: (called.append(q.shape), (q, q[..., :1]))[1])
    q, k, v, _ = arrays(128, 2, 2, 16)
    tree_attention(q, k, v, packed(128)[0])
    assert called == [(2, 128, 2, 16)]
