"""A model behind a server that speaks OpenAI's protocol (vLLM, SGLang, llama.cpp, hosted ones) as a generator.

Conversations go to `/chat/completions` as messages; with a chat template of our own (`server.tokenizer`) they are rendered here and go
to `/completions` as token ids, so that the server reads exactly what our engine would. What a server does not offer (`n`, `seed`,
`logprobs`, tools) it is not asked again, and that is said once.
"""

import asyncio
import difflib
import hashlib
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from agentrm_jax.chat import Chat
from agentrm_jax.generators.choices import Answered, Choice, chosen, first_token_logprobs, read
from agentrm_jax.generators.generator import Answer, GenerationFailure, Prompt, Usage
from agentrm_jax.generators.http import Client, GoneError, Refused
from agentrm_jax.text import clean
from agentrm_jax.types import JSON, Action, Message, TooLong, UserError

_TOP = 20  # most tokens that servers report log-probabilities of at one place
_TOO_LONG = re.compile(
    r"context[ _](length|size|window)|maximum context|max_model_len|too long|too many tokens|exceeds? the (model|context|maximum)"
    r"|longer than the (maximum|model)",
    re.IGNORECASE,
)
# What a server may refuse -> the fields of a request that it stands for, how a refusal names it, and what is done without it.
_FEATURES = {
    "return_tokens_as_token_ids": (("return_tokens_as_token_ids",), r"return_tokens", ""),
    "stop_token_ids": (("stop_token_ids",), r"stop_token_ids", ""),
    "max_tokens": (("max_tokens",), r"max_tokens.*max_completion_tokens", ""),
    "logprobs": (("logprobs", "top_logprobs"), r"logprob", "actions have no log-probabilities"),
    "seed": (("seed",), r"\bseed\b", "sampling cannot be repeated"),
    "n": (
        ("n",),
        r"['\"`]n['\"`]|\bn (must|should|>|!=|=|is|can)|\bn>1|multiple (choices|completions)",
        "each sample is a request",
    ),
    "tools": (
        ("tools", "tool_choice"),
        r"\btools?\b|tool_choice|function",
        "a choice is read from the text of the reply",
    ),
}


