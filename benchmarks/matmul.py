"""What the machine can do at all: float32 matrix products of the shapes a decoding step is made of, against a large square one."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks.measure import Pass, Row, Size, compare, matrix_product

_TIMES = 200


def run(size: Size, seconds: float) -> Iterator[Row]:
    for rows in (size.histories, 5 * size.histories):
        yield compare(
            "matmul",
            f"feed-forward of {rows} rows",
            "GFLOP/s",
            _feed_forward(rows, size),
            f"product of {size.matrix} x {size.matrix}",
            matrix_product(size.matrix),
            size=size,
            seconds=seconds / 5,
        )


def _feed_forward(rows: int, size: Size) -> Pass:
    d, f = size.model.d_model, size.model.d_ff
    x, up, down = jnp.ones((rows, d)), jnp.full((d, f), 1 / d), jnp.full((f, d), 1 / f)

    @jax.jit
    def many(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, _TIMES, lambda _, x: (x @ up) @ down, x)

    def run(repeat: int) -> float:
        many(x).block_until_ready()
        return _TIMES * 4 * rows * d * f / 1e9

    return run
