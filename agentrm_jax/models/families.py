"""Hugging Face's `config.json` to a `ModelConfig` and back, for the families of models that are supported.

Both generations of keys are read (transformers 4: `rope_theta`, `rope_scaling`, `torch_dtype`; 5: `rope_parameters`, `dtype`,
`layer_types`) and both are written. `fields.py` says which fields are known, `rope_fields.py` reads those of rotary positions.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.fields import FIXED, check_fields
from agentrm_jax.models.rope_fields import read_rope, write_rope
from agentrm_jax.types import JSON, UserError

Head = Literal["CausalLM", "SequenceClassification", "TokenClassification"]
HEADS: tuple[Head, ...] = ("CausalLM", "SequenceClassification", "TokenClassification")
OPENRLHF = "RewardModel"  # the class that OpenRLHF makes around any backbone, and writes as its architecture


@dataclasses.dataclass(frozen=True)
class Family:
    """What a `model_type` can express, and what it takes for granted where a key is left out.

    Attributes:
      name: how its model classes begin; `classifier` how those of reward models do, if otherwise.
      heads: the classes that transformers has.
      attention_bias: `switch` (key `attention_bias`, on q, k, v and o), `qkv` (always on q, k and v) or `none`.
      windows: `none`, `all` layers (key `sliding_window`), `chosen` layers (`use_sliding_window`, `layer_types`), or all but
        every so many-th layer (`layer_types`, `sliding_window_pattern`), which is what a number says.
      window: the window if the key is absent.
      by_layer: layers with a window turn by a base of their own (`local_theta` if the key is absent), which is not scaled.
      partial: a part of a head's dimensions may turn.
      always: fields of `ModelConfig` that are the same in all models of the family.
      experts: keys of the number of experts, of which one is enough; none for a family without.
      width: key of the feed-forward layer's width.
      kv_heads: key/value heads if the key is absent; None for as many as query heads.
    """

    name: str
    attention_bias: Literal["switch", "qkv", "none"]
    windows: Literal["none", "all", "chosen"] | int = "none"
    window: int | None = 4096
    mlp_bias: bool = False
    rope_layers: bool = False
    by_layer: bool = False
    local_theta: float | None = None
    partial: bool = False
    always: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    experts: tuple[str, ...] = ()
    width: str = "intermediate_size"
    kv_heads: int | None = None
    tie: bool = False
    theta: float = 10000.0
    eps: float = 1e-6
    head_dim: int | None = None
    classifier: str = ""
    heads: tuple[Head, ...] = HEADS


# Fields of `ModelConfig` that belong to families; their values in the others.
_PLAIN = {
    f.name: f.default
    for f in dataclasses.fields(ModelConfig)
    if f.name in ("norms", "norm_offset", "activation", "scale_embeddings", "qk_norm", "qk_norm_wide")
}
# Fields of `config.json` that families with experts read.
_EXPERTS = {"num_experts_per_tok", "norm_topk_prob"}
_OLMO = {"norms": "post", "qk_norm": True, "qk_norm_wide": True}
_GEMMA = {"norms": "both", "norm_offset": 1.0, "activation": "gelu_tanh", "scale_embeddings": True, "qk_norm": True}
FAMILIES = {
    "llama": Family("Llama", "switch", mlp_bias=True),
    "mistral": Family("Mistral", "none", windows="all", kv_heads=8),
    "mixtral": Family(
        "Mixtral", "none", windows="all", window=None, experts=("num_local_experts",), kv_heads=8, theta=1e6, eps=1e-5
    ),
    "qwen2": Family("Qwen2", "qkv", windows="chosen", kv_heads=32),
    "qwen3": Family("Qwen3", "switch", windows="chosen", always={"qk_norm": True}, kv_heads=32, head_dim=128),
    "qwen3_moe": Family(
        "Qwen3Moe",
        "switch",
        windows="chosen",
        always={"qk_norm": True},
        experts=("num_experts", "num_local_experts"),
        width="moe_intermediate_size",
        kv_heads=4,
    ),
    "smollm3": Family(
        "SmolLM3", "switch", windows="chosen", mlp_bias=True, rope_layers=True, kv_heads=4, tie=True, theta=2e6
    ),
    "gemma3_text": Family(
        "Gemma3",
        "switch",
        windows=6,
        by_layer=True,
        local_theta=1e4,
        always=_GEMMA,
        kv_heads=4,
        tie=True,
        theta=1e6,
        head_dim=256,
        classifier="Gemma3Text",
        heads=HEADS[:2],
    ),
    "olmo2": Family("Olmo2", "switch", always=_OLMO, eps=1e-5, heads=HEADS[:2]),
    "olmo3": Family("Olmo3", "switch", windows=4, by_layer=True, always=_OLMO, theta=5e5, eps=1e-5, heads=HEADS[:2]),
    "phi3": Family("Phi3", "none", windows="all", window=None, partial=True, eps=1e-5),
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
    head_dim = fields.get("head_dim", family.head_dim) or fields["hidden_size"] // heads
    rope = read_rope(
        fields,
        head_dim,
        theta=family.theta,
        local_theta=family.local_theta,
        by_layer=family.by_layer,
        partial=family.partial,
    )
    rotates = _rope_layers(fields, layers) if family.rope_layers else ()
    window, windowed = _windows(fields, family, layers, rotates)
    bias = bool(fields.get("attention_bias", False)) if family.attention_bias == "switch" else False
    scalar = fields.get("query_pre_attn_scalar", 256) if kind == "gemma3_text" else head_dim
    more: dict[str, Any] = dict(family.always)
    if family.experts:
        count, chosen = (8, 2) if kind == "mixtral" else (128, 8)
        more |= {
            "num_experts": next((n for key in family.experts if (n := fields.get(key)) is not None), count),
            "experts_per_token": fields.get("num_experts_per_tok") or chosen,
            "normalize_routing": kind == "mixtral" or bool(fields.get("norm_topk_prob", False)),
        }
    return ModelConfig(
        vocab_size=fields["vocab_size"],
        num_layers=layers,
        d_model=fields["hidden_size"],
        num_heads=heads,
        num_kv_heads=fields.get("num_key_value_heads", family.kv_heads) or heads,
        head_dim=head_dim,
        d_ff=fields.get(family.width) or 768,
        architecture=kind,
        norm_eps=float(fields.get("rms_norm_eps") or family.eps),
        tie_embeddings=bool(fields.get("tie_word_embeddings", family.tie)),
        qkv_bias=bias or family.attention_bias == "qkv",
        o_bias=bias,
        mlp_bias=family.mlp_bias and bool(fields.get("mlp_bias", False)),
        query_scalar=None if scalar == head_dim else float(scalar),
        sliding_window=window,
        window_layers=windowed,
        rope_layers=rotates,
        **rope,
        **more,
    )


def head_from_hf(fields: Mapping[str, JSON], origin: str = "config.json") -> Head:
    """What the checkpoint's class computes; a bare backbone counts as a CausalLM without an output map of its own.

    OpenRLHF's `RewardModel` is a linear map on the hidden state at the last token: a classifier with one label.

    Raises:
      UserError: another class, or one with more labels than are read (`labels_from_hf`).
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
    labels_from_hf(fields, head or "CausalLM", origin)
    return head or "CausalLM"


