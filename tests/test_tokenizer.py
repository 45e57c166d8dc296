"""A tokenizer trained from trajectories: any text survives it, and what must be one token is one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrm_jax.chat import load_chat
from agentrm_jax.tokenizer import load_tokenizer, train_tokenizer
from agentrm_jax.types import Message, UserError


def encode(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


@given(st.text(max_size=40).filter(lambda t: "<" not in t))
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(encode(tokenizer, text)) == text


def test_it_learns_the_words_it_is_shown_up_to_the_size_asked_for(tokenizer):
    assert len(tokenizer) == 320
    assert len(encode(tokenizer, "Action:")) < len("Action:")


def test_digits_and_line_ends_stand_alone(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(encode(tokenizer, "ball 123\nAction"))
    assert [t for t in tokens if any(c.isdigit() for c in t)] == ["1", "2", "3"]
    assert "Ċ" in tokens, "a line end is never part of a word"


def test_a_code_is_the_same_token_wherever_it_stands():
    tokenizer = train_tokenizer(["Next > [SEP] B0XM [SEP] Polo Shirt", "Action: click[B0XM]"] * 9, 340, "words")
    code = encode(tokenizer, "B0XM")
    assert len(code) == 1
    assert all(code[0] in encode(tokenizer, text) for text in (" B0XM", "click[B0XM]", "[SEP] B0XM [SEP]"))
    assert len(encode(tokenizer, "X12")) > 1, "a model number of fewer characters is no code"


def test_special_tokens_are_single_and_distinct(tokenizer):
    special = ("<pad>", "<|im_start|>", "<|im_end|>")
    found = [encode(tokenizer, s) for s in special]
    assert [len(f) for f in found] == [1, 1, 1]
    assert len({f[0] for f in found}) == 3
    assert tokenizer.pad_token_id == 0
    assert tokenizer.eos_token == "<|im_end|>"


def test_the_same_texts_give_the_same_tokenizer():
    texts = ["go to the red ball", "go to the door"]
    assert train_tokenizer(texts, 290).get_vocab() == train_tokenizer(iter(texts), 290).get_vocab()


def test_a_saved_tokenizer_reads_a_chat_as_before(tokenizer, chat, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    messages = [Message("user", "go to the red ball 1"), Message("assistant", "Action: go\n  there", loss=True)]
    again = load_chat(load_tokenizer(tmp_path))
    assert again.end_id == chat.end_id
    for a, b in zip(again.conversation(messages), chat.conversation(messages), strict=True):
        assert a.tokens.tolist() == b.tokens.tolist()


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match="has no tokenizer files"):
        load_tokenizer(tmp_path)


@pytest.fixture
def saved(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


BROKEN = {
    ("tokenizer_config.json", "{"): r"tokenizer_config\.json cannot be read as JSON",
    ("tokenizer_config.json", "[]"): r"tokenizer_config\.json must hold a JSON object, not a list",
    ("tokenizer_config.json", "[" * 100_000): r"tokenizer_config\.json cannot be read as JSON",
    ("tokenizer.json", ""): r"tokenizer\.json cannot be read as JSON",
    (
        "tokenizer.json",
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    ): "is a pointer of git-lfs.*git lfs pull",
    ("tokenizer.json", "{}"): "the tokenizer cannot be read",
    ("tokenizer.json", '{"model": {"type": "none"}}'): "the tokenizer cannot be read",
    ("special_tokens_map.json", "\x00"): r"special_tokens_map\.json cannot be read as JSON",
}


@pytest.mark.parametrize("case", BROKEN, ids=repr)
def test_a_broken_tokenizer_is_one_line_that_names_the_file(saved, case):
    name, text = case
    (saved / name).write_text(text)
    with pytest.raises(UserError, match=BROKEN[case]) as caught:
        load_tokenizer(saved)
    assert "\n" not in str(caught.value)
    assert str(saved) in str(caught.value)


def test_text_that_is_not_unicode_is_named(saved):
    (saved / "tokenizer_config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match=r"tokenizer_config\.json cannot be read"):
        load_tokenizer(saved)


def test_code_in_a_folder_is_never_run(saved):
    told = json.loads((saved / "tokenizer_config.json").read_text())
    told["auto_map"] = {"AutoTokenizer": [None, "own.OwnTokenizer"]}
    (saved / "tokenizer_config.json").write_text(json.dumps(told))
    (saved / "own.py").write_text(f"open({str(saved / 'ran')!r}, 'w').close()\nclass OwnTokenizer: pass\n")
    assert len(load_tokenizer(saved)) == 320, "transformers has a class for it"
    (saved / "tokenizer_config.json").write_text(json.dumps(told | {"tokenizer_class": "OwnTokenizer"}))
    with pytest.raises(UserError, match=r"needs Python code of its own.*never run") as caught:
        load_tokenizer(saved)
    assert "\n" not in str(caught.value)
    assert not (saved / "ran").exists()
