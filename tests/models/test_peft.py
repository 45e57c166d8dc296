"""Adapters in PEFT's form: its names and layouts, and the numbers of the merged model; with PEFT itself where it is installed."""

import dataclasses
import json
import stat
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from agentrm_jax import export, parallel
from agentrm_jax.data import datasets as pipeline
from agentrm_jax.models import opening
from agentrm_jax.models.card import Card
from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.lora import LoRA, Params, merge, split
from agentrm_jax.models.peft import peft_tensors, write_peft
from agentrm_jax.models.transformer import Transformer
from agentrm_jax.models.weights import tensors
from agentrm_jax.training import checkpoint
from agentrm_jax.training.optimizer import make_optimizer
from agentrm_jax.training.step import init_state
from agentrm_jax.types import UserError

SPEC = LoRA(rank=3, alpha=6.0, targets=("all-linear",))
FAMILIES = {
    "llama": {},
    "qwen2": {"qkv_bias": True, "tie_embeddings": False},
    "qwen3": {"qk_norm": True, "tie_embeddings": False},
}


@pytest.fixture(params=sorted(FAMILIES))
def config(request, tiny, tokenizer) -> ModelConfig:
    fields = FAMILIES[request.param]
    return dataclasses.replace(
        tiny, architecture=request.param, vocab_size=len(tokenizer), num_heads=4, num_kv_heads=2, **fields
    )


def noisy(tree: Params, size: float) -> Params:
    leaves, shape = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    moved = [x + size * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(shape, moved)


def parts(config: ModelConfig, *, value_head: bool) -> tuple[Params, Params]:
    """Trained parameters away from where they start, and those of their base."""
    model = Transformer(config, rngs=nnx.Rngs(0), value_head=value_head, lora=SPEC)
    trained, frozen = map(nnx.to_pure_dict, split(nnx.state(model, nnx.Param)))
    return noisy(trained, 0.2), noisy(frozen, 0.1)


def test_tensors_have_the_names_and_the_layout_from_which_peft_adds_them_to_the_base(config):
    trained, frozen = parts(config, value_head=True)
    before = {name: get() for name, _, get in tensors(frozen, config)}
    found = peft_tensors(trained)
    after = {name: get() for name, _, get in tensors(merge(jax.tree.map(jnp.copy, frozen), trained, SPEC), config)}
    np.testing.assert_array_equal(found.pop("base_model.model.score.weight"), after.pop("score.weight"))
    assert len(found) == 2 * 7 * config.num_layers
    assert after.keys() == before.keys()
    for name, weight in before.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" in found:
            a, b = found.pop(f"{key}.lora_A.weight"), found.pop(f"{key}.lora_B.weight")
            weight = weight + 2.0 * (b @ a)
        np.testing.assert_allclose(after[name], weight, atol=1e-5)
    assert not found


def test_a_folder_says_what_it_holds_and_overwrites_nothing(tmp_path, tiny):
    trained, _ = parts(tiny, value_head=True)
    write_peft(trained, SPEC, "models/base", tmp_path / "out", "SequenceClassification")
    fields = json.loads((tmp_path / "out/adapter_config.json").read_text())
    wanted = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 3, "lora_alpha": 6.0, "modules_to_save": ["score"]}
    wanted |= {"base_model_name_or_path": "models/base", "target_modules": list(SPEC.targets), "bias": "none"}
    assert {k: fields[k] for k in wanted} == wanted
    modes = {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "out").iterdir()}
    assert len(modes) == 1, "all files can be read by whom one can"
    with pytest.raises(UserError, match="out is not empty"):
        write_peft(trained, SPEC, "models/base", tmp_path / "out", "SequenceClassification")
    with pytest.raises(UserError, match="not for TokenClassification"):
        write_peft(trained, SPEC, "models/base", tmp_path / "new", "TokenClassification")


