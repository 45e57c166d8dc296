"""One model in the formats that other programs read, so that all that is compared runs the same weights.

SmolLM2-135M-Instruct comes as a GGUF file of type Q4_1. Its dequantised weights are written as a Hugging Face folder (a causal model,
and a one-label classifier whose value head is random) and as a GGUF file of type F16.
"""

import dataclasses
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from agentrm_jax.chat import Chat
from agentrm_jax.export import write_hf
from agentrm_jax.models import weights
from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.gguf import smollm2_file
from agentrm_jax.models.opening import LoadedModel, load_model
from agentrm_jax.models.transformer import Transformer


@dataclasses.dataclass(frozen=True, eq=False)
class SameWeights:
    """A policy and a reward model, here and on disk.

    Attributes:
      loaded: the policy with its tokenizer.
      params: its parameters, with a value head beside them.
      folder: where `policy` and `reward` (Hugging Face), `f16.gguf` and perhaps `q4_1.gguf` lie.
    """

    loaded: LoadedModel
    params: weights.Params
    folder: Path

    @property
    def config(self) -> ModelConfig:
        return self.loaded.model.config

    @property
    def chat(self) -> Chat:
        return self.loaded.chat

    def model(self) -> Transformer:
        """The transformer with both heads."""
        return weights.build(self.config, self.params)

    def place(self, name: str) -> Path:
        return self.folder / name


def prepare(folder: Path) -> SameWeights:
    """Reads SmolLM2 and writes what is not in `folder` yet.

    Raises:
      UserError: its weights are not installed.
    """
    source = smollm2_file()
    loaded = load_model("smollm2")
    if loaded.chat.tokenizer.pad_token_id in (None, loaded.chat.end_id):
        loaded.chat.tokenizer.pad_token = loaded.chat.tokenizer.convert_ids_to_tokens(0)
    params = nnx.to_pure_dict(nnx.state(loaded.model, nnx.Param))
    head = np.random.default_rng(0).normal(size=loaded.model.config.d_model).astype(np.float32)
    params["value_d"] = jnp.asarray(head / np.sqrt(len(head)))
    made = SameWeights(loaded, params, folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not made.place("policy").exists():
        write_hf(params, made.config, made.chat, made.place("policy"), "CausalLM")
    if not made.place("reward").exists():
        write_hf(params, made.config, made.chat, made.place("reward"), "SequenceClassification")
    if not made.place("q4_1.gguf").exists():
        made.place("q4_1.gguf").symlink_to(source)
    if not made.place("f16.gguf").exists():
        write_f16(source, made.place("f16.gguf"))
    return made


def write_f16(source: Path, out: Path) -> None:
    """A GGUF file with the metadata of another and its matrices in float16; vectors stay float32."""
    import gguf
    from gguf.quants import dequantize

    reader = gguf.GGUFReader(source)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        draft = Path(folder) / out.name
        writer = gguf.GGUFWriter(draft, str(reader.fields["general.architecture"].contents()))
        for name, field in reader.fields.items():
            if name.startswith("GGUF.") or name == "general.architecture":
                continue
            value = int(gguf.LlamaFileType.MOSTLY_F16) if name == "general.file_type" else field.contents()
            writer.add_key_value(name, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
        for tensor in reader.tensors:
            array = dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, array.astype(np.float16 if array.ndim > 1 else np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        draft.replace(out)