class ServerGenerator:
    """Implements `Generator`.

    Args:
      model: its name at the server.
      max_tokens: tokens that a reply may have.
      chat: renders conversations here, for `/completions`.
      context: tokens that the model reads, if that is known; 0: the server says when a prompt is too long.
      note: shown what the server turns out not to offer.
    """

    def __init__(
        self,
        model: str,
        client: Client,
        *,
        max_tokens: int,
        chat: Chat | None = None,
        context: int = 0,
        note: Callable[[str], None] = lambda line: print(f"note: {line}", file=sys.stderr),
    ):
        self.model, self.context = model, context
        self._client, self._max_tokens, self.chat, self._note = client, max_tokens, chat, note
        self._without: set[str] = set()
        self._answered = False  # it has, at least once
        self.usage: defaultdict[str, Usage] = defaultdict(Usage)

    @property
    def tokens(self) -> int:
        return sum(usage.prompt + usage.completion for usage in self.usage.values())

    def fits(self, prompt: Prompt, new_tokens: int) -> bool:
        if not self.context or (self.chat is None and not isinstance(prompt, np.ndarray)):
            return True
        return len(self._ids(prompt)) + new_tokens <= self.context

    async def generate(
        self,
        prompt: Prompt,
        n: int = 1,
        *,
        temperature: float,
        seed: int,
        max_tokens: int | None = None,
        name: str = "",
    ) -> list[Action]:
        """As `Generator.generate`. Where the server draws one sample a request, sample i has a seed made of `seed` and i."""

        async def draw(count: int, seed: int) -> list[Choice]:
            asked = self._payload(prompt, max_tokens, temperature) | {"seed": seed, "n": count}
            return (await self._complete(asked | self._reporting(0), name)).choices[:count]

        samples = await draw(n if "n" not in self._without else 1, seed)
        if len(samples) < n:
            if "n" not in self._without and len(samples) == 1:
                self._give_up("n")
            left = [asyncio.ensure_future(draw(1, _mixed(seed, i))) for i in range(len(samples), n)]
            try:
                samples += [choice for found in await asyncio.gather(*left) for choice in found]
            finally:
                for task in left:
                    task.cancel()
        return [Action(self._text(c), c.tokens, c.logprob, c.finish) for c in samples]

    async def choose(self, prompt: Prompt, options: Sequence[str], *, name: str = "") -> Answer | None:
        """As `Generator.choose`: from the log-probabilities of the first token, if the options are among the likely ones; else from a
        tool call, if the server offers them; else from the text, whose last line must name one number.

        Options are the numbers from 1 on.
        """
        asked = self._payload(prompt, None, 0.0)
        asked.pop("return_tokens_as_token_ids", None)  # texts of tokens are looked for
        single = all(len(option) == 1 for option in options)  # of "12" the first token may be "1"
        if single and "logprobs" not in self._without:
            [choice, *_] = (await self._complete(asked | self._reporting(_TOP), name)).choices
            if (found := first_token_logprobs(choice.first, options)) is not None:
                return Answer(found[0], "logprobs", found[1])
            if (number := chosen(choice.text, len(options))) is not None:
                return _one(number, options, "text")
        if "tools" not in self._without and "messages" in asked:
            [choice, *_] = (await self._complete(asked | _tool(options), name)).choices
            if choice.arguments:
                return _one(_argument(choice.arguments, len(options)), options, "tool")
        elif single and "logprobs" not in self._without:
            return None  # this very request has just been made
        else:
            [choice, *_] = (await self._complete(asked, name)).choices
        return _one(chosen(choice.text, len(options)), options, "text")

    async def check(self) -> None:
        """Makes sure, before a run begins, that the server answers, takes the key and has the model; learns how much it reads.

        Raises:
          UserError: it does not.
        """
        try:
            try:
                rows = await self._client.ask("/models", None, _rows, retries=1)
            except (Refused, GoneError, GenerationFailure):
                rows = []  # not every server lists its models
            known = {str(row.get("id")): row for row in rows}
            if self.model in known:  # some servers take names that they do not list
                length = known[self.model].get("max_model_len")
                self.context = self.context or (length if isinstance(length, int) and length > 0 else 0)
                return
            try:
                prompt = [Message("user", "1")]
                await self._complete(self._payload(prompt, 1, 0.0), "")
            except GoneError as error:
                close = difflib.get_close_matches(self.model, known, 3, 0.3) or list(known)[:3]
                hint = f"; it has {', '.join(close)}" if close else ""
                raise UserError(f"{error}{hint}") from error
            except (GenerationFailure, TooLong) as error:
                raise UserError(str(error)) from error
            self.usage.clear()
        finally:
            await self._client.aclose()

    async def aclose(self) -> None:
        """Ends the connections to the server."""
        await self._client.aclose()

    # --- One request -------------------------------------------------------------------------------------------------------

    def _ids(self, prompt: Prompt) -> np.ndarray:
        if isinstance(prompt, np.ndarray):
            return prompt
        assert self.chat is not None
        return self.chat.prompt(prompt).tokens

    def _text(self, choice: Choice) -> str:
        """The text of a reply: of its ids as our engine would give it, so that the ids are known again as its own."""
        return self.chat.decode(choice.tokens) if self.chat and choice.tokens else choice.text

    def _payload(self, prompt: Prompt, max_tokens: int | None, temperature: float) -> dict[str, JSON]:
        asked: dict[str, JSON] = {
            "model": self.model,
            "max_tokens": max_tokens or self._max_tokens,
            "temperature": temperature,
        }
        if self.chat is None and not isinstance(prompt, np.ndarray):
            return asked | {"messages": [{"role": m.role, "content": m.content} for m in prompt]}
        ids = self._ids(prompt)
        if self.context and len(ids) + asked["max_tokens"] > self.context:
            raise TooLong(
                f"a prompt of {len(ids)} tokens leaves no room for {asked['max_tokens']} more in {self.context}"
            )
        asked |= {"prompt": ids.tolist(), "return_tokens_as_token_ids": True}
        return asked if self.chat is None else asked | {"stop_token_ids": [self.chat.end_id]}

    def _reporting(self, top: int) -> dict[str, JSON]:
        """Fields that ask for log-probabilities, of the sampled tokens and of the `top` likeliest."""
        if self.chat is not None:
            return {"logprobs": top or 1}
        return {"logprobs": True} | ({"top_logprobs": top} if top else {})

    async def _complete(self, asked: dict[str, JSON], name: str) -> Answered:
        """The answer to a request, less what the server has refused before or refuses now. Raises TooLong, GenerationFailure."""
        path = "/chat/completions" if "messages" in asked else "/completions"
        refused: list[str] = []
        while True:
            try:
                answer = await self._client.ask(path, self._offered(asked, refused), read)
                break
            except Refused as error:
                if error.status == 413 or _TOO_LONG.search(error.message):
                    raise TooLong(f"{self._client.url}: {error.message}") from error
                if (feature := self._culprit(error.message, asked, refused)) is None:
                    raise self._failure(path, error) from error
                refused.append(feature)
        self._answered = True
        for feature in refused:
            self._give_up(feature)
        self.usage[name].add(answer.prompt_tokens, answer.completion_tokens)
        return answer

    def _offered(self, asked: dict[str, JSON], refused: Sequence[str]) -> dict[str, JSON]:
        without = {*self._without, *refused}
        gone = {field for feature in without for field in _FEATURES[feature][0]}
        payload = {field: value for field, value in asked.items() if field not in gone}
        if payload.get("n") == 1:
            del payload["n"]
        return payload | ({"max_completion_tokens": asked["max_tokens"]} if "max_tokens" in without else {})

    def _culprit(self, message: str, asked: dict[str, JSON], refused: Sequence[str]) -> str | None:
        """The feature that a refusal is about: one that it names, else the first that can be done without; None if there is none."""
        sent = self._offered(asked, refused)
        left = [name for name, (fields, _, _) in _FEATURES.items() if any(field in sent for field in fields)]
        named = [name for name in left if re.search(_FEATURES[name][1], message, re.IGNORECASE | re.DOTALL)]
        return next((name for name in [*named, *left] if name != "max_tokens" or name in named), None)

    def _failure(self, path: str, error: Refused) -> Exception:
        text = f"{self._client.url}{path} refuses a request of {self.model} ({error})"
        if self._answered:
            return GenerationFailure(text)
        return UserError(f"{text}; it has answered none so far: correct the model's name or the settings")

    def _give_up(self, feature: str) -> None:
        if feature not in self._without:
            self._without.add(feature)
            if said := _FEATURES[feature][2]:
                self._note(f"{self._client.url} does not offer {feature} for {self.model}; {said}")


