"""The parts of a transformer block, as functions of arrays, and the block that holds their parameters.

Names carry layouts: b batch, t query time, s key time, d model, n query heads, k key/value heads, g query heads per
key/value head, h head dim, f feed-forward.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.linear import linear
from agentrm_jax.models.lora import LoRA, low_rank, new_adapters

PRODUCT = "product"  # name, for rematerialisation, of what a linear map gave

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def rms_norm(x: Float[Array, "*shape d"], scale: Float[Array, " d"], eps: float) -> Float[Array, "*shape d"]:
    """Root-mean-square norm over the last axis, computed in float32."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return (y * scale.astype(jnp.float32)).astype(x.dtype)


def rope_frequencies(config: ModelConfig) -> Float[np.ndarray, " half_h"]:
    """Rotation (radians a position) of every pair of a head's dimensions, float32, after the configured scaling."""
    half = config.head_dim // 2
    freq = 1.0 / config.rope_theta ** (np.arange(half, dtype=np.float64) / half)
    scaling = config.rope_scaling
    if scaling is None:
        return freq.astype(np.float32)
    if scaling.kind == "linear":
        return (freq / scaling.factor).astype(np.float32)
    wavelength = 2 * np.pi / freq
    low = scaling.original_length / scaling.low_freq_factor
    high = scaling.original_length / scaling.high_freq_factor
    smooth = (scaling.original_length / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - smooth) * freq / scaling.factor + smooth * freq
    freq = np.where(wavelength > low, freq / scaling.factor, np.where(wavelength < high, freq, blended))
    return freq.astype(np.float32)


def rotate(
    x_btnh: Float[Array, "b t n h"], positions_bt: Int[Array, "b t"], frequencies_h: Float[np.ndarray, " h//2"]
) -> Float[Array, "b t n h"]:
    """Rotary position embedding in Hugging Face's layout: dimension i is paired with i + h/2."""
    angle = positions_bt[..., None].astype(jnp.float32) * frequencies_h
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    a, b = jnp.split(x_btnh.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_btnh.dtype)


class Block(nnx.Module):
    """One pre-norm layer: grouped-query attention with rotary positions, then a SwiGLU feed-forward.

    With `lora` its linear maps have adapters beside them, `adapters.wq_dnh.{a, b}`.
    """

    def __init__(self, config: ModelConfig, *, dtype: DTypeLike, rngs: nnx.Rngs, lora: LoRA | None = None):
        c = config
        depth_scale = (2 * c.num_layers) ** -0.5

        def normal(shape: tuple[int, ...], axes: tuple[str, ...], fan_in: int, scale: float = 1.0) -> nnx.Param:
            return nnx.Param(jax.random.normal(rngs.params(), shape, dtype) * (scale * fan_in**-0.5), axes=axes)

        def constant(value: float, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
            return nnx.Param(jnp.full(shape, value, dtype), axes=axes)

        n, k, h, d, f = c.num_heads, c.num_kv_heads, c.head_dim, c.d_model, c.d_ff
        self.config = config
        self.attention_norm_d = constant(1.0, (d,), ("norm",))
        self.wq_dnh = normal((d, n, h), ("embed", "heads", "head_dim"), d)
        self.wk_dkh = normal((d, k, h), ("embed", "kv_heads", "head_dim"), d)
        self.wv_dkh = normal((d, k, h), ("embed", "kv_heads", "head_dim"), d)
        self.wo_nhd = normal((n, h, d), ("heads", "head_dim", "embed"), n * h, depth_scale)
        if c.qkv_bias:
            self.bq_nh = constant(0.0, (n, h), ("heads", "head_dim"))
            self.bk_kh = constant(0.0, (k, h), ("kv_heads", "head_dim"))
            self.bv_kh = constant(0.0, (k, h), ("kv_heads", "head_dim"))
        if c.o_bias:
            self.bo_d = constant(0.0, (d,), ("norm",))
        if c.qk_norm:
            self.q_norm_h = constant(1.0, (h,), ("head_dim",))
            self.k_norm_h = constant(1.0, (h,), ("head_dim",))
        self.mlp_norm_d = constant(1.0, (d,), ("norm",))
        self.w_gate_df = normal((d, f), ("embed", "mlp"), d)
        self.w_up_df = normal((d, f), ("embed", "mlp"), d)
        self.w_down_fd = normal((f, d), ("mlp", "embed"), f, depth_scale)
        if c.mlp_bias:
            self.b_gate_f = constant(0.0, (f,), ("mlp",))
            self.b_up_f = constant(0.0, (f,), ("mlp",))
            self.b_down_d = constant(0.0, (d,), ("norm",))
        self.lora = lora
        if lora:
            self.adapters = new_adapters(lora, self, rngs)

    def __call__(
        self,
        x_btd: Float[Array, "b t d"],
        positions_bt: Int[Array, "b t"],
        attend: Attend,
        rotates: Bool[Array, ""] | bool = True,
    ) -> Float[Array, "b t d"]:
        """The layer's output. `attend(q, k, v)` decides what is seen: the sequence itself, or a cache as well.

        `rotates` says whether this layer applies rotary positions (SmolLM3 leaves them out of some).
        """
        c, dtype = self.config, x_btd.dtype
        y = rms_norm(x_btd, self.attention_norm_d[...], c.norm_eps)
        q = self._linear(y, "wq_dnh")
        k = self._linear(y, "wk_dkh")
        v = self._linear(y, "wv_dkh")
        if c.qkv_bias:
            q, k, v = (a + bias[...].astype(dtype) for a, bias in ((q, self.bq_nh), (k, self.bk_kh), (v, self.bv_kh)))
        if c.qk_norm:
            q = rms_norm(q, self.q_norm_h[...], c.norm_eps)
            k = rms_norm(k, self.k_norm_h[...], c.norm_eps)
        if rotates is not False:
            frequencies = rope_frequencies(c)
            turned = rotate(q, positions_bt, frequencies), rotate(k, positions_bt, frequencies)
            q, k = (
                turned if rotates is True else (jnp.where(rotates, a, b) for a, b in zip(turned, (q, k), strict=True))
            )
        out = self._linear(attend(q, k, v), "wo_nhd")
        if c.o_bias:
            out = out + self.bo_d[...].astype(dtype)
        x_btd = x_btd + out
        return x_btd + self._feed_forward(rms_norm(x_btd, self.mlp_norm_d[...], c.norm_eps))

    def _feed_forward(self, y_btd: jax.Array) -> jax.Array:
        dtype = y_btd.dtype
        gate = self._linear(y_btd, "w_gate_df")
        up = self._linear(y_btd, "w_up_df")
        if self.config.mlp_bias:
            gate, up = gate + self.b_gate_f[...].astype(dtype), up + self.b_up_f[...].astype(dtype)
        out = self._linear(jax.nn.silu(gate) * up, "w_down_fd")
        return out + self.b_down_d[...].astype(dtype) if self.config.mlp_bias else out

    def _linear(self, x: jax.Array, name: str) -> jax.Array:
        """Applies the linear map `name` to x, and adds what its adapter gives if it has one."""
        y = linear(x, getattr(self, name).get_value())
        if self.lora and name in self.adapters:
            y += low_rank(x, self.adapters[name], self.lora.scale)
        return checkpoint_name(y, PRODUCT)
