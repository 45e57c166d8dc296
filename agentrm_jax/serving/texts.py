"""Between texts and token ids, away from the event loop: one thread encodes, because encoding changes a tokenizer for a moment."""

import asyncio
import concurrent.futures
import copy
import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from agentrm_jax import tokenizer as tokenizers
from agentrm_jax.chat import Chat
from agentrm_jax.data.fields import shown
from agentrm_jax.serving.faults import ServingError

T = TypeVar("T")
_LONGEST_PIECE = (
    64  # characters that a token of text stands for at most, by which a text is refused before it is encoded
)


class Texts:
    """The texts of one model. `encode` runs on the thread; decoding has a tokenizer of its own, which nothing changes."""

    def __init__(self, chat: Chat):
        self.chat = chat
        self._decoder = copy.deepcopy(chat.tokenizer)
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="texts")

    async def on_thread(self, work: Callable[[], T]) -> T:
        """What `work` gives, which may encode."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def ids(self, text: str, *, add_special: bool, limit: int) -> np.ndarray:
        """int32[t] of a rendered text, in which special tokens are read as such; to be called on the thread.

        Raises:
          ServingError: it has far more characters than `limit` tokens.
        """
        if len(text) > _LONGEST_PIECE * limit:
            raise ServingError(400, f"a text of {len(text)} characters is longer than {limit} tokens")
        ids = tokenizers.encode(self.chat.tokenizer, text)
        begin = self.chat.tokenizer.bos_token_id
        plain = add_special and begin is not None and self._begins and (not len(ids) or ids[0] != begin)
        return np.concatenate([np.array([begin], np.int32), ids]) if plain else ids

    @functools.cached_property
    def _begins(self) -> bool:
        """Whether the tokenizer puts its first token before a text by itself."""
        return self.chat.tokenizer.bos_token_id in self.chat.tokenizer.encode("x", add_special_tokens=True)[:1]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out; on any thread."""
        return self._decoder.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def token(self, token: int) -> str:
        """Text of one token, also of a special one."""
        return self._decoder.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)


def paths_of(value: object, name: str, most: int) -> list[str] | list[np.ndarray]:
    """The prompts or inputs of a request: texts, or int32[t] each.

    Raises:
      ServingError: the value is none of the four forms, or has more than `most`.
    """
    expected = "expected a text, a list of texts, token ids, or a list of lists of token ids"
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ServingError(400, f"{name} is {shown(value)}; {expected}", param=name)
    if isinstance(value[0], int):
        return [_ids(value, name)]
    if len(value) > most:
        raise ServingError(413, f"{name} has {len(value)} entries; at most {most} are taken at once", param=name)
    if all(isinstance(one, str) for one in value):
        return list(value)
    if all(isinstance(one, list) and one for one in value):
        return [_ids(one, f"{name}[{i}]") for i, one in enumerate(value)]
    raise ServingError(400, f"{name} is a list that begins with {shown(value[0])}; {expected}", param=name)


def _ids(value: list[object], name: str) -> np.ndarray:
    for i, one in enumerate(value):
        if not isinstance(one, int) or isinstance(one, bool) or not 0 <= one < 2**31:
            raise ServingError(400, f"{name}[{i}] is {shown(one)}; expected a token id", param=name.partition("[")[0])
    return np.array(value, np.int32)
