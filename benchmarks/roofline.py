"""What the machine can do, measured between the repetitions: a matrix product's rate, and the rate at which memory is read."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from agentrm_jax.models.config import ModelConfig
from benchmarks.measure import matrix_product

_MATRIX = 1024
_READ = 1 << 26  # numbers of a matrix that no cache holds: 256 MiB


class Machine:
    """Rates, each the best of a few tries; every call of `measure` tries again."""

    def __init__(self, matrix: int = _MATRIX, numbers: int = _READ):
        self._product = matrix_product(matrix)
        columns = min(4096, numbers)
        self._big = jnp.ones((numbers // columns, columns), jnp.float32)
        self._vector = jnp.ones(columns, jnp.float32)
        self._dot = jax.jit(jnp.dot)
        self._add = jax.jit(lambda x: x + 1)
        self._product(0)
        self._dot(self._big, self._vector).block_until_ready()
        self._add(self._big).block_until_ready()

    def measure(self, tries: int = 3) -> tuple[float, float]:
        """(FLOP/s of a float32 matrix product, bytes/s of a matrix that is read, or copied if that is faster)."""
        flops = max(_rate(lambda: self._product(0) * 1e9) for _ in range(tries))
        size = self._big.nbytes

        def read() -> float:
            self._dot(self._big, self._vector).block_until_ready()
            return size

        def copy() -> float:
            self._add(self._big).block_until_ready()
            return 2 * size

        return flops, max(_rate(run) for run in (read, copy) for _ in range(tries))


def _rate(run: Callable[[], float]) -> float:
    begin = time.perf_counter()
    amount = run()
    return amount / (time.perf_counter() - begin)


def layer_parameters(model: ModelConfig) -> int:
    """Parameters of all linear maps of all layers."""
    heads = model.d_model * model.head_dim * 2 * (model.num_heads + model.num_kv_heads)
    return model.num_layers * (heads + 3 * model.d_model * model.d_ff)


def output_parameters(model: ModelConfig) -> int:
    """Parameters of the map to the vocabulary."""
    return model.vocab_size * model.d_model


def kv_numbers(model: ModelConfig) -> int:
    """Numbers that a cached token has in all layers."""
    return 2 * model.num_layers * model.num_kv_heads * model.head_dim


def floor_seconds(flop: float, bytes_: float, rates: tuple[float, float]) -> float:
    """The least time for this work: arithmetic and memory traffic may overlap."""
    return max(flop / rates[0], bytes_ / rates[1])
