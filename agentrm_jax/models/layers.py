"""The parts of a transformer block, as functions of arrays, and the block that holds their parameters.

Names carry layouts: b batch, t query time, s key time, d model, n query heads, k key/value heads, g query heads per
key/value head, h head dim, f feed-forward.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.experts import mixture
from agentrm_jax.models.linear import linear
from agentrm_jax.models.lora import LoRA, low_rank, new_adapters
from agentrm_jax.models.rope import Rotation, rotate

PRODUCT = "product"  # name, for rematerialisation, of what a linear map gave

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


def rms_norm(
    x: Float[Array, "*shape d"], scale: Float[Array, " d"], eps: float, offset: float = 0.0
) -> Float[Array, "*shape d"]:
    """Root-mean-square norm over the last axis, times `offset + scale`, computed in float32."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return (y * (scale.astype(jnp.float32) + offset)).astype(x.dtype)


class Block(nnx.Module):
    """One layer: grouped-query attention with rotary positions, then a gated feed-forward, or a mixture of such experts.

    Norms stand before, behind or on both sides of either, as the configuration says. With `lora` its linear maps have adapters
    beside them, `adapters.wq_dnh.{a, b}`; experts have none.
    """

    def __init__(self, config: ModelConfig, *, dtype: DTypeLike, rngs: nnx.Rngs, lora: LoRA | None = None):
        c = config
        depth_scale = (2 * c.num_layers) ** -0.5

        def normal(shape: tuple[int, ...], axes: tuple[str, ...], fan_in: int, scale: float = 1.0) -> nnx.Param:
            return nnx.Param(jax.random.normal(rngs.params(), shape, dtype) * (scale * fan_in**-0.5), axes=axes)

        def constant(value: float, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
            return nnx.Param(jnp.full(shape, value, dtype), axes=axes)

        one = 1.0 - c.norm_offset
        n, k, h, d, f, e = c.num_heads, c.num_kv_heads, c.head_dim, c.d_model, c.d_ff, c.num_experts
        self.config = config
        if c.norms != "post":
            self.attention_norm_d = constant(one, (d,), ("norm",))
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
        if c.qk_norm and c.qk_norm_wide:
            self.q_norm_nh = constant(one, (n, h), ("heads", "head_dim"))
            self.k_norm_kh = constant(one, (k, h), ("kv_heads", "head_dim"))
        elif c.qk_norm:
            self.q_norm_h = constant(one, (h,), ("head_dim",))
            self.k_norm_h = constant(one, (h,), ("head_dim",))
        if c.norms != "pre":
            self.attention_post_norm_d = constant(one, (d,), ("norm",))
            self.mlp_post_norm_d = constant(one, (d,), ("norm",))
        if c.norms != "post":
            self.mlp_norm_d = constant(one, (d,), ("norm",))
        if e:
            self.router_de = normal((d, e), ("embed", "routes"), d)
            self.experts_gate_edf = normal((e, d, f), ("experts", "embed", "expert_mlp"), d)
            self.experts_up_edf = normal((e, d, f), ("experts", "embed", "expert_mlp"), d)
            self.experts_down_efd = normal((e, f, d), ("experts", "expert_mlp", "embed"), f, depth_scale)
        else:
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
        self, x_btd: Float[Array, "b t d"], positions_bt: Int[Array, "b t"], attend: Attend, rotation: Rotation | None
    ) -> Float[Array, "b t d"]:
        """The layer's output. `attend(q, k, v)` decides what is seen: the sequence itself, or a cache as well.

        `rotation` says how this layer turns queries and keys by their positions; None if it does not.
        """
        x_btd = x_btd + self._normed(self._attention(x_btd, positions_bt, attend, rotation), "attention_post_norm_d")
        feed_forward = self._mixture if self.config.num_experts else self._feed_forward
        return x_btd + self._normed(feed_forward(self._normed(x_btd, "mlp_norm_d")), "mlp_post_norm_d")

    def _normed(self, x: jax.Array, name: str) -> jax.Array:
        """`x` after the norm `name`, if the layer has it."""
        return self._norm(x, getattr(self, name)) if hasattr(self, name) else x

    def _norm(self, x: jax.Array, scale: nnx.Param) -> jax.Array:
        """The norm over as many of the last axes as its scale has."""
        wide = x.reshape(*x.shape[: x.ndim - scale[...].ndim], -1)
        return rms_norm(wide, scale[...].reshape(-1), self.config.norm_eps, self.config.norm_offset).reshape(x.shape)

    def _attention(
        self, x_btd: jax.Array, positions_bt: jax.Array, attend: Attend, rotation: Rotation | None
    ) -> jax.Array:
        c, dtype = self.config, x_btd.dtype
        y = self._normed(x_btd, "attention_norm_d")
        q, k, v = (self._linear(y, name) for name in ("wq_dnh", "wk_dkh", "wv_dkh"))
        if c.qkv_bias:
            q, k, v = (a + bias[...].astype(dtype) for a, bias in ((q, self.bq_nh), (k, self.bk_kh), (v, self.bv_kh)))
        if c.qk_norm:
            q = self._norm(q, self.q_norm_nh if c.qk_norm_wide else self.q_norm_h)
            k = self._norm(k, self.k_norm_kh if c.qk_norm_wide else self.k_norm_h)
        if rotation is not None:
            q, k = (rotate(a, positions_bt, rotation) for a in (q, k))
        if c.query_scalar is not None:  # whatever attends divides by the square root of h
            q = q * (c.head_dim / c.query_scalar) ** 0.5
        out = self._linear(attend(q, k, v), "wo_nhd")
        return out + self.bo_d[...].astype(dtype) if c.o_bias else out

    def _feed_forward(self, y_btd: jax.Array) -> jax.Array:
        dtype = y_btd.dtype
        gate = self._linear(y_btd, "w_gate_df")
        up = self._linear(y_btd, "w_up_df")
        if self.config.mlp_bias:
            gate, up = gate + self.b_gate_f[...].astype(dtype), up + self.b_up_f[...].astype(dtype)
        out = self._linear(ACTIVATIONS[self.config.activation](gate) * up, "w_down_fd")
        return out + self.b_down_d[...].astype(dtype) if self.config.mlp_bias else out

    def _mixture(self, y_btd: jax.Array) -> jax.Array:
        c = self.config
        experts = (self.experts_gate_edf[...], self.experts_up_edf[...], self.experts_down_efd[...])
        out = mixture(
            y_btd,
            self.router_de[...],
            *experts,
            chosen=c.experts_per_token,
            normalize=c.normalize_routing,
            activation=ACTIVATIONS[c.activation],
        )
        return checkpoint_name(out, PRODUCT)

    def _linear(self, x: jax.Array, name: str) -> jax.Array:
        """Applies the linear map `name` to x, and adds what its adapter gives if it has one."""
        y = linear(x, getattr(self, name).get_value())
        if self.lora and name in self.adapters:
            y += low_rank(x, self.adapters[name], self.lora.scale)
        return checkpoint_name(y, PRODUCT)
