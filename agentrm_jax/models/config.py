"""The shapes and switches that define a decoder-only transformer, and those of the preset sizes."""

import dataclasses
from typing import Literal

from agentrm_jax.types import JSON, UserError


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Stretching of rotary frequencies beyond the original context, by one of the rules that Hugging Face names.

    Attributes:
      kind: `linear`; `llama3`, by wavelength; `yarn`; `longrope` and `dynamic`, which change when a path gets longer than the
        original context: models are used up to that only (`ModelConfig.max_length`).
      factor: of the stretching; with `longrope` the longest context over the original one.
      amplitude: what turned queries and keys are multiplied by.
      low_freq_factor, high_freq_factor: of `llama3`.
      beta_fast, beta_slow, truncate: of `yarn`.
      short_factors, long_factors: of `longrope`, one for each pair of dimensions that turns.
    """

    kind: Literal["linear", "llama3", "yarn", "longrope", "dynamic"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192
    amplitude: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """One transformer. Letters: v vocabulary, l layers, d model, n query heads, k key/value heads, h head dim, f feed-forward,
    e experts.

    Attributes:
      d_ff: width of a feed-forward layer, or of each of its experts.
      architecture: name of the family in Hugging Face's `model_type`, for import and export.
      local_rope_theta: base of the rotation in layers with a window, which is not scaled; None for that of the other layers.
      rotary_dim: how many of a head's dimensions turn, the first ones; None for all.
      norms: RMS norm before attention and feed-forward (`pre`), of what they give (`post`), or both.
      norm_offset: added to the scale of every norm (Gemma stores its difference from 1).
      activation: of the gate of a feed-forward layer.
      scale_embeddings: embeddings are multiplied by the square root of d.
      qkv_bias, o_bias, mlp_bias: linear maps that carry a bias.
      qk_norm: RMS norm of queries and keys before rotation; of every head, or with `qk_norm_wide` of all heads together.
      query_scalar: scores of attention are divided by its square root; None for h.
      sliding_window: a query sees keys less than this many positions back; None for all.
      window_layers: which layers use the window, one flag a layer; empty for all of them.
      rope_layers: which layers rotate queries and keys, one flag a layer; empty for all of them.
      num_experts, experts_per_token: of a mixture in the place of every feed-forward layer; 0 for none.
      normalize_routing: the weights of a token's experts are made to sum to 1.
      max_length: longest path (in tokens) the model is used with.
      value_bias, value_probability: of a classifier that was trained elsewhere: what is added to the value head's output, and
        whether the sum goes through a sigmoid.
    """

    vocab_size: int
    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    architecture: str = "llama"
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float | None = None
    rotary_dim: int | None = None
    norms: Literal["pre", "post", "both"] = "pre"
    norm_eps: float = 1e-5
    norm_offset: float = 0.0
    activation: Literal["silu", "gelu_tanh"] = "silu"
    tie_embeddings: bool = True
    scale_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    qk_norm_wide: bool = False
    query_scalar: float | None = None
    sliding_window: int | None = None
    window_layers: tuple[bool, ...] = ()
    rope_layers: tuple[bool, ...] = ()
    num_experts: int = 0
    experts_per_token: int = 0
    normalize_routing: bool = True
    max_length: int = 2048
    value_bias: float = 0.0
    value_probability: bool = False

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise UserError(f"{self.num_heads} query heads cannot share {self.num_kv_heads} key/value heads evenly")
        if self.head_dim < 2 or self.head_dim % 2:
            raise UserError(f"heads of {self.head_dim} dimensions cannot be rotated in pairs")
        if self.rotary_dim is not None and (self.rotary_dim % 2 or not 2 <= self.rotary_dim <= self.head_dim):
            raise UserError(f"{self.rotary_dim} of {self.head_dim} dimensions cannot be rotated in pairs")
        if not 0 <= self.experts_per_token <= self.num_experts or (self.num_experts and not self.experts_per_token):
            raise UserError(f"a token cannot have {self.experts_per_token} of {self.num_experts} experts")
        for name in ("window_layers", "rope_layers"):
            flags = getattr(self, name)
            if flags and len(flags) != self.num_layers:
                raise UserError(f"{name} has {len(flags)} flags for {self.num_layers} layers")
        scaling, pairs = self.rope_scaling, (self.rotary_dim or self.head_dim) // 2
        if scaling and scaling.kind == "longrope":
            for name in ("short_factors", "long_factors"):
                if len(getattr(scaling, name)) != pairs:
                    raise UserError(
                        f"longrope has {len(getattr(scaling, name))} {name} for {pairs} pairs of dimensions"
                    )

    @property
    def windows(self) -> tuple[int | None, ...]:
        """How far back every layer sees; None for all the way."""
        flags = self.window_layers or (True,) * self.num_layers
        return tuple(self.sliding_window if flag else None for flag in flags)

    def to_json(self) -> dict[str, JSON]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, JSON]) -> "ModelConfig":
        """Inverse of `to_json` (lists become tuples again)."""

        def tuples(fields: dict[str, JSON]) -> dict[str, JSON]:
            return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}

        fields = tuples(fields)
        if fields.get("rope_scaling"):
            fields["rope_scaling"] = RopeScaling(**tuples(fields["rope_scaling"]))
        return cls(**fields)


NANO = ModelConfig(
    vocab_size=1024,
    num_layers=4,
    d_model=256,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    d_ff=768,
    max_length=1024,
)

# The models that sizes start from, as their public config.json files describe them; read where those files are not at hand.
PRESETS: dict[str, ModelConfig] = {
    "nano": NANO,
    "smollm2": ModelConfig(
        vocab_size=49152,
        num_layers=30,
        d_model=576,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        d_ff=1536,
        rope_theta=1e5,
        max_length=8192,
    ),
    "qwen3_4b": ModelConfig(
        vocab_size=151936,
        num_layers=36,
        d_model=2560,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        d_ff=9728,
        architecture="qwen3",
        rope_theta=1e6,
        norm_eps=1e-6,
        qk_norm=True,
        max_length=40960,
    ),
    "llama3_8b": ModelConfig(
        vocab_size=128256,
        num_layers=32,
        d_model=4096,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        d_ff=14336,
        rope_theta=5e5,
        tie_embeddings=False,
        max_length=8192,
    ),
    "llama3_70b": ModelConfig(
        vocab_size=128256,
        num_layers=80,
        d_model=8192,
        num_heads=64,
        num_kv_heads=8,
        head_dim=128,
        d_ff=28672,
        rope_theta=5e5,
        tie_embeddings=False,
        max_length=8192,
    ),
}
