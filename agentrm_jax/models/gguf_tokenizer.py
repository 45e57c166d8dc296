"""The tokenizer of a GGUF file: built from the file where it is byte-level BPE, else read from the folder it lies in.

SentencePiece vocabularies (Llama 2, Mistral) and pre-tokenizers that are not known here (tekken) are not in the file in a
form from which ids follow exactly. For those the original model's tokenizer files must lie beside the file; they are
compared with the file's own list of tokens.
"""

from pathlib import Path
from typing import Any

from agentrm_jax.models.folder import TOKENIZER_FILES, refuse_pointer
from agentrm_jax.models.gguf import GGUF
from agentrm_jax.tokenizer import load_tokenizer
from agentrm_jax.types import JSON, UserError

_NORMAL, _CONTROL, _USER, _BYTE = 1, 3, 4, 6  # types of tokens


def load_gguf_tokenizer(file: GGUF) -> Any:
    """A `transformers` fast tokenizer for the file.

    Raises:
      UserError: the file has none that can be built, and none lies beside it or that one is another model's.
    """
    tokens, types = file.fields.get("tokenizer.ggml.tokens"), file.fields.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not isinstance(types, list) or len(tokens) != len(types):
        raise UserError(f"{file.path} has no list of tokens with their types; take another conversion of the model")
    model, pre = file.fields.get("tokenizer.ggml.model"), file.fields.get("tokenizer.ggml.pre")
    if model == "gpt2" and pre in _cutters():
        return _build(file, tokens, types, pre)
    folder = file.path.parent.resolve()
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        kind = f"pre-tokenizer {pre!r}" if model == "gpt2" else f"tokenizer model {model!r}"
        raise UserError(
            f"{file.path}: {kind} cannot be built from the file (byte-level BPE with one of "
            f"{', '.join(_cutters())} can); put the tokenizer files of the original model (tokenizer.json, "
            f"tokenizer_config.json) beside it, in {folder}"
        )
    refuse_pointer(*(folder / name for name in TOKENIZER_FILES))
    tokenizer = load_tokenizer(folder)
    _compare(tokenizer, tokens, types, file.path)
    if not tokenizer.chat_template:
        tokenizer.chat_template = file.fields.get("tokenizer.chat_template")
    return tokenizer


def _compare(tokenizer: Any, tokens: list[str], types: list[int], path: Path) -> None:
    """Refuses tokenizer files of another model: every ordinary and byte token must have the id it has in the file."""
    if len(tokenizer) > len(tokens):
        raise UserError(
            f"the tokenizer files in {path.parent} are another model's than {path.name}: {len(tokenizer)} tokens, "
            f"not {len(tokens)}"
        )
    for i, found in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))):
        if types[i] in (_NORMAL, _BYTE) and found is not None and found != tokens[i]:
            raise UserError(
                f"the tokenizer files in {path.parent} are another model's than {path.name}: token {i} is {found!r}, "
                f"not {tokens[i]!r}"
            )


def _build(file: GGUF, tokens: list[str], types: list[int], pre: str) -> Any:
    """A byte-level BPE tokenizer from the file's tokens and merges."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    def get(name: str) -> JSON:
        return file.fields.get(f"tokenizer.{name}")

    merges = [tuple(m.split(" ", 1)) for m in get("ggml.merges") or ()]
    vocab = {t: i for i, t in enumerate(tokens)}
    try:
        made = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe"))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{file.path}: its tokens and merges do not fit together ({error})") from None
    made.pre_tokenizer = _cutters()[pre]()
    made.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        made.normalizer = normalizers.NFC()
    kinds = list(zip(tokens, types, strict=True))
    made.add_special_tokens([AddedToken(t, special=True) for t, k in kinds if k == _CONTROL])
    made.add_tokens([AddedToken(t, normalized=False) for t, k in kinds if k == _USER])
    roles = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    ids = {role: get(f"ggml.{name}_token_id") for role, name in roles.items()}
    special = {f"{role}_token": tokens[i] for role, i in ids.items() if i is not None and i < len(tokens)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        additional_special_tokens=[t for t, k in kinds if k == _CONTROL and t not in special.values()],
        model_max_length=file.config.max_length,
        clean_up_tokenization_spaces=False,
        **special,
    )
    if template := get("chat_template"):
        tokenizer.chat_template = template
    return tokenizer


def _cutters() -> dict[str, Any]:
    """Makers of pre-tokenizers, by the file's name of the rule that cuts text into words."""
    from tokenizers import Regex
    from tokenizers import pre_tokenizers as p

    def split(digits: str) -> Any:
        # Contractions, words with one leading mark, runs of digits, marks, and white space.
        words = (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
        byte_level = p.ByteLevel(add_prefix_space=False, use_regex=False)
        return p.Sequence([p.Split(Regex(words), "isolated"), byte_level])

    return {
        "smollm": lambda: p.Sequence([p.Digits(individual_digits=True), p.ByteLevel(add_prefix_space=False)]),
        "gpt-2": lambda: p.ByteLevel(add_prefix_space=False),
        "llama-bpe": lambda: split(r"\p{N}{1,3}"),
        "qwen2": lambda: split(r"\p{N}"),
    }
