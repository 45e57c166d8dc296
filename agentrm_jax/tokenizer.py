"""Tokenizers: one trained from trajectories for models that start from nothing, and any saved one."""

import itertools
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
    # Merges may span words up to the end of a clause: environments speak in set phrases, and a phrase that is one token is read,
    # written and learned in one step. Digits stand alone: counts and distances must not be cut at random.
    words = Regex(r"[0-9]|\n|[^0-9\n.,:]+[.,:]?|[.,:]")
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
      UserError: the folder holds none.
    """
    import transformers

    if not any((folder / f).exists() for f in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(f"{folder} has no tokenizer files")
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
