"""config.json of every supported family, in both generations of keys, and what is refused by name."""

import dataclasses
import math

import numpy as np
import pytest

from agentrm_jax.models.config import NANO, ModelConfig, RopeScaling
from agentrm_jax.models.families import FAMILIES, HEADS, config_from_hf, config_to_hf, head_from_hf
from agentrm_jax.models.rope import rope_frequencies, rotation
from agentrm_jax.types import UserError

BASE = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "transformers_version": "4.40.0",
    "initializer_range": 0.02,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 256}


PHI4_MINI = {
    "head_dim": 16,
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 128,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 6, "long_factor": [1.0, 1.2, 1.5, 2.0, 3.0, 4.0]},
}


def read(kind, **fields) -> ModelConfig:
    own = {"hidden_act": None, "hidden_activation": "gelu_pytorch_tanh"} if kind == "gemma3_text" else {}
    return config_from_hf(BASE | {"model_type": kind} | own | fields)


def test_rope_is_read_from_the_keys_of_both_generations():
    old = read("llama", rope_theta=5e5, rope_scaling={"type": "llama3", **LLAMA3}, torch_dtype="bfloat16")
    new = read("llama", rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}, dtype="bfloat16")
    assert old == new
    assert old.rope_theta == 5e5
    assert old.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 256)
    assert read("llama", rope_scaling={"type": "linear", "factor": 2}).rope_scaling == RopeScaling("linear", 2.0)
    assert read("llama", rope_scaling=None).rope_scaling is None


def test_what_a_family_takes_for_granted():
    assert read("llama").num_kv_heads == 4
    assert read("mistral", num_key_value_heads=2).sliding_window == 4096
    assert read("mistral", num_key_value_heads=2, sliding_window=None).sliding_window is None
    qwen2 = read("qwen2", num_key_value_heads=2)
    assert (qwen2.qkv_bias, qwen2.o_bias, qwen2.qk_norm, qwen2.sliding_window) == (True, False, False, None)
    qwen3 = read("qwen3", num_key_value_heads=2)
    assert (qwen3.qkv_bias, qwen3.qk_norm, qwen3.head_dim) == (False, True, 128)
    smollm3 = read("smollm3")
    assert smollm3.rope_layers == (True, True, True, False)
    assert (smollm3.tie_embeddings, smollm3.rope_theta) == (True, 2e6)
    biased = read("llama", attention_bias=True, mlp_bias=True)
    assert biased.qkv_bias
    assert biased.o_bias
    assert biased.mlp_bias


def test_layers_of_two_kinds():
    """Gemma 3 and OLMo 3 turn layers with a window by a base of their own, and scale the others only."""
    linear = {"rope_type": "linear", "factor": 8.0}
    old = read("gemma3_text", rope_theta=1e6, rope_local_base_freq=2e4, rope_scaling=linear, sliding_window_pattern=2)
    types = ["sliding_attention", "full_attention"] * 2
    ropes = {"full_attention": linear | {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 2e4}}
    assert old == read("gemma3_text", rope_parameters=ropes, layer_types=types)
    assert (old.windows, old.local_rope_theta) == ((4096, None, 4096, None), 2e4)
    every = [f.tolist() for f in (rotation(old, l).frequencies_r for l in range(4)) if f is not None]
    assert every[0] == every[2] != every[1] == every[3]
    assert every[0][1] == pytest.approx(2e4 ** (-1 / 128))
    assert every[1][1] == pytest.approx(1e6 ** (-1 / 128) / 8)
    olmo = read("olmo3", rope_scaling={"type": "yarn", "factor": 8.0, "attention_factor": 1.2})
    assert [float(rotation(olmo, l).amplitude) for l in range(4)] == pytest.approx([1, 1, 1, 1.2])
    assert olmo.windows == (4096, 4096, 4096, None)


def test_what_changes_with_the_length_of_a_path_is_used_up_to_the_original_context():
    longrope = read("phi3", **PHI4_MINI)
    assert (longrope.max_length, longrope.rotary_dim, longrope.rope_scaling.factor) == (128, 12, 4.0)
    assert longrope.rope_scaling.amplitude == pytest.approx((1 + math.log(4) / math.log(128)) ** 0.5)
    assert config_to_hf(longrope, "CausalLM")["max_position_embeddings"] == 512
    dynamic = read("llama", rope_scaling={"type": "dynamic", "factor": 2.0})
    np.testing.assert_array_equal(rope_frequencies(dynamic), rope_frequencies(read("llama")))
    assert dynamic.max_length == 512