def labels_from_hf(fields: Mapping[str, JSON], head: Head, origin: str = "config.json") -> int:
    """How many labels a classifier has: one, which is a value, or two at every token, good and bad. 0 for a CausalLM.

    Raises:
      UserError: it has others.
    """
    if head == "CausalLM":
        return 0
    if OPENRLHF in (fields.get("architectures") or ()):
        return 1
    labels = len(fields["id2label"]) if fields.get("id2label") else fields.get("num_labels") or 2
    if labels != 1 and (head, labels) != ("TokenClassification", 2):
        raise UserError(
            f"{origin}: a reward model has one label, or at every token two (good and bad); this {fields['architectures'][0]} has {labels}"
        )
    return labels


def _check(fields: Mapping[str, JSON], kind: str, family: Family, origin: str) -> None:
    """Refuses fields that this family does not read although they would change the model."""
    used = {*family.experts, family.width} | (_EXPERTS if family.experts else set())
    if family.attention_bias == "switch":
        used.add("attention_bias")
    if family.mlp_bias:
        used.add("mlp_bias")
    if family.windows != "none":
        used |= {"sliding_window", "layer_types"}
    if family.windows == "chosen":
        used |= {"use_sliding_window", "max_window_layers"}
    if isinstance(family.windows, int):
        used |= {"sliding_window_pattern", "_sliding_window_pattern"}
    if family.by_layer:
        used.add("rope_local_base_freq")
    if family.partial:
        used |= {"partial_rotary_factor", "original_max_position_embeddings"}
    if family.rope_layers:
        used.add("no_rope_layers")
    if kind == "gemma3_text":
        used.add("query_pre_attn_scalar")
    if kind == "phi3" and _is_own_code(fields.get("auto_map")):
        used.add("auto_map")
    if not fields.get("use_sliding_window"):
        used.add("max_window_layers")  # counts only together with it
    types = fields.get("layer_types")
    full = isinstance(types, list) and all(t == "full_attention" for t in types)
    gelu = family.always.get("activation") == "gelu_tanh"
    activations = ("gelu_pytorch_tanh",) if gelu else FIXED["hidden_act"]
    fixed: dict[str, tuple[JSON, ...]] = FIXED | {
        "layer_types": (types,) if full else (None,),
        "attention_bias": (False, None, family.attention_bias == "qkv"),
        "mlp_bias": (False, None),
        "sliding_window": (None,),
        "use_sliding_window": (False, None),
        "hidden_act": (*activations, None) if gelu else activations,
        "hidden_activation": (*activations, None),
    }
    check_fields(fields, used=used, fixed=fixed, kind=kind, origin=origin)


