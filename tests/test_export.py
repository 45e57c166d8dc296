"""The exported folder: read back bit for bit, readable by transformers 4 and 5, honest about what it cannot hold."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from agentrm_jax import export
from agentrm_jax.chat import load_chat
from agentrm_jax.models.config import NANO
from agentrm_jax.models.pretrained import open_pretrained
from agentrm_jax.models.transformer import Transformer
from agentrm_jax.models.weights import abstract_params, load_params
from agentrm_jax.tokenizer import train_tokenizer
from agentrm_jax.types import UserError

HEADS = ("CausalLM", "SequenceClassification", "TokenClassification")


@pytest.fixture(scope="module")
def chat():
    return load_chat(train_tokenizer(["go to the kitchen and take the red apple"] * 3, 320))


@pytest.fixture(scope="module")
def config(chat):
    return dataclasses.replace(NANO, vocab_size=len(chat.tokenizer), num_layers=2, d_model=32, head_dim=8, d_ff=48)


def params_of(config, *, dtype=np.float32, lm_head=True, value_head=True):
    model = Transformer(config, rngs=nnx.Rngs(0), lm_head=lm_head, value_head=value_head, dtype=dtype)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    if value_head:
        params["value_d"] = jax.random.normal(jax.random.key(1), params["value_d"].shape)
    return params


def folder(tmp_path, head, config, chat, **options):
    params = params_of(config, **options)
    out = tmp_path / "out"
    export.write_hf(params, config, chat, out, head)
    return params, out


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("tied", [True, False])
def test_read_back_is_the_same_model(tmp_path, chat, config, head, tied):
    config = dataclasses.replace(config, tie_embeddings=tied)
    params, out = folder(tmp_path, head, config, chat)
    back = open_pretrained(out)
    assert (back.config, back.head) == (config, head)
    reward = head != "CausalLM"
    got = load_params(back.source(), config, abstract_params(config, lm_head=not reward, value_head=reward))
    dropped = {"head_dv"} if reward else {"value_d"}
    assert got.keys() == params.keys() - dropped
    for key, value in got.items():
        jax.tree.map(np.testing.assert_array_equal, value, params[key])


def test_bfloat16_stays_bfloat16_and_the_config_says_so(tmp_path, chat, config):
    params, out = folder(tmp_path, "CausalLM", config, chat, dtype=jax.numpy.bfloat16)
    fields = json.loads((out / "config.json").read_text())
    assert fields["dtype"] == fields["torch_dtype"] == "bfloat16"
    got = load_params(open_pretrained(out).source(), config, abstract_params(config, dtype=jax.numpy.bfloat16))
    np.testing.assert_array_equal(np.asarray(got["embed_vd"], np.float32), np.asarray(params["embed_vd"], np.float32))


def test_large_models_are_written_in_shards_with_an_index(tmp_path, chat, config):
    params = params_of(config)
    export.write_hf(params, config, chat, tmp_path, "SequenceClassification", shard_bytes=20_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted({*index["weight_map"].values()})
    assert len(files) > 2
    assert files == sorted(p.name for p in tmp_path.glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    got = load_params(
        open_pretrained(tmp_path).source(), config, abstract_params(config, lm_head=False, value_head=True)
    )
    np.testing.assert_array_equal(got["layers"]["w_up_df"], params["layers"]["w_up_df"])


def test_tokenizer_files_are_what_both_generations_read(tmp_path, chat, config):
    _, out = folder(tmp_path, "CausalLM", config, chat)
    fields = json.loads((out / "tokenizer_config.json").read_text())
    assert fields["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert fields["chat_template"] == chat.tokenizer.chat_template
    assert "extra_special_tokens" not in fields or isinstance(fields["extra_special_tokens"], dict)
    again = load_chat(open_pretrained(out).tokenizer())
    text = "take the red apple<|im_end|>"
    np.testing.assert_array_equal(again.encode(text), chat.encode(text))
    assert (again.end_id, again.tokenizer.pad_token_id) == (chat.end_id, chat.tokenizer.pad_token_id)
    assert again.tokenizer.all_special_tokens == chat.tokenizer.all_special_tokens


@pytest.mark.parametrize("head", HEADS)
def test_examples_end_at_the_end_of_turn_and_carry_numbers(tmp_path, chat, config, head):
    _, out = folder(tmp_path, head, config, chat)
    rows = json.loads((out / "example_scores.json").read_text())["examples"]
    assert len(rows) == len(export.EXAMPLES)
    for row in rows:
        assert row["input_ids"][-1] == chat.end_id
        assert chat.encode(row["text"]).tolist() == row["input_ids"]
        if head == "CausalLM":
            assert row["logprob"] < 0
        elif head == "TokenClassification":
            assert len(row["values"]) == len(row["input_ids"])
            assert row["values"][-1] == row["score"]
    if head != "CausalLM":
        assert len({row["score"] for row in rows}) == len(rows)


def test_ids_that_readers_need(tmp_path, chat, config):
    _, out = folder(tmp_path, "CausalLM", config, chat)
    fields = json.loads((out / "config.json").read_text())
    generation = json.loads((out / "generation_config.json").read_text())
    assert fields["eos_token_id"] == generation["eos_token_id"] == chat.end_id
    assert fields["pad_token_id"] == generation["pad_token_id"] == chat.tokenizer.pad_token_id != chat.end_id


def test_what_cannot_be_written_is_refused(tmp_path, chat, config):
    with pytest.raises(UserError, match="no value head"):
        export.write_hf(params_of(config, value_head=False), config, chat, tmp_path / "a", "SequenceClassification")
    untied = dataclasses.replace(config, tie_embeddings=False)
    with pytest.raises(UserError, match="no language-model head"):
        export.write_hf(params_of(untied, lm_head=False), untied, chat, tmp_path / "b", "CausalLM")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        export.write_hf(params_of(config), config, chat, tmp_path / "c", "CausalLM")
    with pytest.raises(UserError, match=r"mine\.txt is a file; name a new folder"):
        export.write_hf(params_of(config), config, chat, tmp_path / "c" / "mine.txt", "CausalLM")
    tokenizer = train_tokenizer(["x"], 300)
    same = load_chat(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(UserError, match="padding must be a token of its own"):
        export.write_hf(params_of(config), config, same, tmp_path / "d", "CausalLM")


def test_a_folder_that_is_no_workdir_ends_with_one_line(tmp_path, capsys):
    assert export.main([str(tmp_path), str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert str(tmp_path) in message
    assert message.count("\n") == 1


def test_a_place_that_is_taken_and_a_flag_that_is_none_end_with_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    for arguments, said in (
        ([str(tmp_path), str(tmp_path / "file")], "file is a file; name a new folder"),
        ([str(tmp_path)], "the following arguments are required: out"),
        ([str(tmp_path), str(tmp_path / "out"), "--token-s"], "unrecognized arguments: --token-s"),
    ):
        assert export.main(arguments) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert said in message
        assert message.count("\n") == 1
