"""config.json of every supported family, in both generations of keys, and what is refused by name."""

import dataclasses

import pytest

from agentrm_jax.models.config import NANO, ModelConfig, RopeScaling
from agentrm_jax.models.families import FAMILIES, HEADS, config_from_hf, config_to_hf, head_from_hf
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


def read(kind: str, **fields) -> ModelConfig:
    return config_from_hf(BASE | {"model_type": kind} | fields)


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
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("head", HEADS)
def test_written_and_read_back_is_the_same_model(config, head):
    fields = config_to_hf(config, head, "bfloat16")
    assert config_from_hf(fields) == config
    assert head_from_hf(fields) == head
    assert fields["architectures"] == [FAMILIES[config.architecture].name + "For" + head]
    assert fields["dtype"] == fields["torch_dtype"] == "bfloat16"
    assert fields["rope_parameters"]["rope_theta"] == fields["rope_theta"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "gemma3"}, "gemma3"),
        ({"model_type": None}, "None"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic"),
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
        config_from_hf(BASE | {"model_type": "llama"} | fields)


def test_reward_models_have_one_label():
    assert (
        head_from_hf({"architectures": ["Qwen3ForSequenceClassification"], "num_labels": 1}) == "SequenceClassification"
    )
    with pytest.raises(UserError, match="has 2"):
        head_from_hf({"architectures": ["LlamaForTokenClassification"], "id2label": {"0": "a", "1": "b"}})
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