def _is_own_code(auto_map: JSON) -> bool:
    """Whether the code that the first Phi models brought with them is named, which is what transformers has now."""
    return isinstance(auto_map, dict) and all(
        isinstance(v, str) and v.split(".")[0] in ("configuration_phi3", "modeling_phi3") for v in auto_map.values()
    )


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
        window = fields.get("sliding_window", family.window)
        if types is not None and set(types) != {"sliding_attention" if window else "full_attention"}:
            raise UserError("layer_types that disagree with sliding_window are not supported for this family")
        return window, ()
    if family.windows == "none":
        return None, ()
    if isinstance(family.windows, int):
        every = fields.get("sliding_window_pattern") or fields.get("_sliding_window_pattern") or family.windows
        window = fields.get("sliding_window", family.window)
        flags = tuple(t == "sliding_attention" for t in types or ()) or tuple(
            (i + 1) % every > 0 for i in range(layers)
        )
        if any(flags) and window is None:
            raise UserError("layers slide a window, but sliding_window is not set")
        return (window, () if all(flags) else flags) if any(flags) else (None, ())
    window = fields.get("sliding_window", None if family.rope_layers else family.window)
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
    _expressible(c, family, head)
    gelu = c.activation == "gelu_tanh"
    name = family.name if head == "CausalLM" else family.classifier or family.name
    fields: dict[str, JSON] = {
        "architectures": [f"{name}For{head}"],
        "model_type": c.architecture,
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        **({"hidden_activation": "gelu_pytorch_tanh"} if gelu else {"hidden_act": "silu"}),
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tie_embeddings,
        **write_rope(c, by_layer=family.by_layer, partial=family.partial),
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
    if c.architecture == "gemma3_text":
        scalar = c.query_scalar or c.head_dim
        fields["query_pre_attn_scalar"] = int(scalar) if scalar == int(scalar) else scalar
    if family.experts:
        fields |= dict.fromkeys(family.experts, c.num_experts)
        fields |= {family.width: c.d_ff, "num_experts_per_tok": c.experts_per_token}
    if c.architecture == "qwen3_moe":
        fields |= {"norm_topk_prob": c.normalize_routing, "decoder_sparse_step": 1, "mlp_only_layers": []}
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
    types: JSON = ["sliding_attention" if f else "full_attention" for f in flags]
    if isinstance(family.windows, int):
        return {"sliding_window": c.sliding_window or family.window, "layer_types": types}
    fields: dict[str, JSON] = {
        "use_sliding_window": any(flags),
        "sliding_window": c.sliding_window,
        "layer_types": types,
    }
    first = flags.index(True) if any(flags) else c.num_layers
    if not family.rope_layers and all(flags[first:]):  # the older way of saying it
        fields["max_window_layers"] = first
    return fields


def _expressible(c: ModelConfig, family: Family, head: Head) -> None:
    bias = {
        "switch": c.qkv_bias == c.o_bias,
        "qkv": c.qkv_bias and not c.o_bias,
        "none": not c.qkv_bias and not c.o_bias,
    }
    checks = {
        "attention biases": bias[family.attention_bias],
        "mlp_bias": family.mlp_bias or not c.mlp_bias,
        "rope_layers": family.rope_layers or all(c.rope_layers),
        "sliding_window": family.windows != "none" or c.sliding_window is None,
        "window_layers": family.windows not in ("none", "all") or c.sliding_window is None or all(c.window_layers),
        "num_experts": bool(family.experts) == bool(c.num_experts),
        "normalize_routing": c.normalize_routing or c.architecture == "qwen3_moe",
        "query_scalar": c.query_scalar is None or c.architecture == "gemma3_text",
        "local_rope_theta": family.by_layer == (c.local_rope_theta is not None),
        "rotary_dim": family.partial or c.rotary_dim is None,
        "value_bias": head == "CausalLM" or not (c.value_bias or c.value_probability),
        "rope_scaling": not family.partial or c.rope_scaling is None or c.rope_scaling.kind == "longrope",
    }
    checks |= {name: getattr(c, name) == value for name, value in (_PLAIN | dict(family.always)).items()}
    for name, fits in checks.items():
        if not fits:
            raise UserError(f"{name} of this model cannot be written as {c.architecture!r}")
    if head not in family.heads:
        raise UserError(
            f"there is no class {family.name}For{head} in transformers; supported is {' or '.join(family.heads)}"
        )
