"""Fields of Hugging Face's `config.json`: which are read, which change nothing, and what each of them may hold.

A field is used, is known to be without influence on the result, or is refused; everything that is refused is named at once.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from agentrm_jax.types import JSON, UserError

NEEDED = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    "max_position_embeddings",
)
USED = {
    *NEEDED,
    *("architectures", "model_type", "num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings"),
    *("rope_theta", "rope_scaling", "rope_parameters", "num_labels", "id2label", "label2id", "value_head_prefix"),
}
# Special tokens, generation, training, bookkeeping and speed: nothing here changes what the model computes from ids.
# OpenRLHF's `normalize_reward`, `mean` and `std` describe an affine map that its own loader applies or leaves out on demand.
HARMLESS = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id", "decoder_start_token_id"),
    *("forced_bos_token_id", "forced_eos_token_id", "begin_suppress_tokens", "suppress_tokens", "bad_words_ids"),
    *(
        "max_length",
        "min_length",
        "do_sample",
        "early_stopping",
        "num_beams",
        "num_beam_groups",
        "num_return_sequences",
    ),
    *("temperature", "top_k", "top_p", "typical_p", "diversity_penalty", "length_penalty", "repetition_penalty"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty"),
    *("remove_invalid_values", "output_scores", "return_dict_in_generate", "max_sequence_length", "model_max_length"),
    *("initializer_range", "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "classifier_dropout"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "gradient_checkpointing", "output_attentions"),
    *("output_hidden_states", "return_dict", "torchscript", "use_bfloat16", "tf_legacy_loss", "loss_type"),
    *("use_cache", "cache_implementation", "_attn_implementation", "attn_implementation", "pretraining_tp"),
    *("_attn_implementation_autoset", "_attn_implementation_internal", "_flash_attn_2_enabled", "use_flash_attn"),
    *("use_flash_attention_2", "base_model_tp_plan", "base_model_pp_plan", "chunk_size_feed_forward"),
    *("dtype", "torch_dtype", "transformers_version", "_name_or_path", "name_or_path", "_commit_hash", "model_name"),
    *("license", "tokenizer_class", "prefix", "problem_type", "finetuning_task", "task_specific_params"),
    *("transformers.js_config", "is_llama_config", "keys_to_ignore_at_inference", "token_classification_bias"),
    *("is_encoder_decoder", "tie_encoder_decoder", "cross_attention_hidden_size", "no_rope_layer_interval"),
    *("output_router_logits", "router_aux_loss_coef", "router_jitter_noise"),
    *("unsloth_fixed", "unsloth_version", "unsloth_training", "packing_samples", "normalize_reward", "mean", "std"),
}
# Fields that change the result, with the values under which they do not.
FIXED: dict[str, tuple[JSON, ...]] = {
    "hidden_act": ("silu", "swish"),
    "hidden_activation": ("silu", "swish", None),
    "rope_interleaved": (False, None),
    "use_mrope": (False, None),
    "partial_rotary_factor": (1, 1.0, None),
    "quantization_config": (None, {}),
    "compression_config": (None, {}),
    "is_causal": (True, None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "pruned_heads": ({}, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "use_bidirectional_attention": (False, None),
    "lm_head_bias": (False, None),
    "full_attn_mod": (1, None),
    "interpolate_factor": (1, None),
    "mlp_only_layers": ([], None),
    "decoder_sparse_step": (1, None),
    "num_experts": (0, None),
    "num_local_experts": (0, None),
}


class _Kind(NamedTuple):
    name: str
    fits: Callable[[JSON], bool]


def whole(value: JSON, least: int = 1, most: int = 2**31 - 1) -> bool:
    """Whether a value is a whole number in a range (a flag is none)."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def positive(value: JSON) -> bool:
    """Whether a value is a finite number above 0 (a flag is none)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 < value < math.inf


_COUNT = _Kind("a whole number above 0", whole)
_NUMBER = _Kind("a number above 0", positive)
_FLAG = _Kind("true or false", lambda v: isinstance(v, bool))
_OBJECT = _Kind("an object", lambda v: isinstance(v, dict))
_NAMES = _Kind("a list of names", lambda v: isinstance(v, list) and all(isinstance(x, str) for x in v))
_KINDS: dict[str, _Kind] = {
    **dict.fromkeys((*NEEDED, "num_key_value_heads", "head_dim", "sliding_window"), _COUNT),
    **dict.fromkeys(("no_rope_layer_interval", "num_labels", "moe_intermediate_size", "num_experts_per_tok"), _COUNT),
    **dict.fromkeys(("sliding_window_pattern", "_sliding_window_pattern", "original_max_position_embeddings"), _COUNT),
    **dict.fromkeys(("rms_norm_eps", "rope_theta", "rope_local_base_freq", "query_pre_attn_scalar"), _NUMBER),
    **dict.fromkeys(("partial_rotary_factor",), _NUMBER),
    **dict.fromkeys(("num_experts", "num_local_experts"), _Kind("a whole number", lambda v: whole(v, least=0))),
    **dict.fromkeys(
        ("attention_bias", "mlp_bias", "tie_word_embeddings", "use_sliding_window", "norm_topk_prob"), _FLAG
    ),
    **dict.fromkeys(("rope_scaling", "rope_parameters", "id2label", "label2id"), _OBJECT),
    **dict.fromkeys(("layer_types", "architectures"), _NAMES),
    "num_hidden_layers": _Kind("a whole number from 1 to 10000", lambda v: whole(v, most=10_000)),
    "max_window_layers": _Kind("a whole number", lambda v: whole(v, least=0)),
    "no_rope_layers": _Kind("a list of 0 and 1", lambda v: isinstance(v, list) and all(x in (0, 1) for x in v)),
    "value_head_prefix": _Kind("a name", lambda v: isinstance(v, str)),
}


def check_fields(
    fields: Mapping[str, JSON],
    *,
    used: Collection[str] = (),
    fixed: Mapping[str, tuple[JSON, ...]] = FIXED,
    kind: str,
    origin: str,
) -> None:
    """Refuses what is missing, of another type, not supported or not known, all of it in one line.

    Args:
      used: fields that this family reads beside `USED`.
      fixed: values that other fields may have.
      kind: the `model_type`, for messages; `origin` says where the fields stand.

    Raises:
      UserError: with the names of all such fields.
    """
    known = USED.union(used)
    missing = [name for name in NEEDED if fields.get(name) is None]
    wrong = [
        f"{name}={_short(fields[name])} must be {what.name}"
        for name, what in _KINDS.items()
        if fields.get(name) is not None and not what.fits(fields[name])
    ]
    others = [name for name in fields if name not in known and name not in HARMLESS]
    unsupported = [
        f"{name}={_short(fields[name])}" for name in others if name in fixed and fields[name] not in fixed[name]
    ]
    unknown = [name for name in others if name not in fixed]
    found = [f"it lacks {', '.join(missing)}"] if missing else []
    found += wrong
    if unsupported:
        found.append(f"not supported for {kind}: {', '.join(unsupported)}")
    if unknown:
        found.append(f"not known for {kind}: {', '.join(unknown)} (remove what does not change the model)")
    if found:
        raise UserError(f"{origin}: {'; '.join(found)}")


def _short(value: JSON) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
