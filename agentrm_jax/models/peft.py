"""Adapters as a folder that Hugging Face's PEFT loads onto the base model (`PeftModel.from_pretrained(base, folder)`)."""

import json
from pathlib import Path

import numpy as np

from agentrm_jax.models.families import Head
from agentrm_jax.models.lora import LoRA, Params
from agentrm_jax.models.weights import LAYER_TABLE
from agentrm_jax.types import JSON, UserError

_TASKS = {"CausalLM": "CAUSAL_LM", "SequenceClassification": "SEQ_CLS"}


def write_peft(trained: Params, lora: LoRA, base: str, out: Path, head: Head) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors`; a reward model's value head is PEFT's saved `score`.

    `base` is the place or name that PEFT loads the frozen weights from when it is not given a model.

    Raises:
      UserError: PEFT has no task for this head, or `out` is not empty.
    """
    from safetensors.numpy import save_file

    if head not in _TASKS:
        raise UserError(f"an adapter is exported for {' or '.join(_TASKS)}, not for {head}")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; name a new folder")
    fields: dict[str, JSON] = {
        "peft_type": "LORA",
        "task_type": _TASKS[head],
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": list(lora.targets),
        "modules_to_save": ["score"] if head == "SequenceClassification" else None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "adapter_config.json").write_text(json.dumps(fields, indent=2) + "\n")
    save_file(peft_tensors(trained), out / "adapter_model.safetensors", metadata={"format": "pt"})
    (out / "adapter_model.safetensors").chmod((out / "adapter_config.json").stat().st_mode)  # else its owner's only


def peft_tensors(trained: Params) -> dict[str, np.ndarray]:
    """Every tensor by PEFT's name: `lora_A.weight` [rank, in], `lora_B.weight` [out, rank], `score.weight` [1, d]."""
    found = {}
    for name, pair in trained["layers"]["adapters"].items():
        module = LAYER_TABLE[name].tensor.removesuffix(".weight")
        a, b = np.asarray(pair["a"]), np.asarray(pair["b"])
        layers, rank = a.shape[0], a.shape[-1]
        for l in range(layers):
            key = f"base_model.model.{module.format(l=l)}"
            found[f"{key}.lora_A.weight"] = np.ascontiguousarray(a[l].reshape(-1, rank).T)
            found[f"{key}.lora_B.weight"] = np.ascontiguousarray(b[l].reshape(rank, -1).T)
    if "value_d" in trained:
        found["base_model.model.score.weight"] = np.asarray(trained["value_d"])[None]
    return found
