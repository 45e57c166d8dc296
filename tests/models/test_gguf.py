"""GGUF files: names, the order of rotary rows, quantised types, and what is refused."""

import dataclasses
import math

import numpy as np
import pytest

from agentrm_jax.models.config import ModelConfig, RopeScaling
from agentrm_jax.models.pretrained import open_pretrained
from agentrm_jax.models.rope import rope_frequencies
from agentrm_jax.models.weights import abstract_params, load_params
from agentrm_jax.types import UserError

gguf = pytest.importorskip("gguf", reason="needs the extra gguf")

CONFIG = ModelConfig(
    vocab_size=16,
    num_layers=1,
    d_model=256,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    d_ff=256,
    rope_theta=5e5,
    max_length=4096,
)
TOKENS = ["<pad>", "<end>", *"abcdefghijklm", "ab"]


def write(path, architecture="llama", quantised="F32", tensors=None, pre="gpt-2", model="gpt2", yarn=False):
    """A file of one layer, rows of q and k in the order of interleaved pairs for llama; returns the plain matrices."""
    rng = np.random.default_rng(0)
    c = CONFIG
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(c.max_length)
    writer.add_embedding_length(c.d_model)
    writer.add_block_count(c.num_layers)
    writer.add_feed_forward_length(c.d_ff)
    writer.add_head_count(c.num_heads)
    writer.add_head_count_kv(c.num_kv_heads)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_layer_norm_rms_eps(1e-5)
    if yarn:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(1024)
    writer.add_tokenizer_model(model)
    writer.add_chat_template("{{ messages }}")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * 14)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    width = {
        "attn_q": 256,
        "attn_k": 128,
        "attn_v": 128,
        "attn_output": 256,
        "ffn_gate": 256,
        "ffn_up": 256,
        "ffn_down": 256,
    }
    plain = {f"blk.0.{k}.weight": rng.normal(size=(n, 256)).astype(np.float32) for k, n in width.items()}
    norms = {
        n: np.ones(256, np.float32) for n in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight")
    }
    embed = {"token_embd.weight": rng.normal(size=(16, 256)).astype(np.float32)}
    for name, array in {**plain, **norms, **embed, **(tensors or {})}.items():
        if architecture == "llama" and name in ("blk.0.attn_q.weight", "blk.0.attn_k.weight"):
            array = array.reshape(-1, 2, 32, 256).swapaxes(1, 2).reshape(array.shape)
        kind = gguf.GGMLQuantizationType[quantised if name in plain else "F32"]
        if kind.name in ("F32", "F16"):
            writer.add_tensor(name, array.astype(np.float32 if kind.name == "F32" else np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return plain


def weights_of(path):
    opened = open_pretrained(path)
    return opened, load_params(opened.source(), opened.config, abstract_params(opened.config))


# Worst relative error of a matrix of normal numbers, by what its type can hold.
@pytest.mark.parametrize(
    ("kind", "error"), [("F32", 0), ("F16", 1e-3), ("BF16", 1e-2), ("Q8_0", 1e-2), ("Q4_0", 0.15), ("Q4_1", 0.15)]
)
def test_quantised_weights_come_out_in_our_layout(tmp_path, kind, error):
    plain = write(tmp_path / "m.gguf", quantised=kind)
    opened, params = weights_of(tmp_path / "m.gguf")
    assert opened.config == CONFIG
    q, down = plain["blk.0.attn_q.weight"], plain["blk.0.ffn_down.weight"]
    got_q, got_down = np.asarray(params["layers"]["wq_dnh"][0]), np.asarray(params["layers"]["w_down_fd"][0])
    for got, want in ((got_q, q.T.reshape(256, 4, 64)), (got_down, down.T)):
        assert np.linalg.norm(got - want) <= error * np.linalg.norm(want)


def test_families_other_than_llama_keep_their_row_order(tmp_path):
    biases = {f"blk.0.attn_{x}.bias": np.arange(n, dtype=np.float32) for x, n in (("q", 256), ("k", 128), ("v", 128))}
    plain = write(tmp_path / "m.gguf", "qwen2", tensors=biases)
    opened, params = weights_of(tmp_path / "m.gguf")
    assert opened.config.qkv_bias
    np.testing.assert_array_equal(params["layers"]["wk_dkh"][0], plain["blk.0.attn_k.weight"].T.reshape(256, 2, 64))
    np.testing.assert_array_equal(params["layers"]["bq_nh"][0], np.arange(256).reshape(4, 64))


def test_llama_3_frequency_scaling_is_recognised_from_its_table(tmp_path):
    scaled = dataclasses.replace(CONFIG, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 8192))
    divisors = (rope_frequencies(CONFIG) / rope_frequencies(scaled)).astype(np.float32)
    write(tmp_path / "m.gguf", tensors={"rope_freqs.weight": divisors})
    assert open_pretrained(tmp_path / "m.gguf").config == scaled
    write(tmp_path / "n.gguf", tensors={"rope_freqs.weight": np.linspace(1, 9, 32).astype(np.float32)})
    with pytest.raises(UserError, match="frequency divisors"):
        open_pretrained(tmp_path / "n.gguf")


def test_yarn_is_read_with_the_context_that_it_stretches(tmp_path):
    write(tmp_path / "m.gguf", yarn=True)
    scaling = open_pretrained(tmp_path / "m.gguf").config.rope_scaling
    assert scaling == RopeScaling("yarn", 4.0, original_length=1024, amplitude=0.1 * math.log(4) + 1)


def test_tokenizer_from_the_file(tmp_path):
    write(tmp_path / "m.gguf")
    tokenizer = open_pretrained(tmp_path / "m.gguf").tokenizer()
    assert tokenizer.encode("abc<end>", add_special_tokens=False) == [15, 4, 1]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<end>", "<pad>")


def tokenizer_beside(folder, tokens=TOKENS):
    """Tokenizer files in the form that transformers saves."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[("a", "b")]))
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<end>").save_pretrained(folder)


@pytest.mark.parametrize(("model", "pre"), [("llama", "default"), ("gpt2", "tekken")])
def test_a_tokenizer_that_cannot_be_built_is_read_from_beside_the_file(tmp_path, model, pre):
    """SentencePiece (most Mistral and Llama 2 files) and tekken (later Mistral ones)."""
    path = tmp_path / "m.gguf"
    write(path, model=model, pre=pre)
    opened = open_pretrained(path)
    with pytest.raises(UserError, match=f"put the tokenizer files of the original model .* beside it, in {tmp_path}"):
        opened.tokenizer()
    tokenizer_beside(tmp_path)
    assert opened.tokenizer().encode("ab<end>", add_special_tokens=False) == [15, 1]
    assert opened.tokenizer().chat_template == "{{ messages }}", "the file's, where the folder has none"


def test_the_tokenizer_of_another_model_beside_the_file_is_refused(tmp_path):
    path = tmp_path / "m.gguf"
    write(path, model="llama", pre="default")
    tokenizer_beside(tmp_path, [*TOKENS[:5], "z", *TOKENS[6:]])
    with pytest.raises(UserError, match=r"another model's than m\.gguf: token 5 is 'z', not 'd'"):
        open_pretrained(path).tokenizer()
    tokenizer_beside(tmp_path, [*TOKENS, "more"])
    with pytest.raises(UserError, match="17 tokens, not 16"):
        open_pretrained(path).tokenizer()


def test_a_file_cut_short_anywhere_is_named(tmp_path):
    write(tmp_path / "m.gguf")
    whole = (tmp_path / "m.gguf").read_bytes()
    for size in (0, 3, 20, 60, 150, 400, 900, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"cut\.gguf cannot be read as GGUF .*download it again"):
            open_pretrained(tmp_path / "cut.gguf")
    (tmp_path / "cut.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(UserError, match=r"git-lfs pointers in place of cut\.gguf"):
        open_pretrained(tmp_path / "cut.gguf")


def test_a_file_that_lacks_what_a_model_needs_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match=r"m.gguf: it lacks hidden_size, intermediate_size, num_hidden_layers"):
        open_pretrained(tmp_path / "m.gguf")


def test_what_is_refused(tmp_path):
    write(tmp_path / "a.gguf", "gemma")
    with pytest.raises(UserError, match="gemma"):
        open_pretrained(tmp_path / "a.gguf")
    write(tmp_path / "b.gguf", pre="chameleon")
    with pytest.raises(UserError, match="chameleon"):
        open_pretrained(tmp_path / "b.gguf").tokenizer()
    write(tmp_path / "c.gguf", tensors={"blk.0.attn_gate.weight": np.ones((4, 4), np.float32)})
    with pytest.raises(UserError, match=r"no place for: blk.0.attn_gate.weight"):
        weights_of(tmp_path / "c.gguf")
    write(tmp_path / "d.gguf", quantised="Q5_0")
    with pytest.raises(UserError, match="Q5_0"):
        open_pretrained(tmp_path / "d.gguf")
    (tmp_path / "e.gguf").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="cannot be read as GGUF"):
        open_pretrained(tmp_path / "e.gguf")
    with pytest.raises(UserError, match="no model at"):
        open_pretrained(tmp_path / "f")
