"""How the histories of a batch are read: from dense copies, or in place through tables of the pool's slots.

On the CPU a row's history is copied beside what it decodes, as long runs of memory are read fastest there. On GPUs and TPUs a
kernel reads the pool itself: no copy exists, rows of any length decode together, and a row costs its own length.

Letters: u rows (or tiles), m queries of a row, n query heads, h head dim, c columns, s columns of a trunk.
"""

import jax
import jax.numpy as jnp

from agentrm_jax import parallel
from agentrm_jax.engine import paged, paged_gpu, paged_tpu
from agentrm_jax.engine.batch import Trunk
from agentrm_jax.models.config import ModelConfig

_KERNELS = {
    "gpu": paged.Kernel(paged_gpu.prepare, paged_gpu.attend),
    "tpu": paged.Kernel(paged_tpu.prepare, paged_tpu.attend),
}


def choose_reader(platform: str, config: ModelConfig, slots: int, tensor: int) -> str:
    """The kernel that reads a pool of `slots` in place on `tensor` devices, by name; empty where histories are copied."""
    h, kv = config.head_dim, config.num_kv_heads
    width = h * (kv // tensor if kv % tensor == 0 else kv)  # of a token, on each device
    if platform == "gpu" and h >= 16 and h & (h - 1) == 0:  # Triton's arrays have powers of two
        return "gpu"
    if platform == "tpu" and width >= paged_tpu.LANES and slots % paged_tpu.PAGE == 0:  # whole tiles of memory
        return "tpu"
    return ""


class InPlace:
    """Histories, and perhaps a trunk before them, that lie in the pool. On a CPU the kernel is interpreted, for tests.

    Args:
      reader: name of the kernel.
      table, length: int32[u, c] slots of the histories and int32[u] how many there are.
    """

    def __init__(self, reader: str, table: jax.Array, length: jax.Array, trunk: Trunk | None = None):
        self._kernel, self._interpret = _KERNELS[reader], parallel.platform() == "cpu"
        self._history = self._kernel.prepare(table, length)
        self._before = jnp.int32(0)
        self._trunk = None
        if trunk is not None:
            self._before = jnp.asarray(trunk.length)
            self._trunk = self._kernel.prepare(jnp.asarray(trunk.slots)[None], self._before[None])

    def attend(
        self, q_umnh: jax.Array, pool: tuple[jax.Array, jax.Array], positions_um: jax.Array, limit: int | None
    ) -> list[paged.Part]:
        """Attention to the histories, and to the trunk, for queries that see less than `limit` positions back (None: all)."""
        u, m, *heads = q_umnh.shape
        begin = jnp.maximum(positions_um - limit + 1, 0) if limit is not None else jnp.zeros_like(positions_um)
        first = jnp.maximum(begin - self._before, 0)
        parts = [paged.attend(self._kernel, q_umnh, pool, self._history, first, interpret=self._interpret)]
        if self._trunk is not None:
            q, begin = q_umnh.reshape(1, u * m, *heads), begin.reshape(1, u * m)
            out, lse = paged.attend(self._kernel, q, pool, self._trunk, begin, interpret=self._interpret)
            parts.append((out.reshape(q_umnh.shape), lse.reshape(u, m, -1)))
        return parts
