"""LoRA adapters as folders of Hugging Face's PEFT: written for `PeftModel.from_pretrained(base, folder)`, and read back."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from agentrm_jax.files import check_new_folder, write_json
from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.families import Head
from agentrm_jax.models.fields import positive, whole
from agentrm_jax.models.folder import open_tensors, read_object
from agentrm_jax.models.lora import TARGETS, LoRA, Params
from agentrm_jax.models.weights import PLAIN_TABLE, Source, layer_table, some, with_mean_head
from agentrm_jax.types import JSON, UserError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_TASKS: dict[Head, str] = {"CausalLM": "CAUSAL_LM", "SequenceClassification": "SEQ_CLS"}
_HEADS: dict[str, Head] = {**{task: head for head, task in _TASKS.items()}, "TOKEN_CLS": "TokenClassification"}
# Options that change how adapters are added, with the values under which they do not. The ways to start adapters that are
# not listed move a part of the base into them, so that the base on disk is no longer the one they belong to.
_PLAIN: dict[str, tuple[JSON, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
    **dict.fromkeys(("use_dora", "fan_in_fan_out", "lora_bias", "use_qalora", "use_bdlora"), (False, None)),
    **dict.fromkeys(("alpha_pattern", "trainable_token_indices", "layer_replication"), (None, {}, [])),
    **dict.fromkeys(("target_parameters", "alora_invocation_tokens", "arrow_config"), (None, {}, [])),
}


def check_separate(config: ModelConfig) -> None:
    """Refuses models whose files hold several linear maps as one, so that PEFT cannot adapt one of them alone.

    Raises:
      UserError: this is such a model.
    """
    if any(entry.fused for entry in layer_table(config).values()):
        raise UserError(
            f"files of {config.architecture!r} hold q, k, v, and gate, up, as one map each, so adapters of one of them cannot be "
            "written for PEFT; leave --adapter out to write the merged model"
        )


def write_peft(trained: Params, lora: LoRA, base: str, out: Path, head: Head) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors`; a reward model's value head is PEFT's saved `score`.

    `base` is the place or name that PEFT loads the frozen weights from when it is not given a model.

    Raises:
      UserError: PEFT has no task for this head, or `out` is a file or a folder that is not empty.
    """
    from safetensors.numpy import save_file

    if head not in _TASKS:
        raise UserError(f"an adapter is exported for {' or '.join(_TASKS)}, not for {head}")
    check_new_folder(out)
    fields: dict[str, JSON] = {
        "peft_type": "LORA",
        "task_type": _TASKS[head],
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": [t for t in lora.targets if TARGETS[t][0] in trained["layers"]["adapters"]],
        "modules_to_save": ["score"] if head == "SequenceClassification" else None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / ADAPTER_CONFIG, fields)
    save_file(peft_tensors(trained), out / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    (out / ADAPTER_WEIGHTS).chmod((out / ADAPTER_CONFIG).stat().st_mode)  # else its owner's only


def peft_tensors(trained: Params) -> dict[str, np.ndarray]:
    """Every tensor by PEFT's name: `lora_A.weight` [rank, in], `lora_B.weight` [out, rank], `score.weight` [1, d]."""
    found = {}
    for name, pair in trained["layers"]["adapters"].items():
        module = PLAIN_TABLE[name].tensor.removesuffix(".weight")
        a, b = np.asarray(pair["a"]), np.asarray(pair["b"])
        layers, rank = a.shape[0], a.shape[-1]
        for l in range(layers):
            key = f"base_model.model.{module.format(l=l)}"
            found[f"{key}.lora_A.weight"] = np.ascontiguousarray(a[l].reshape(-1, rank).T)
            found[f"{key}.lora_B.weight"] = np.ascontiguousarray(b[l].reshape(rank, -1).T)
    if "value_d" in (trained := with_mean_head(trained)):
        found["base_model.model.score.weight"] = np.asarray(trained["value_d"])[None]
    return found


@dataclasses.dataclass(frozen=True)
class PeftAdapter:
    """The adapters of one folder, their tensors not read yet.

    Attributes:
      base: place or name of the model they belong to.
      head: what base and adapters are together; None if that is not said.
      alpha, rslora: the product B A counts alpha / rank times, or alpha / sqrt(rank).
    """

    folder: Path
    base: str
    head: Head | None
    alpha: float
    rslora: bool

    def add_to(self, base: Source, *, tied: bool) -> Source:
        """The base's tensors W as W + scale B A where there is an adapter, and saved tensors in the place of the base's.

        `tied` says that the base's output map is its embedding, so that an output map of its own would be lost.

        Raises:
          UserError: a file is missing or damaged, or its tensors do not belong to this base.
        """
        own = open_tensors([self.folder / ADAPTER_WEIGHTS], str(self.folder))
        prefix = "" if "embed_tokens.weight" in base.shapes else "model."
        pairs, saved = _sort(own, prefix)
        if tied and "lm_head.weight" in {*pairs, *saved}:
            raise UserError(f"{self.folder} changes lm_head, which the base shares with its embeddings")
        wrong = []
        for name, (a, b) in pairs.items():
            (rank, inputs), (outputs, rank_b) = own.shapes[a], own.shapes[b]
            if rank != rank_b or base.shapes.get(name) != (outputs, inputs):
                wrong.append(f"{name} is {base.shapes.get(name, 'missing')} there, adapted as {(outputs, inputs)}")
        if wrong:
            raise UserError(f"{self.folder} does not belong to the base {base.origin}: {some(wrong)}")

        def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
            if name in saved:
                return own.read(saved[name], index)
            found = base.read(name, index)
            if name not in pairs:
                return found
            (rows, columns), (a, b) = index, pairs[name]
            rank = own.shapes[a][0]
            scale = self.alpha / (math.sqrt(rank) if self.rslora else rank)
            low = own.read(a, (slice(None), columns)).astype(np.float32)
            return found.astype(np.float32) + scale * (own.read(b, (rows, slice(None))).astype(np.float32) @ low)

        shapes = dict(base.shapes) | {name: own.shapes[at] for name, at in saved.items()}
        return Source(f"{base.origin} with {self.folder}", shapes, read)


def read_peft(folder: Path) -> PeftAdapter:
    """What `adapter_config.json` says.

    Raises:
      UserError: it cannot be read, or names adapters that are not plain LoRA.
    """
    path = folder / ADAPTER_CONFIG
    fields = read_object(path)
    if other := [f"{n}={fields[n]!r}" for n, values in _PLAIN.items() if n in fields and fields[n] not in values]:
        raise UserError(
            f"{path}: only plain LoRA adapters are read, not {', '.join(other)}; merge them into their base with PEFT "
            "(merge_and_unload, save_pretrained) and give that folder"
        )
    base: JSON = fields.get("base_model_name_or_path")
    alpha: JSON = fields.get("lora_alpha")
    task: JSON = fields.get("task_type")
    if not isinstance(base, str) or not base or not positive(alpha) or not whole(fields.get("r")):
        raise UserError(f"{path}: base_model_name_or_path, lora_alpha and r must name a model and two numbers above 0")
    if task is not None and task not in list(_HEADS):
        raise UserError(f"{path}: task_type {task!r} is not supported; supported are {', '.join(_HEADS)}")
    return PeftAdapter(folder, base, _HEADS.get(task) if task else None, float(alpha), bool(fields.get("use_rslora")))


def _sort(own: Source, prefix: str) -> tuple[Mapping[str, tuple[str, str]], Mapping[str, str]]:
    """The tensors of an adapter by the name of the base's tensor: pairs (A, B), and those saved whole."""
    pairs: dict[str, tuple[str, str]] = {}
    saved: dict[str, str] = {}
    strange = []
    for key, shape in own.shapes.items():
        name = key.removeprefix("base_model.model.")
        if name.startswith("model."):
            name = prefix + name.removeprefix("model.")
        module, a, rest = name.partition(".lora_A.weight")
        b = key.replace(".lora_A.", ".lora_B.")
        if a and not rest and len(shape) == len(own.shapes.get(b, ())) == 2:
            pairs[f"{module}.weight"] = (key, b)
        elif "lora_" not in name and key != name:
            saved[name] = key
        elif not name.endswith(".lora_B.weight"):
            strange.append(key)
    if strange:
        raise UserError(f"{own.origin} has tensors that plain LoRA adapters have not: {some(strange)}")
    return pairs, saved
