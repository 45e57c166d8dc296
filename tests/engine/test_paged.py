"""Attention to histories where they lie in the pool equals the rule written out, whatever the slots, lengths, heads and windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentrm_jax.engine import paged, paged_gpu, paged_tpu
from agentrm_jax.engine.memory import MASK_VALUE

SLOTS = 1024
KERNELS = {
    "gpu": paged.Kernel(paged_gpu.prepare, paged_gpu.attend),
    "tpu": paged.Kernel(paged_tpu.prepare, paged_tpu.attend),
}
KERNEL = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


def plain(q, keys, vals, table, length, first):
    """The rule, [u, m, n, h] and [u, m, n], in float64: a query sees the columns from `first` to `length`."""
    q, keys, vals = (np.asarray(x, np.float64) for x in (q, keys, vals))
    u, m, n, h = q.shape
    k = keys.shape[1] // h
    out, lse = np.zeros((u, m, n, h)), np.full((u, m, n), MASK_VALUE)
    for i, j, head in np.ndindex(u, m, n):
        slots = table[i, max(first[i, j], 0) : length[i]]
        if len(slots):
            at = slice(head // (n // k) * h, (head // (n // k) + 1) * h)
            scores = keys[slots, at] @ q[i, j, head] * h**-0.5
            high = scores.max()
            weights = np.exp(scores - high)
            out[i, j, head] = weights @ vals[slots, at] / weights.sum()
            lse[i, j, head] = high + np.log(weights.sum())
    return out, lse


def slots_of(kind, size, rng):
    """Slots of one history: anywhere, in runs as the cache gives them out, or all in a row."""
    if kind == "scattered":
        return rng.permutation(SLOTS)[:size]
    if kind == "row":
        return np.arange(size) + rng.integers(SLOTS - size)
    runs = np.array_split(np.arange(SLOTS), np.sort(rng.choice(SLOTS, 40, replace=False)))
    return np.concatenate([runs[i] for i in rng.permutation(len(runs))])[:size]


def case(*, lengths, columns, m, kv, g, h, dtype=jnp.float32, kind="runs", seed=0):
    rng = np.random.default_rng(seed)
    u = len(lengths)
    q = jnp.asarray(rng.normal(size=(u, m, kv * g, h)), dtype)
    keys, vals = (jnp.asarray(rng.normal(size=(SLOTS, kv * h)), dtype) for _ in range(2))
    table = np.zeros((u, columns), np.int32)
    for i, length in enumerate(lengths):
        table[i, :length] = slots_of(kind, length, rng)
    return q, keys, vals, table, np.array(lengths, np.int32)


def run(kernel, q, keys, vals, table, length, first):
    @jax.jit
    def attend(q, keys, vals, table, length, first):
        return paged.attend(kernel, q, (keys, vals), kernel.prepare(table, length), first, interpret=True)

    return attend(q, keys, vals, table, length, jnp.asarray(first, jnp.int32))


def check(kernel, first, arrays, atol=2e-5):
    q, keys, vals, table, length = arrays
    first = np.broadcast_to(first, q.shape[:2])
    got, got_lse = run(kernel, q, keys, vals, table, length, first)
    want, lse = plain(q, keys, vals, table, length, first)
    np.testing.assert_allclose(got, want, atol=atol)
    np.testing.assert_allclose(got_lse, lse, atol=atol, rtol=1e-6)


@KERNEL
@pytest.mark.parametrize("kind", ["runs", "row", "scattered"])
def test_every_row_sees_its_own_history_wherever_it_lies(kernel, kind):
    lengths = [0, 1, 15, 64, 129, 300]
    check(kernel, 0, case(lengths=lengths, columns=301, m=5, kv=2, g=3, h=64, kind=kind))


@KERNEL
@pytest.mark.parametrize(("m", "kv", "g", "h"), [(1, 1, 1, 128), (1, 4, 1, 16), (40, 1, 4, 32), (3, 3, 3, 64)])
def test_heads_and_numbers_of_samples(kernel, m, kv, g, h):
    check(kernel, 0, case(lengths=[100, 7], columns=100, m=m, kv=kv, g=g, h=h))


@KERNEL
def test_a_window_hides_what_lies_too_far_back_of_each_query(kernel):
    arrays = case(lengths=[0, 20, 200, 290], columns=290, m=3, kv=2, g=2, h=32)
    first = np.array([[0, -3, 5], [-9, 19, 20], [150, 152, 199], [270, 500, 289]])
    check(kernel, first, arrays)


@KERNEL
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_short_floats_are_summed_in_float32(kernel, dtype):
    check(kernel, 0, case(lengths=[90, 200], columns=200, m=5, kv=2, g=2, h=64, dtype=dtype), atol=1e-2)


@KERNEL
def test_what_is_not_seen_may_be_no_number(kernel):
    q, keys, vals, table, length = case(lengths=[40, 75], columns=130, m=2, kv=2, g=2, h=32)
    unused = np.ones(SLOTS, bool)
    for row, size in zip(table, length, strict=True):
        unused[row[:size]] = False
    poisoned = [jnp.where(unused[:, None], jnp.nan, x) for x in (keys, vals)]
    got = run(kernel, q, *poisoned, table, length, np.zeros((2, 2)))
    for a, b in zip(got, run(kernel, q, keys, vals, table, length, np.zeros((2, 2))), strict=True):
        np.testing.assert_array_equal(a, b)


@KERNEL
def test_parts_of_a_history_are_joined_to_the_whole(kernel):
    q, keys, vals, table, length = case(lengths=[0, 50, 170], columns=170, m=2, kv=2, g=2, h=32)
    cut = length // 3
    rest = np.zeros_like(table)
    for i in range(len(table)):
        rest[i, : length[i] - cut[i]] = table[i, cut[i] : length[i]]
    first = np.zeros((3, 2))
    parts = [run(kernel, q, keys, vals, t, n, first) for t, n in ((table, cut), (rest, length - cut))]
    want, _ = plain(q, keys, vals, table, length, np.zeros((3, 2), int))
    np.testing.assert_allclose(paged.join(parts), want, atol=2e-5)
