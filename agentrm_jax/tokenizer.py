"""Tokenizers: one trained from trajectories for models that start from nothing, any saved one, and how they read text."""

import functools
import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from agentrm_jax.templates import CHATML
from agentrm_jax.types import UserError

_SPECIAL = ("<pad>", "<|im_start|>", "<|im_end|>")


# What is merged into one token at most. Phrases, up to the end of a clause: some environments speak in set phrases, and a phrase that is
# one token is read, written and learned in one step. Words: where words are to be copied into other surroundings (a search, a click), a
# word must be the same tokens everywhere, and a code in capitals (B07XM2) is a word, without the space before it. Other digits stand alone
# in both: counts and distances must not be cut at random.
SPANS = {
    "phrases": r"[0-9]|\n|[^0-9\n.,:]+[.,:]?|[.,:]",
    "words": r"[A-Z][A-Z0-9]{3,}|[0-9]|\s(?=[A-Z][A-Z0-9]{3})|\n| ?\[[A-Z]+\]| ?[A-Za-z]+| ?[^\sA-Za-z0-9]+|\s",
}


def train_tokenizer(texts: Iterable[str], vocab_size: int, span: str = "phrases") -> Any:
    """A byte-level BPE tokenizer (a `transformers` fast tokenizer) with the ChatML template; padding has a token of its own.

    Args:
      span: what a token may span, one of `SPANS`.
    """
    import transformers
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPANS[span]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    roles = ["user\n", "assistant\n", "system\n"] * 100  # every message has them, no text does
    bpe.train_from_iterator(itertools.chain(texts, roles), trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", eos_token="<|im_end|>", clean_up_tokenization_spaces=False
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def load_tokenizer(folder: Path) -> Any:
    """The `transformers` tokenizer saved in a folder; nothing that the folder brings along is executed.

    Raises:
      UserError: the folder holds none, or one that is broken or needs code of its own.
    """
    import transformers

    if not any((folder / f).exists() for f in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(f"{folder} has no tokenizer files")
    _check_files(folder)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer.encode("a", add_special_tokens=False)
    except Exception as error:  # whatever transformers and tokenizers raise on a file that they cannot read
        reason = " ".join(str(error).split())[:200]
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{folder}: the tokenizer needs Python code of its own (auto_map in tokenizer_config.json), which is never run; "
                "use a folder with a tokenizer that transformers has"
            ) from error
        raise UserError(f"{folder}: the tokenizer cannot be read ({type(error).__name__}: {reason})") from error
    return tokenizer


def _check_files(folder: Path) -> None:
    """Raises UserError if one of the tokenizer's JSON files is not JSON with fields."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        path = folder / name
        if not path.exists():
            continue
        try:
            text = path.read_text(encoding="utf-8")
            if text.startswith("version https://git-lfs"):
                raise UserError(
                    f"{path} is a pointer of git-lfs, not the file itself; run `git lfs pull` in that folder"
                )
            fields = json.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} cannot be read as JSON: {error or 'it is nested too deeply'}") from None
        if not isinstance(fields, dict):
            raise UserError(f"{path} must hold a JSON object, not a {type(fields).__name__}")


# Around a special token in content: two private characters that content itself cannot hold.
_OPEN, _CLOSE = "\U000f0000", "\U000f0001"
_MARKED = re.compile(f"{_OPEN}([^{_OPEN}{_CLOSE}]*){_CLOSE}")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def mark(tokenizer: Any, content: str) -> str:
    """`content` with its special tokens marked, for `encode` to read as plain text; the same text if it holds none."""
    content = content.replace(_OPEN, "").replace(_CLOSE, "")
    special = _special(tokenizer)
    if special.search(content):
        return special.sub(rf"{_OPEN}\g<0>{_CLOSE}", content)
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if normalizer is not None and special.search(normalizer.normalize_str(_text(content))):
        return _OPEN + content + _CLOSE  # a special token that is written in fullwidth letters, for instance
    return content


def encode(tokenizer: Any, text: str, after: str = "") -> np.ndarray:
    """Ids of rendered text: int32[t]. Special tokens are recognised except where they are marked, none are added.

    `after` is what comes before it: SentencePiece-style tokenizers write a blank at the start of a text, but not there.
    Lone surrogates, which are no text, become U+FFFD.
    """
    text = _text(text)
    if _OPEN not in text and _CLOSE not in text:
        return np.asarray(_continued(tokenizer, text, after), np.int32)
    ids: list[int] = []
    for i, piece in enumerate(_MARKED.split(text)):
        if piece:
            before = "\n" if ids else after
            ids += _plain(tokenizer, piece) if i % 2 else _continued(tokenizer, piece, before)
    return np.asarray(ids, np.int32)


def ids_of(tokenizer: Any, text: str, plain: bool = False) -> list[int]:
    """Ids of a text by itself, nothing added; `plain`: special tokens in it are text."""
    if plain:
        return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return tokenizer.encode(text, add_special_tokens=False)


def _text(text: str) -> str:
    return _LONE_SURROGATE.sub("\ufffd", text)


def _continued(tokenizer: Any, text: str, after: str, plain: bool = False) -> list[int]:
    if after and _adds_prefix(tokenizer):
        before, both = ids_of(tokenizer, after, plain), ids_of(tokenizer, after + text, plain)
        if both[: len(before)] == before:
            return both[len(before) :]
    return ids_of(tokenizer, text, plain)


def _plain(tokenizer: Any, text: str) -> list[int]:
    """Ids of text whose special tokens are plain text, even where the vocabulary has the whole word."""
    special = special_ids(tokenizer)
    ids = _continued(tokenizer, text, "\n", plain=True)
    if special.isdisjoint(ids):
        return ids
    single = [_continued(tokenizer, character, "\n", plain=True) for character in text]
    return [i for piece in single for i in piece if i not in special]


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of all tokens that are no text: those with a name (`eos_token`) and all others that were added as special."""
    added = {i for i, t in getattr(tokenizer, "added_tokens_decoder", {}).items() if getattr(t, "special", False)}
    return frozenset(added | set(tokenizer.all_special_ids))


@functools.lru_cache(maxsize=16)
def _special(tokenizer: Any) -> re.Pattern[str]:
    """Matches the texts of all special tokens, the longest first; nothing if there are none."""
    texts = [str(t) for t in tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer)))]
    return re.compile("|".join(re.escape(t) for t in sorted(texts, key=len, reverse=True) if t) or "(?!)")


@functools.lru_cache(maxsize=16)
def _adds_prefix(tokenizer: Any) -> bool:
    """Whether encoding a text alone puts a blank before it that the same text has not in the middle of another."""
    line, both = ids_of(tokenizer, "\n"), ids_of(tokenizer, "\nx")
    return both[: len(line)] == line and both[len(line) :] != ids_of(tokenizer, "x")
