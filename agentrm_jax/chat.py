"""The one place where conversations become token segments.

A chat template is usable if every conversation is rendered as a prefix of its continuations; then a turn can be
tokenised once, when it appears, and never again. That is checked when a template is loaded, and refused with a reason if not.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from agentrm_jax.tree import Segment
from agentrm_jax.types import Message, UserError

_FIX = "use another template, e.g. --config.chat_template=chatml"

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Chat:
    """A tokenizer with a checked chat template.

    Attributes:
      tokenizer: a `transformers` fast tokenizer.
      end_of_turn: text of the token that ends an assistant turn.
      end_id: its id; the last token of every action segment.
      tail: what the template writes after the end-of-turn token, before the next message.
      header: a rendered beginning of a conversation that ends where an assistant turn begins.
      lead: white space the template writes between header and content; part of the tokenised action.
      alternates: the template refuses two messages of one role in a row, so they are merged.
      system: the template has a system role; otherwise system text is put before the first user message.
    """

    tokenizer: Any
    end_of_turn: str
    end_id: int
    tail: str
    header: str
    lead: str
    alternates: bool
    system: bool

    def prompt(self, messages: Sequence[Message]) -> Segment:
        """Everything before the first generated turn, with its generation header. Earlier assistant turns are context."""
        text = _render(self.tokenizer, self._fit(messages), generate=True)
        return Segment(self.encode(text), "prompt")

    def action(self, text: str, loss: bool = True) -> Segment:
        """An assistant turn: content and exactly one end-of-turn token."""
        ids = self.encode(self.lead + text.strip() + self.end_of_turn, after=self.header)
        assert ids[-1] == self.end_id, "checked when the template was loaded"
        return Segment(ids, "action", loss)

    def sampled(self, tokens: Sequence[int], loss: bool = True) -> Segment:
        """An assistant turn exactly as a policy with this tokenizer sampled it; closed if it was cut off."""
        ids = np.asarray(tokens, np.int32)
        if len(ids) == 0 or ids[-1] != self.end_id:
            ids = np.append(ids, np.int32(self.end_id))
        return Segment(ids, "action", loss)

    def observation(self, *contents: str) -> Segment:
        """User messages after an assistant turn, from the end of that turn to the next generation header."""
        messages = tuple(Message("user", c) for c in contents)
        before = (Message("user", "x"), Message("assistant", "x"))
        prefix = _render(self.tokenizer, before, generate=False)
        text = _render(self.tokenizer, self._fit((*before, *messages)), generate=True)
        return Segment(self.encode(self.tail + text[len(prefix) :], after=self.end_of_turn), "observation")

    def conversation(self, messages: Sequence[Message]) -> list[Segment]:
        """A whole conversation as segments; assistant turns keep their `loss`. Text after the last assistant turn is dropped.

        Turns before the first one with loss (an opening "OK") are context, part of the prompt, as they are when acting; a
        conversation in which no turn has loss begins with its first assistant turn.

        Raises:
          UserError: the conversation has no assistant turn, or the template rewrites earlier turns of it.
        """
        messages = self._fit([_stripped(m) for m in messages])
        turns = [i for i, m in enumerate(messages) if m.role == "assistant"]
        if not turns:
            raise UserError("a conversation without an assistant turn cannot be scored or learned from")
        if turns[0] == 0:
            raise UserError("a conversation begins with a system or user message, this one with an assistant turn")
        first = next((i for i in turns if messages[i].loss), turns[0])
        segments: list[Segment] = []
        done = ""
        for i in turns[turns.index(first) :]:
            header = _render(self.tokenizer, messages[:i], generate=True)
            if not header.startswith(done):
                raise UserError(f"the chat template rewrites turns of this conversation before message {i}; {_FIX}")
            context = self.encode(header[len(done) :], after=self.end_of_turn if segments else "")
            segments.append(Segment(context, "observation" if segments else "prompt"))
            segments.append(self.action(messages[i].content, messages[i].loss))
            done = header + self.lead + messages[i].content + self.end_of_turn
        return segments

    def encode(self, text: str, after: str = "") -> np.ndarray:
        """Ids of a piece of rendered text (special tokens in it are recognised, none are added): int32[t].

        `after` is what comes before it: SentencePiece-style tokenizers write a blank at the start of a text, but not there.
        """
        if after and _adds_prefix(self.tokenizer):
            before, both = _ids(self.tokenizer, after), _ids(self.tokenizer, after + text)
            if both[: len(before)] == before:
                return np.asarray(both[len(before) :], np.int32)
        return np.asarray(_ids(self.tokenizer, text), np.int32)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Text of an assistant turn's tokens, without end-of-turn and other special tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()

    def _fit(self, messages: Sequence[Message]) -> list[Message]:
        """Messages as the template accepts them."""
        out = list(messages)
        if out and out[0].role == "system" and not self.system:
            told = out[1:2] if len(out) > 1 and out[1].role == "user" else []
            first = "\n\n".join(m.content for m in (out[0], *told))
            out = [Message("user", first), *out[1 + len(told) :]]
        if self.alternates:
            merged: list[Message] = []
            for m in out:
                if merged and merged[-1].role == m.role:
                    text = merged[-1].content + "\n\n" + m.content
                    merged[-1] = Message(m.role, text, merged[-1].loss or m.loss)
                else:
                    merged.append(m)
            out = merged
        return out


def _template(name: str) -> str:
    if name == "chatml":
        return CHATML
    if "{" in name:
        return name
    try:
        return Path(name).read_text()
    except OSError as error:
        raise UserError(
            f"--config.chat_template={name}: neither chatml nor a file that can be read ({error})"
        ) from error


def load_chat(tokenizer: Any, template: str = "") -> Chat:
    """Checks a tokenizer's chat template and learns its parts.

    `template` is another one to use: the word `chatml`, a file, or the text itself.

    Raises:
      UserError: no template, the template does not keep prefixes or alters contents, or pad and end-of-turn are one token.
    """
    if template:
        tokenizer.chat_template = _template(template)
    if not getattr(tokenizer, "chat_template", None):
        raise UserError("the tokenizer has no chat template; set --config.chat_template=chatml or to a template file")
    u1, a1 = Message("user", "ask one"), Message("assistant", "Thought: reply one.\nAction: go")
    u2, a2 = Message("user", "ask two"), Message("assistant", "reply two")

    steps = [[u1], [u1, a1], [u1, a1, u2], [u1, a1, u2, a2]]
    texts = [_render(tokenizer, s, generate=False) for s in steps]
    for shorter, longer in itertools.pairwise(texts):
        if not longer.startswith(shorter):
            raise UserError(f"the chat template does not keep prefixes (a later turn changes an earlier one); {_FIX}")
    header = lead = tail = after = None
    for messages, full, answer in (([u1], texts[1], a1), ([u1, a1, u2], texts[3], a2)):
        header = _render(tokenizer, messages, generate=True)
        if not full.startswith(header):
            raise UserError(f"the chat template's generation prompt is no prefix of the answered conversation; {_FIX}")
        before, found, rest = full[len(header) :].partition(answer.content)
        if not found or before.strip() or (lead is not None and (lead, after) != (before, rest)):
            raise UserError(f"the chat template alters the text of assistant turns; {_FIX}")
        lead, after = before, rest
    assert lead is not None
    assert after is not None
    assert header is not None
    stops = [t for t in tokenizer.all_special_tokens if after.lstrip().startswith(t)]
    if not stops:
        raise UserError(f"the chat template ends no assistant turn with a special token (found {after!r}); {_FIX}")
    stop = max(stops, key=len)
    blank, _, tail = after.partition(stop)
    end_of_turn = blank + stop
    end_id = tokenizer.convert_tokens_to_ids(stop)
    if end_id not in _ids(tokenizer, after):
        raise UserError(f"the end-of-turn text {stop!r} is not one token of this tokenizer; {_FIX}")
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == end_id:
        _separate_pad(tokenizer, end_id)
    return Chat(
        tokenizer=tokenizer,
        end_of_turn=end_of_turn,
        end_id=end_id,
        tail=tail,
        header=header,
        lead=lead,
        alternates=not _accepts(tokenizer, [u1, u2, a1]),
        system=_accepts(tokenizer, [Message("system", "be brief"), u1, a1], "be brief"),
    )


def _separate_pad(tokenizer: Any, end_id: int) -> None:
    """Gives padding a token of its own: readers of 'the last token that is not padding' would skip the end of turn."""
    candidates = [t for t in tokenizer.all_special_tokens if tokenizer.convert_tokens_to_ids(t) != end_id]
    named = [t for t in candidates if "pad" in t.lower() or "finetune" in t.lower()] or [
        t for t in candidates if t not in (tokenizer.bos_token, tokenizer.eos_token)
    ]
    if not named:
        raise UserError(
            "padding and end-of-turn are the same token, and the tokenizer has no other special token to pad with"
        )
    tokenizer.pad_token = named[0]


def _render(tokenizer: Any, messages: Sequence[Message], generate: bool) -> str:
    rows = [{"role": m.role, "content": m.content} for m in messages]
    try:
        return tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=generate)
    except jinja2.TemplateError as error:
        roles = ", ".join(m.role for m in messages)
        raise UserError(f"the chat template refuses messages with roles {roles}: {error}; {_FIX}") from error


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def _stripped(message: Message) -> Message:
    """Assistant turns without white space around them: some templates strip it, and so does `Chat.action`."""
    if message.role != "assistant":
        return message
    return dataclasses.replace(message, content=message.content.strip())


def _accepts(tokenizer: Any, messages: Sequence[Message], shows: str = "") -> bool:
    """Whether the template renders these messages (and `shows` appears in the text)."""
    try:
        return shows in _render(tokenizer, messages, generate=False)
    except Exception:  # templates refuse by raising whatever jinja raises
        return False


@functools.lru_cache(maxsize=16)
def _adds_prefix(tokenizer: Any) -> bool:
    """Whether encoding a text alone puts a blank before it that the same text has not in the middle of another."""
    line, both = _ids(tokenizer, "\n"), _ids(tokenizer, "\nx")
    return both[: len(line)] == line and both[len(line) :] != _ids(tokenizer, "x")
