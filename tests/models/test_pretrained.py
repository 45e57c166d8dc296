"""Places that hold a model in some form, and places that do not: opened, or refused by what they are."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from agentrm_jax.export import write_hf
from agentrm_jax.models.lora import LoRA, merge, split
from agentrm_jax.models.opening import load_model
from agentrm_jax.models.peft import write_peft
from agentrm_jax.models.pretrained import open_pretrained
from agentrm_jax.models.transformer import Transformer
from agentrm_jax.models.weights import abstract_params, load_params
from agentrm_jax.types import UserError

SPEC = LoRA(rank=2, alpha=4.0, targets=("all-linear",))


@pytest.fixture
def config(tiny, tokenizer):
    return dataclasses.replace(tiny, vocab_size=len(tokenizer), tie_embeddings=False)


def parts(config, *, value_head: bool):
    """Trained parameters and those of their base, all random."""
    model = Transformer(config, rngs=nnx.Rngs(0), value_head=value_head, lora=SPEC)
    rng = np.random.default_rng(0)
    return [
        jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.2, x.dtype), nnx.to_pure_dict(state))
        for state in split(nnx.state(model, nnx.Param))
    ]


@pytest.fixture
def base(tmp_path, config, chat):
    """A policy as a Hugging Face folder."""
    write_hf(parts(config, value_head=True)[1], config, chat, tmp_path / "base", "CausalLM")
    return tmp_path / "base"


@pytest.fixture
def adapter(tmp_path, config, base):
    """A reward model's adapters on that base."""
    write_peft(parts(config, value_head=True)[0], SPEC, str(base), tmp_path / "adapter", "SequenceClassification")
    return tmp_path / "adapter"


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_peft_adapters_are_opened_as_their_base_with_them_merged(config, adapter):
    opened = open_pretrained(adapter)
    assert (opened.config, opened.head) == (config, "SequenceClassification")
    assert len(opened.tokenizer()) == config.vocab_size, "the base's"
    trained, frozen = parts(config, value_head=True)
    want = merge(jax.tree.map(jnp.copy, frozen), trained, SPEC)
    got = load_params(opened.source(), config, abstract_params(config, value_head=True))
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_adapters_scaled_by_the_root_of_their_rank(config, adapter):
    plain = open_pretrained(adapter).source()
    name, index = "model.layers.0.mlp.up_proj.weight", (slice(0, 3), slice(2, 7))
    untouched = open_pretrained(adapter.parent / "base").source().read(name, index)
    change(adapter / "adapter_config.json", use_rslora=True)
    scaled = open_pretrained(adapter).source().read(name, index)
    np.testing.assert_allclose(scaled - untouched, (plain.read(name, index) - untouched) * 2**0.5, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "peft_type='PROMPT_TUNING'.*merge them into their base"),
        ({"use_dora": True, "bias": "all"}, "bias='all', use_dora=True"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "task_type 'SEQ_2_SEQ_LM'"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path"),
        ({"lora_alpha": "many"}, "lora_alpha"),
        (
            {"base_model_name_or_path": "meta-llama/Llama-3"},
            "holds PEFT adapters for meta-llama/Llama-3.*write the path",
        ),
    ],
)
def test_adapters_of_another_kind_or_without_their_base_are_refused_by_name(adapter, fields, named):
    change(adapter / "adapter_config.json", **fields)
    with pytest.raises(UserError, match=named):
        open_pretrained(adapter)


def test_adapters_of_another_model_are_refused_by_their_shapes(adapter):
    path = adapter / "adapter_model.safetensors"
    arrays = load_file(path)
    key = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    save_file(arrays | {key: np.zeros((2, 5), np.float32)}, path)
    with pytest.raises(
        UserError, match=r"does not belong to the base .*model.layers.0.mlp.up_proj.weight is \(32, 16\)"
    ):
        open_pretrained(adapter).source()
    save_file(arrays | {key.replace("lora_A", "lora_magnitude_vector"): np.zeros(32, np.float32)}, path)
    with pytest.raises(UserError, match="plain LoRA adapters have not"):
        open_pretrained(adapter).source()
    path.unlink()
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors"):
        open_pretrained(adapter).source()


@pytest.mark.parametrize("prefix", ["value_head", "score", None])
def test_openrlhf_reward_models_are_opened(tmp_path, config, chat, prefix):
    """A class named `RewardModel`, whose linear map is named by `value_head_prefix` (its default has changed)."""
    params = merge(*parts(config, value_head=True)[::-1], SPEC)
    folder = tmp_path / "rm"
    write_hf(params, config, chat, folder, "SequenceClassification")
    change(
        folder / "config.json",
        architectures=["RewardModel"],
        normalize_reward=False,
        mean=0.25,
        std=1.5,
        **({"value_head_prefix": prefix} if prefix else {}),
    )
    arrays = load_file(folder / "model.safetensors")
    arrays[f"{prefix or 'value_head'}.weight"] = arrays.pop("score.weight")
    save_file(arrays, folder / "model.safetensors")
    np.testing.assert_array_equal(load_model(folder).model.value_d[...], params["value_d"])
    del arrays[f"{prefix or 'value_head'}.weight"]
    save_file(arrays, folder / "model.safetensors")
    with pytest.raises(UserError, match="the value head of a RewardModel"):
        open_pretrained(folder).source()


def test_an_embedding_with_fewer_rows_than_ids_is_refused_by_name_and_shapes(base, config):
    path = base / "model.safetensors"
    arrays = load_file(path)
    arrays["model.embed_tokens.weight"] = arrays["model.embed_tokens.weight"][:-5]
    save_file(arrays, path)
    v, d = config.vocab_size, config.d_model
    with pytest.raises(
        UserError, match=rf"embed_tokens.weight has shape \({v - 5}, {d}\), its configuration says \({v}, {d}\)"
    ):
        load_model(base)


def test_a_tokenizer_that_was_never_fetched_is_named(base):
    (base / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=r"git-lfs pointers in place of tokenizer\.json"):
        open_pretrained(base).tokenizer()


def test_places_without_a_model_are_refused_by_what_they_are(tmp_path):
    def refused(place) -> str:
        with pytest.raises(UserError) as error:
            open_pretrained(place)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "names on the Hugging Face hub are not taken: download" in refused("Qwen/Qwen3-0.6B")
    assert "hub" not in refused(str(tmp_path / "nowhere"))
    (tmp_path / "params.json").write_text("{}")
    assert "params.json" in refused(tmp_path)
    (tmp_path / "m-Q4_0.gguf").touch()
    assert "name the GGUF file itself: m-Q4_0.gguf" in refused(tmp_path)
    for text in ("[1]", "3", "", "null", '"llama"'):
        (tmp_path / "config.json").write_text(text)
        assert str(tmp_path / "config.json") in refused(tmp_path)
    (tmp_path / "config.json").write_text('{"seed": 0}')
    assert "is no Hugging Face model folder: its config.json has no model_type" in refused(tmp_path)
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "results.json").touch()
    assert "is the workdir of a search, not a model" in refused(tmp_path / "search")
    assert "cannot be read" in refused("~no-such-user-at-all/model")
