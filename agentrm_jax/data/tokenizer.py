"""Tokenizers: one trained from trajectories for models that start from nothing, and any saved one."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from agentrm_jax.chat import CHATML
from agentrm_jax.types import UserError

_SPECIAL = ("<pad>", "<|im_start|>", "<|im_end|>")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """A byte-level BPE tokenizer (a `transformers` fast tokenizer) with the ChatML template; padding has a token of its own."""
    import transformers
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    # Words keep their leading blank, digits stand alone (counts and distances must not be cut at random), lines end apart.
    words = Regex(r" ?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", eos_token="<|im_end|>", clean_up_tokenization_spaces=False
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer saved in a folder.

    Raises:
      UserError: the folder holds none.
    """
    import transformers

    if not (folder / "tokenizer.json").exists():
        raise UserError(f"no tokenizer.json in {folder}")
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
