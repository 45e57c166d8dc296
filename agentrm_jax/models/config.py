"""The shapes and switches that define a decoder-only transformer of the Llama family, and those of the preset sizes."""

import dataclasses
from typing import Literal

from agentrm_jax.types import JSON, UserError


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Stretching of rotary frequencies beyond the original context: `linear`, or Llama 3's by-wavelength rule."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """One transformer. Letters: v vocabulary, l layers, d model, n query heads, k key/value heads, h head dim, f feed-forward.

    Attributes:
      architecture: name of the family in Hugging Face's `model_type`, for import and export.
      qkv_bias, o_bias, mlp_bias: linear maps that carry a bias.
      qk_norm: RMS norm of every query and key head before rotation.
      sliding_window: a query sees keys less than this many positions back; None for all.
      window_layers: which layers use the window, one flag a layer; empty for all of them.
      rope_layers: which layers rotate queries and keys, one flag a layer; empty for all of them.
      max_length: longest path (in tokens) the model is used with.
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
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    window_layers: tuple[bool, ...] = ()
    rope_layers: tuple[bool, ...] = ()
    max_length: int = 2048

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise UserError(f"{self.num_heads} query heads cannot share {self.num_kv_heads} key/value heads evenly")
        if self.head_dim < 2 or self.head_dim % 2:
            raise UserError(f"heads of {self.head_dim} dimensions cannot be rotated in pairs")
        for name in ("window_layers", "rope_layers"):
            flags = getattr(self, name)
            if flags and len(flags) != self.num_layers:
                raise UserError(f"{name} has {len(flags)} flags for {self.num_layers} layers")

    def to_json(self) -> dict[str, JSON]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, JSON]) -> "ModelConfig":
        """Inverse of `to_json` (lists become tuples again)."""
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        if fields.get("rope_scaling"):
            fields["rope_scaling"] = RopeScaling(**fields["rope_scaling"])
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
