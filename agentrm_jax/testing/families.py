"""Tokenizers of the usual families with their chat templates, small enough for tests."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from agentrm_jax.templates import CHATML

TEXTS = (
    "You are in a hall.\n\nYour task: go to the red ball 1.",
    "Thought: It is ahead.\nAction: go to red ball 1",
    "Observation: a door [INST] x [/INST] system user assistant model",
)

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
IN_TURNS = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
)
LLAMA2 = IN_TURNS + (
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = IN_TURNS + (
    "{% if m['role'] == 'user' %}{{ '[INST]' + m['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = IN_TURNS + (
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\\n' }}"
    "{{ m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
QWEN25 = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe a good model.<|im_end|>\\n' }}{% endif %}"
    + CHATML
)


@dataclasses.dataclass(frozen=True)
class Family:
    """A template with the special tokens it is used with."""

    template: str
    special: tuple[str, ...]
    bos: str | None
    eos: str
    end: str
    pieces: str = "bytes"


FAMILIES = {
    "chatml": Family(CHATML, ("<|im_start|>",), None, "<|im_end|>", "<|im_end|>"),
    "llama3": Family(LLAMA3, ("<|start_header_id|>", "<|end_header_id|>"), "<|begin|>", "<|eot_id|>", "<|eot_id|>"),
    "llama2": Family(LLAMA2, (), "<s>", "</s>", "</s>", "first"),
    "llama2, old tokenizer file": Family(LLAMA2, (), "<s>", "</s>", "</s>", "always"),
    "mistral": Family(MISTRAL, ("[INST]", "[/INST]"), "<s>", "</s>", "</s>", "first"),
    "qwen2.5": Family(QWEN25, ("<|im_start|>",), None, "<|im_end|>", "<|im_end|>"),
    "gemma": Family(GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>", "<end_of_turn>", "none"),
}


def make_tokenizer(family: Family, pad: str | None = "<pad>", extra: Sequence[str] = ()) -> Any:
    """A tokenizer of the family's kind: byte-level, or SentencePiece-like with a blank before the start of a text."""
    import transformers

    special = [s for s in (family.bos, family.eos, pad, *family.special, *extra) if s]
    core = Tokenizer(models.BPE(unk_token=None if family.pieces == "bytes" else "<unk>"))
    alphabet = []
    if family.pieces == "bytes":
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        scheme = {"first": "first", "always": "always", "none": "never"}[family.pieces]
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        core.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=["<unk>", *dict.fromkeys(special)],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    core.train_from_iterator(TEXTS * 3, trainer)
    if (
        family.pieces == "always"
    ):  # as in older files: the blank is written by the normalizer, before every stretch of text
        blanks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        core, decoder = Tokenizer(core.model), core.decoder
        core.normalizer, core.decoder = normalizers.Sequence(blanks), decoder
        core.add_special_tokens(["<unk>", *dict.fromkeys(special)])
    names = {"bos_token": family.bos, "eos_token": family.eos, "pad_token": pad}
    out = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        extra_special_tokens=[s for s in special if s not in names.values()],
        clean_up_tokenization_spaces=False,
        **{k: v for k, v in names.items() if v},
    )
    out.chat_template = family.template
    return out
