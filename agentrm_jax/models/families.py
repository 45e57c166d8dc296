"""Hugging Face's `config.json` to a `ModelConfig` and back, for the families of models that are supported.

Both generations of keys are read (transformers 4: `rope_theta`, `rope_scaling`, `torch_dtype`; 5: `rope_parameters`, `dtype`,
`layer_types`) and both are written. `fields.py` says which fields are known.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from agentrm_jax.models.config import ModelConfig, RopeScaling
from agentrm_jax.models.fields import FIXED, check_fields, positive, whole
from agentrm_jax.types import JSON, UserError

Head = Literal["CausalLM", "SequenceClassification", "TokenClassification"]
HEADS: tuple[Head, ...] = ("CausalLM", "SequenceClassification", "TokenClassification")
OPENRLHF = "RewardModel"  # the class that OpenRLHF makes around any backbone, and writes as its architecture


@dataclasses.dataclass(frozen=True)
class Family:
    """What a `model_type` can express, and what it takes for granted where a key is left out.

    Attributes:
      name: how its model classes begin.
      attention_bias: `switch` (key `attention_bias`, on q, k, v and o), `qkv` (always on q, k and v) or `none`.
      windows: `none`, `all` layers (key `sliding_window`), or `chosen` layers (`use_sliding_window`, `layer_types`).
      kv_heads: key/value heads if the key is absent; None for as many as query heads.
    """

    name: str
    attention_bias: Literal["switch", "qkv", "none"]
    windows: Literal["none", "all", "chosen"] = "none"
    mlp_bias: bool = False
    qk_norm: bool = False
    rope_layers: bool = False
    kv_heads: int | None = None
    tie: bool = False
    theta: float = 10000.0
    head_dim: int | None = None


FAMILIES = {
    "llama": Family("Llama", "switch", mlp_bias=True),
    "mistral": Family("Mistral", "none", windows="all", kv_heads=8),
    "qwen2": Family("Qwen2", "qkv", windows="chosen", kv_heads=32),
    "qwen3": Family("Qwen3", "switch", windows="chosen", qk_norm=True, kv_heads=32, head_dim=128),
    "smollm3": Family(
        "SmolLM3", "switch", windows="chosen", mlp_bias=True, rope_layers=True, kv_heads=4, tie=True, theta=2e6
    ),
}


def config_from_hf(fields: Mapping[str, JSON], origin: str = "config.json") -> ModelConfig:
    """The model a `config.json` describes; `origin` says in messages where the fields stand.

    Raises:
      UserError: the architecture is unknown, needed fields are missing, or fields ask for what is not supported.
    """
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(f"{origin}: model_type {kind!r} is not supported; supported are {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    _check(fields, kind, family, origin)
    try:
        return _config(fields, kind, family)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None


def _config(fields: Mapping[str, JSON], kind: str, family: Family) -> ModelConfig:
    layers, heads = fields["num_hidden_layers"], fields["num_attention_heads"]
    theta, scaling = _rope(fields, family)
    rotates = _rope_layers(fields, layers) if family.rope_layers else ()
    window, windowed = _windows(fields, family, layers, rotates)
    bias = bool(fields.get("attention_bias", False)) if family.attention_bias == "switch" else False
    return ModelConfig(
        vocab_size=fields["vocab_size"],
        num_layers=layers,
        d_model=fields["hidden_size"],
        num_heads=heads,
        num_kv_heads=fields.get("num_key_value_heads", family.kv_heads) or heads,
        head_dim=fields.get("head_dim", family.head_dim) or fields["hidden_size"] // heads,
        d_ff=fields["intermediate_size"],
        architecture=kind,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=float(fields.get("rms_norm_eps") or 1e-6),
        tie_embeddings=bool(fields.get("tie_word_embeddings", family.tie)),
        qkv_bias=bias or family.attention_bias == "qkv",
        o_bias=bias,
        mlp_bias=family.mlp_bias and bool(fields.get("mlp_bias", False)),
        qk_norm=family.qk_norm,
        sliding_window=window,
        window_layers=windowed,
        rope_layers=rotates,
        max_length=fields["max_position_embeddings"],
    )


def head_from_hf(fields: Mapping[str, JSON], origin: str = "config.json") -> Head:
    """What the checkpoint's class computes; a bare backbone counts as a CausalLM without an output map of its own.

    OpenRLHF's `RewardModel` is a linear map on the hidden state at the last token: a classifier with one label.

    Raises:
      UserError: another class, or a classifier with more than one label.
    """
    name = (fields.get("architectures") or ["Model"])[0]
    if name == OPENRLHF:
        return "SequenceClassification"
    head = next((h for h in HEADS if name.endswith("For" + h)), None)
    if head is None and ("For" in name or not name.endswith("Model")):
        raise UserError(
            f"{origin}: architecture {name!r} is not supported; supported are *For{', *For'.join(HEADS)} and "
            f"OpenRLHF's {OPENRLHF}"
        )
    labels = len(fields["id2label"]) if fields.get("id2label") else fields.get("num_labels") or 2
    if head in HEADS[1:] and labels != 1:
        raise UserError(f"{origin}: a reward model has one label, this {name} has {labels}")
    return head or "CausalLM"


def _check(fields: Mapping[str, JSON], kind: str, family: Family, origin: str) -> None:
    """Refuses fields that this family does not read although they would change the model."""
    used: set[str] = set()
    if family.attention_bias == "switch":
        used.add("attention_bias")
    if family.mlp_bias:
        used.add("mlp_bias")
    if family.windows != "none":
        used |= {"sliding_window", "layer_types"}
    if family.windows == "chosen":
        used |= {"use_sliding_window", "max_window_layers"}
    if family.rope_layers:
        used.add("no_rope_layers")
    if not fields.get("use_sliding_window"):
        used.add("max_window_layers")  # counts only together with it
    types = fields.get("layer_types")
    full = isinstance(types, list) and all(t == "full_attention" for t in types)
    fixed: dict[str, tuple[JSON, ...]] = FIXED | {
        "layer_types": (types,) if full else (None,),
        "attention_bias": (False, None, family.attention_bias == "qkv"),
        "mlp_bias": (False, None),
        "sliding_window": (None,),
        "use_sliding_window": (False, None),
    }
    check_fields(fields, used=used, fixed=fixed, kind=kind, origin=origin)


def _rope(fields: Mapping[str, JSON], family: Family) -> tuple[float, RopeScaling | None]:
    rope = dict(fields.get("rope_scaling") or {}) | dict(fields.get("rope_parameters") or {})
    theta = rope.pop("rope_theta", None) or fields.get("rope_theta") or family.theta
    kind = rope.pop("rope_type", None) or rope.get("type") or "default"
    rope.pop("type", None)
    if any(isinstance(v, dict) for v in rope.values()):
        raise UserError("rope_parameters that differ by layer type are not supported")
    known = {
        "default": {"factor", "original_max_position_embeddings"},
        "linear": {"factor", "original_max_position_embeddings"},
        "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    }
    if not isinstance(kind, str) or kind not in known:
        raise UserError(f"rope type {kind!r} is not supported; supported are {', '.join(known)}")
    if rope.get("partial_rotary_factor", 1) in (1, None):
        rope.pop("partial_rotary_factor", None)
    if more := sorted(rope.keys() - known[kind]):
        raise UserError(f"rope parameters that are not supported for {kind!r} rope: {', '.join(more)}")
    length = rope.pop("original_max_position_embeddings", None) or fields["max_position_embeddings"]
    numbers = {"rope_theta": theta} | (rope if kind != "default" else {})
    if wrong := [f"{name}={value!r}" for name, value in numbers.items() if not positive(value)]:
        raise UserError(f"rope parameters that are no numbers above 0: {', '.join(wrong)}")
    if not whole(length):
        raise UserError(f"original_max_position_embeddings={length!r} must be a whole number above 0")
    if kind == "default":
        return float(theta), None
    if missing := sorted(known[kind] - rope.keys() - {"original_max_position_embeddings"}):
        raise UserError(f"{kind!r} rope needs {', '.join(missing)}")
    if kind == "linear":
        return float(theta), RopeScaling("linear", float(rope["factor"]))
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    if not low < high:
        raise UserError(f"'llama3' rope needs low_freq_factor below high_freq_factor, not {low} and {high}")
    return float(theta), RopeScaling("llama3", float(rope["factor"]), low, high, length)


def _rope_layers(fields: Mapping[str, JSON], layers: int) -> tuple[bool, ...]:
    flags = fields.get("no_rope_layers")
    if flags is None:  # in spite of its name, a 1 means that the layer rotates
        every = fields.get("no_rope_layer_interval") or 4
        flags = [(i + 1) % every != 0 for i in range(layers)]
    if len(flags) < layers:
        raise UserError(f"no_rope_layers has {len(flags)} entries for {layers} layers")
    return () if all(flags[:layers]) else tuple(bool(f) for f in flags[:layers])


def _windows(
    fields: Mapping[str, JSON], family: Family, layers: int, rotates: Sequence[bool]
) -> tuple[int | None, tuple[bool, ...]]:
    """The sliding window and the layers it holds for."""
    types = fields.get("layer_types")
    if types is not None:
        unknown = set(types) - {"full_attention", "sliding_attention"}
        if unknown:
            raise UserError(f"layer type {sorted(unknown)[0]!r} is not supported")
        if len(types) != layers:
            raise UserError(f"layer_types has {len(types)} entries for {layers} layers")
    if family.windows == "all":
        window = fields.get("sliding_window", 4096)
        if types is not None and set(types) != {"sliding_attention" if window else "full_attention"}:
            raise UserError("layer_types that disagree with sliding_window are not supported for this family")
        return window, ()
    if family.windows == "none":
        return None, ()
    window = fields.get("sliding_window", None if family.rope_layers else 4096)
    if not fields.get("use_sliding_window", False) or window is None:
        if types and "sliding_attention" in types:
            raise UserError("layer_types names sliding_attention, but use_sliding_window or sliding_window is not set")
        return None, ()
    if types is not None:
        flags = tuple(t == "sliding_attention" for t in types)
    elif family.rope_layers:
        flags = tuple(not r for r in rotates) or (False,) * layers
    else:
        first = fields.get("max_window_layers")
        flags = tuple(i >= (28 if first is None else first) for i in range(layers))
    if not any(flags):
        return None, ()
    return window, () if all(flags) else flags


def config_to_hf(config: ModelConfig, head: Head, dtype: str = "float32") -> dict[str, JSON]:
    """A `config.json` that transformers 4 and 5 and vLLM read; token ids are left to the caller.

    Raises:
      UserError: the family has no way to say what this model does.
    """
    c, family = config, FAMILIES.get(config.architecture)
    if family is None:
        raise UserError(
            f"architecture {c.architecture!r} has no Hugging Face form; supported are {', '.join(FAMILIES)}"
        )
    _expressible(c, family)
    rope: dict[str, JSON] = {"rope_type": "default"}
    if c.rope_scaling is not None:
        s = c.rope_scaling
        rope = {"rope_type": s.kind, "factor": s.factor}
        if s.kind == "llama3":
            rope |= {"low_freq_factor": s.low_freq_factor, "high_freq_factor": s.high_freq_factor}
            rope |= {"original_max_position_embeddings": s.original_length}
    fields: dict[str, JSON] = {
        "architectures": [f"{family.name}For{head}"],
        "model_type": c.architecture,
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_eps,
        "max_position_embeddings": c.max_length,
        "tie_word_embeddings": c.tie_embeddings,
        "rope_theta": c.rope_theta,
        "rope_scaling": rope if c.rope_scaling else None,
        "rope_parameters": {"rope_theta": c.rope_theta, **rope},
        "attention_dropout": 0.0,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    if family.attention_bias == "switch":
        fields["attention_bias"] = c.o_bias
    if family.mlp_bias:
        fields["mlp_bias"] = c.mlp_bias
    if family.rope_layers:
        fields["no_rope_layers"] = [int(r) for r in c.rope_layers or (True,) * c.num_layers]
    fields |= _windows_to_hf(c, family)
    if head != "CausalLM":
        fields |= {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return fields


def _windows_to_hf(c: ModelConfig, family: Family) -> dict[str, JSON]:
    if family.windows == "none":
        return {}
    if family.windows == "all":
        return {"sliding_window": c.sliding_window}
    flags = (c.window_layers or (True,) * c.num_layers) if c.sliding_window else (False,) * c.num_layers
    fields: dict[str, JSON] = {
        "use_sliding_window": any(flags),
        "sliding_window": c.sliding_window,
        "layer_types": ["sliding_attention" if f else "full_attention" for f in flags],
    }
    first = flags.index(True) if any(flags) else c.num_layers
    if not family.rope_layers and all(flags[first:]):  # the older way of saying it
        fields["max_window_layers"] = first
    return fields


def _expressible(c: ModelConfig, family: Family) -> None:
    bias = {
        "switch": c.qkv_bias == c.o_bias,
        "qkv": c.qkv_bias and not c.o_bias,
        "none": not c.qkv_bias and not c.o_bias,
    }
    checks = {
        "attention biases": bias[family.attention_bias],
        "mlp_bias": family.mlp_bias or not c.mlp_bias,
        "qk_norm": family.qk_norm == c.qk_norm,
        "rope_layers": family.rope_layers or all(c.rope_layers),
        "sliding_window": family.windows != "none" or c.sliding_window is None,
        "window_layers": family.windows == "chosen" or c.sliding_window is None or all(c.window_layers),
    }
    for name, fits in checks.items():
        if not fits:
            raise UserError(f"{name} of this model cannot be written as {c.architecture!r}")