def test_windows_on_some_layers():
    old = read("qwen2", num_key_value_heads=2, use_sliding_window=True, sliding_window=9, max_window_layers=3)
    types = ["full_attention"] * 3 + ["sliding_attention"]
    new = read("qwen2", num_key_value_heads=2, use_sliding_window=True, sliding_window=9, layer_types=types)
    assert old == new
    assert (old.sliding_window, old.window_layers) == (9, (False, False, False, True))
    assert read("qwen2", num_key_value_heads=2, sliding_window=9, max_window_layers=0).sliding_window is None


VARIANTS = {
    "nano": NANO,
    "llama_biased": read("llama", attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama3": read("llama", rope_theta=5e5, rope_scaling={"rope_type": "llama3", **LLAMA3}),
    "linear": read("llama", rope_scaling={"type": "linear", "factor": 2.0}, head_dim=16),
    "mistral": read("mistral", num_key_value_heads=2, sliding_window=7),
    "mistral_full": read("mistral", num_key_value_heads=2, sliding_window=None),
    "qwen2": read("qwen2", num_key_value_heads=2),
    "qwen2_windows": read(
        "qwen2", num_key_value_heads=2, use_sliding_window=True, sliding_window=5, max_window_layers=2
    ),
    "qwen3": read("qwen3", num_key_value_heads=2, attention_bias=True),
    "smollm3": read("smollm3"),
    "smollm3_windows": read("smollm3", use_sliding_window=True, sliding_window=5),
    "yarn": read(
        "qwen3",
        num_key_value_heads=2,
        rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    ),
    "yarn_told": read(
        "llama",
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.9, "beta_fast": 16, "truncate": False},
    ),
    "dynamic": read("llama", rope_scaling={"type": "dynamic", "factor": 2.0}),
    "gemma3": read("gemma3_text", query_pre_attn_scalar=128, rope_scaling={"rope_type": "linear", "factor": 8.0}),
    "gemma3_all_full": read("gemma3_text", layer_types=["full_attention"] * 4),
    "olmo2": read("olmo2", attention_bias=True),
    "olmo3": read("olmo3", rope_scaling={"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}),
    "phi3": read("phi3", sliding_window=7),
    "phi4_mini": read("phi3", **PHI4_MINI),
    "mixtral": read("mixtral", num_key_value_heads=2, num_local_experts=6, num_experts_per_tok=3),
    "qwen3_moe": read("qwen3_moe", num_experts=16, moe_intermediate_size=24, head_dim=16, norm_topk_prob=True),
    "qwen3_moe_raw": read("qwen3_moe", num_experts=16, moe_intermediate_size=24, use_sliding_window=True),
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("head", HEADS)
def test_written_and_read_back_is_the_same_model(config, head):
    family = FAMILIES[config.architecture]
    if head not in family.heads:
        with pytest.raises(UserError, match=f"no class {family.name}For{head} in transformers"):
            config_to_hf(config, head)
        return
    fields = config_to_hf(config, head, "bfloat16")
    assert config_from_hf(fields) == config
    assert head_from_hf(fields) == head
    name = family.name if head == "CausalLM" else family.classifier or family.name
    assert fields["architectures"] == [f"{name}For{head}"]
    assert fields["dtype"] == fields["torch_dtype"] == "bfloat16"
    rope = fields["rope_parameters"]
    assert rope.get("full_attention", rope)["rope_theta"] == fields["rope_theta"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "gemma3"}, "gemma3"),
        ({"model_type": "gemma2"}, "gemma2"),
        ({"model_type": "granite"}, "granite"),
        ({"model_type": None}, "None"),
        ({"rope_scaling": {"type": "proportional", "factor": 4.0}}, "proportional"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": -1}}, "beta_fast=-1"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "truncate": 1}}, "truncate=1"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "'dynamic' rope needs factor"),
        ({"model_type": "phi3"} | PHI4_MINI | {"head_dim": 8}, "6 short_factors for 3 pairs"),
        ({"model_type": "phi3"} | PHI4_MINI | {"original_max_position_embeddings": 1024}, "max_position_embeddings"),
        ({"model_type": "phi3", "auto_map": {"AutoModel": "modeling_mine.X"}}, "auto_map"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"model_type": "gemma3_text", "hidden_activation": "silu"}, "hidden_activation"),
        ({"model_type": "gemma3_text", "sliding_window": None}, "sliding_window is not set"),
        ({"model_type": "gemma3_text", "rope_parameters": {"sliding_attention": {"rope_type": "yarn"}}}, "windows"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [0]}, "mlp_only_layers"),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 2}, "decoder_sparse_step=2"),
        ({"model_type": "mixtral", "num_local_experts": 0, "num_key_value_heads": 2}, "2 of 0 experts"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "layer type"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "freq_factor"),
        ({"rope_parameters": {"rope_type": "default", "attention_factor": 2.0}}, "attention_factor"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
        ({"logit_scale": 2.0}, "logit_scale"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_key_value_heads": 3}, "3 key/value heads"),
        ({"model_type": "mistral", "num_key_value_heads": 2, "attention_bias": True}, "attention_bias"),
        (
            {"model_type": "qwen2", "num_key_value_heads": 2, "layer_types": ["chunked_attention"] * 4},
            "chunked_attention",
        ),
        ({"model_type": "qwen2", "num_key_value_heads": 2, "layer_types": ["full_attention"]}, "1 entries"),
        ({"model_type": "smollm3", "no_rope_layers": [1]}, "no_rope_layers"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields, named):
    with pytest.raises(UserError, match=named):
        read(**{"kind": "llama"} | {"kind" if k == "model_type" else k: v for k, v in fields.items()})


def test_everything_that_is_refused_is_named_at_once():
    fields = {"model_type": "llama", "hidden_act": "gelu", "use_mrope": True, "logit_scale": 2.0, "moe_every": 2}
    fields |= {"vocab_size": None, "num_attention_heads": "4", "rms_norm_eps": -1.0}
    with pytest.raises(UserError) as error:
        config_from_hf(BASE | fields, "models/x/config.json")
    named = ("models/x/config.json", "lacks vocab_size", "num_attention_heads='4'", "rms_norm_eps=-1.0")
    named += ("hidden_act='gelu', use_mrope=True", "logit_scale, moe_every")
    assert [n for n in named if n not in str(error.value)] == []


PUBLISHED = {
    "qwen2.5": {"model_type": "qwen2", "num_key_value_heads": 2, "use_mrope": False, "sliding_window": 131072}
    | {"max_window_layers": 24, "use_sliding_window": False, "attention_dropout": 0.0, "torch_dtype": "bfloat16"}
    | {"use_cache": True, "tie_word_embeddings": True, "bos_token_id": 151643, "eos_token_id": 151645},
    "openrlhf": {"model_type": "llama", "normalize_reward": True, "value_head_prefix": "score", "mean": 0.3, "std": 2.0}
    | {"packing_samples": False, "_attn_implementation_autoset": True, "pretraining_tp": 1},
    "llama1": {"model_type": "llama", "max_sequence_length": 2048, "_name_or_path": "x", "rope_scaling": None},
    "transformers5": {"model_type": "llama", "layer_types": ["full_attention"] * 4, "is_causal": True, "head_dim": None}
    | {"quantization_config": None, "num_key_value_heads": None, "rms_norm_eps": None, "mlp_bias": None},
    "phi4_mini": {"model_type": "phi3", "full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False}
    | {
        "auto_map": {
            "AutoConfig": "configuration_phi3.Phi3Config",
            "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
        }
    }
    | {"attention_bias": False, "mlp_bias": False, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "hidden_act": "silu"},
    "gemma3": {"model_type": "gemma3_text", "attn_logit_softcapping": None, "final_logit_softcapping": None}
    | {"cache_implementation": "hybrid", "hidden_activation": "gelu_pytorch_tanh", "rope_local_base_freq": 10000}
    | {"sliding_window_pattern": 6, "rope_theta": 1000000, "query_pre_attn_scalar": 256, "head_dim": 256}
    | {"use_bidirectional_attention": False, "sliding_window": 4096, "hidden_act": None},
    "qwen3_moe": {"model_type": "qwen3_moe", "decoder_sparse_step": 1, "mlp_only_layers": [], "max_window_layers": 48}
    | {"moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": False}
    | {"output_router_logits": False, "router_aux_loss_coef": 0.001, "sliding_window": None},
    "generation": {"model_type": "llama", "num_beams": 1, "bad_words_ids": None, "typical_p": 1.0, "torchscript": False}
    | {"tf_legacy_loss": False, "pruned_heads": {}, "suppress_tokens": None, "remove_invalid_values": False},
}


@pytest.mark.parametrize("fields", PUBLISHED.values(), ids=PUBLISHED)
def test_fields_of_published_models_that_change_nothing_are_accepted(fields):
    kind = fields["model_type"]
    tied = fields.get("tie_word_embeddings", FAMILIES[kind].tie)
    wanted = read(kind, tie_word_embeddings=tied, num_key_value_heads=2)
    plain = {k: v for k, v in dataclasses.asdict(wanted).items() if k != "num_kv_heads"}
    got = {k: v for k, v in dataclasses.asdict(read(**fields, kind=kind)).items() if k != "num_kv_heads"}
    assert got == plain


ODD = (None, True, -1, 0, 10**30, 1.5, float("nan"), "x", "", [], [None], ["full_attention"], {}, {"a": {}}, [[0]])


@pytest.mark.parametrize("kind", FAMILIES)
def test_whatever_stands_in_a_field_there_is_a_model_or_one_line(kind):
    own = {"hidden_act": None} if kind.startswith("gemma") else {}
    fields = (
        BASE | own | {"model_type": kind, "architectures": ["XForCausalLM"], "num_key_value_heads": 2, "head_dim": 8}
    )
    fields |= {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "rope_theta": 1e4, "rms_norm_eps": 1e-6}
    fields |= {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1, "id2label": {"0": "a"}}
    names = [*fields, "layer_types", "no_rope_layers", "no_rope_layer_interval", "rope_parameters", "attention_bias"]
    names += ["num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "query_pre_attn_scalar"]
    names += ["partial_rotary_factor", "rope_local_base_freq", "sliding_window_pattern", "auto_map"]
    broken = [(n, fields | {n: v}) for n in [*names, "num_labels", "value_head_prefix", "dtype"] for v in ODD]
    broken += [(n, fields | {"rope_scaling": {"rope_type": "llama3", **LLAMA3, n: v}}) for n in LLAMA3 for v in ODD]
    broken += [("rope_type", fields | {"rope_scaling": {"rope_type": v, **LLAMA3}}) for v in ODD]
    refused = 0
    for name, changed in broken:
        try:
            config = config_from_hf(changed, "there/config.json")
            head_from_hf(changed)
        except UserError as error:
            line, config = str(error), None
        if config is None:
            refused += 1
            assert "\n" not in line, name
        else:
            assert all(v > 0 for v in (config.head_dim, config.num_layers, config.rope_theta, config.norm_eps)), name
    assert refused > len(broken) / 2


def test_reward_models_have_one_label_or_at_tokens_two():
    assert (
        head_from_hf({"architectures": ["Qwen3ForSequenceClassification"], "num_labels": 1}) == "SequenceClassification"
    )
    with pytest.raises(UserError, match="has 2"):
        head_from_hf({"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "a", "1": "b"}})
    assert head_from_hf({"architectures": ["RewardModel"]}) == "SequenceClassification"
    with pytest.raises(UserError, match="Qwen2ForProcessRewardModel"):
        head_from_hf({"architectures": ["Qwen2ForProcessRewardModel"]})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architecture": "rwkv"}, "rwkv"),
        ({"qk_norm": True}, "qk_norm"),
        ({"qkv_bias": True}, "attention biases"),
        ({"sliding_window": 8}, "sliding_window"),
        ({"rope_layers": (True, False, True, True)}, "rope_layers"),
        ({"architecture": "mistral", "mlp_bias": True}, "mlp_bias"),
    ],
)
def test_what_a_family_cannot_say_is_not_written(change, named):
    with pytest.raises(UserError, match=named):
        config_to_hf(dataclasses.replace(NANO, **change), "CausalLM")