def _rows(answer: dict[str, JSON]) -> list[dict[str, Any]]:
    rows = answer.get("data")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _mixed(seed: int, sample: int) -> int:
    """A seed in [0, 2^31) of a further sample."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{sample}".encode(), digest_size=4).digest(), "big") >> 1


def _tool(options: Sequence[str]) -> dict[str, JSON]:
    """Fields that make the model call a function with one of the options, which are whole numbers."""
    number = {"type": "integer", "enum": [int(option) for option in options]}
    parameters = {"type": "object", "properties": {"number": number}, "required": ["number"]}
    function = {"name": "answer", "description": "Gives the number that is the answer.", "parameters": parameters}
    return {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "answer"}},
    }


def _argument(text: str, count: int) -> int | None:
    """The number in a tool call's arguments, if it is one of 1 to `count`."""
    try:
        number = json.loads(clean(text))["number"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    number = int(number) if isinstance(number, float) and number.is_integer() else number
    number = int(number) if isinstance(number, str) and number.strip().isdecimal() else number
    fine = isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= count
    return number if fine else None


def _one(number: int | None, options: Sequence[str], how: Any) -> Answer | None:
    """The answer that is option `number`, counted from 1, and no other."""
    if number is None:
        return None
    return Answer(tuple(0.0 if i == number else -float("inf") for i in range(1, len(options) + 1)), how)