def workdir_of(config: ModelConfig, chat, kind: str, folder: Path) -> tuple[Path, Path]:
    """A base as a Hugging Face folder, and the workdir of a run that trained adapters on it."""
    reward = kind == "explicit"
    trained, frozen = parts(config, value_head=reward)
    base, workdir = folder / "base", folder / "run"
    export.write_hf(frozen, config, chat, base, "CausalLM")
    chat.tokenizer.save_pretrained(workdir / "tokenizer")
    about = {"kind": kind, "config": config.to_json(), "lm_head": not reward, "value_head": reward}
    opened = opening.open_model(base)
    about |= {"lora": SPEC.to_json(), "base": opening.adapter_base(str(base), opened, lm_head=not reward)}
    about["config"] = opened.config.to_json()
    (workdir / "model.json").write_text(json.dumps(about))
    tx = make_optimizer(learning_rate=1.0, warmup=0.0, total_steps=1, weight_decay=0.0, clip=1.0)
    mesh = parallel.make_mesh(devices=jax.devices()[:1])

    def read(wanted: Params) -> Params:
        given = opened.read(wanted)
        return given | trained | {"layers": given["layers"] | trained["layers"]}

    def make(rngs: nnx.Rngs) -> Transformer:
        return opening.build_model(Card.from_json(about), rngs)

    _, state, _ = init_state(make, tx, mesh, 0, read)
    row = {f: np.ones(4, np.int32) for f in ("tokens", "positions", "subtree_end", "previous")}
    row |= {f: np.ones(4, np.float32) for f in ("loss_weight", "value", "value_weight")}
    data = iter(pipeline.batches([row], rows=1, row_length=4, seed=0))
    with checkpoint.Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(dataclasses.replace(state, step=state.step + 7), data, {"tokens": 1})
    return base, workdir


@pytest.mark.parametrize("kind", ["policy", "explicit"])
def test_an_export_of_adapters_holds_them_the_tokenizer_and_the_merged_numbers(tmp_path, tiny, chat, kind, capsys):
    config = dataclasses.replace(tiny, vocab_size=len(chat.tokenizer))
    base, workdir = workdir_of(config, chat, kind, tmp_path)
    assert export.main([str(workdir), str(tmp_path / "adapter"), "--adapter"]) == 0
    assert export.main([str(workdir), str(tmp_path / "merged")]) == 0
    assert "step 7" in capsys.readouterr().out
    adapter, merged = (json.loads((tmp_path / f / "example_scores.json").read_text()) for f in ("adapter", "merged"))
    assert adapter == merged
    fields = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == str(base)
    held = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert ("base_model.model.score.weight" in held) == (kind == "explicit")
    whole = load_file(tmp_path / "merged/model.safetensors")
    assert not [name for name in whole if "lora" in name]
    assert (tmp_path / "adapter/tokenizer.json").exists()


def test_a_run_without_adapters_has_none_to_export(tmp_path, tiny, chat, capsys):
    config = dataclasses.replace(tiny, vocab_size=len(chat.tokenizer))
    base, _ = workdir_of(config, chat, "policy", tmp_path)
    assert export.main([str(base), str(tmp_path / "out"), "--adapter"]) == 2
    assert "holds no adapters" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["policy", "explicit"])
@pytest.mark.filterwarnings("ignore")
def test_peft_loads_an_export_onto_the_base_and_gives_our_numbers(tmp_path, config, chat, kind):
    reason = "needs torch and peft; names and layouts are tested without them"
    torch = pytest.importorskip("torch", reason=reason, exc_type=ImportError)
    peft = pytest.importorskip("peft", reason=reason, exc_type=ImportError)
    import transformers

    base, workdir = workdir_of(config, chat, kind, tmp_path)
    assert export.main([str(workdir), str(tmp_path / "out"), "--adapter"]) == 0
    if kind == "policy":
        theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    else:
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    before = {k: v.clone() for k, v in theirs.state_dict().items() if "score" not in k}
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "out").eval()
    assert len([k for k in theirs.state_dict() if "lora_B" in k]) == 7 * config.num_layers
    for row in json.loads((tmp_path / "out/example_scores.json").read_text())["examples"]:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            got = theirs(input_ids=ids).logits[0]
        if kind == "explicit":
            assert abs(row["score"]) > 1e-2
            np.testing.assert_allclose(got.numpy(), [row["score"]], atol=1e-4)
        else:
            chosen = got.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[-row["logprob_tokens"] :]
            np.testing.assert_allclose(chosen.sum(), row["logprob"], rtol=1e-4)
    merged = theirs.merge_and_unload().state_dict()
    ours = {n: get() for n, _, get in tensors(params_of(workdir), config)}
    for name in before:
        if "proj.weight" in name:
            assert not torch.equal(merged[name], before[name])
            np.testing.assert_allclose(merged[name], ours[name], atol=1e-5)


def params_of(workdir: Path) -> Params:
    return nnx.to_pure_dict(nnx.state(opening.load_model(workdir).model, nnx.Param))
