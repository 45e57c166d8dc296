"""The one place where conversations become token segments.

A chat template is usable if every conversation is rendered as a prefix of its continuations; then a turn can be
tokenised once, when it appears, and never again. That is checked when a template is loaded, and refused with a reason if not.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agentrm_jax import rendering
from agentrm_jax import tokenizer as tokenizers
from agentrm_jax.templates import CHATML, Template
from agentrm_jax.tree import Segment
from agentrm_jax.types import JSON, Message, UserError

_PROBE = "reply one"  # an assistant turn that is asked for what a template writes after it
KEEP = "keep"  # instead of a template: the tokenizer's own, with turns that stay as they were written


@dataclasses.dataclass(frozen=True, eq=False)
class Chat:
    """A tokenizer with a checked chat template.

    Attributes:
      tokenizer: a `transformers` fast tokenizer.
      end_of_turn: text of the token that ends an assistant turn.
      end_id: its id; the last token of every action segment.
      tail: what the template writes after the end-of-turn token, before the next message.
      header: a rendered beginning of a conversation that ends where an assistant turn begins.
      lead: what the template writes between header and content, usually nothing or a blank; part of the tokenised action.
      alternates: the template refuses two messages of one role in a row, so they are merged.
      system: the template has a system role; otherwise system text is put before the first user message.
      template: the compiled template.
      advice: what to do about a conversation that the template cannot render.
      trust_special_tokens: special tokens that are written in contents are read as such, so that contents can begin and end
        turns; otherwise they are plain text.
      keeps_turns: every turn stays as the template wrote it when it was the newest one, also where the template would write it
        differently later (without its thought, say).
    """

    tokenizer: Any
    end_of_turn: str
    end_id: int
    tail: str
    header: str
    lead: str
    alternates: bool
    system: bool
    template: Template
    advice: str
    trust_special_tokens: bool = False
    keeps_turns: bool = False

    @property
    def date(self) -> str | None:
        """The date (ISO) that the template writes into every prompt; None if it does not ask for one."""
        return self.template.date

    @functools.cached_property
    def size(self) -> int:
        """Highest id of the tokenizer + 1: the rows an embedding must have."""
        return max(self.tokenizer.get_vocab().values()) + 1

    @functools.cached_property
    def closing(self) -> Segment:
        """What the template writes after an end-of-turn token at the end of a conversation; often a line break, or nothing."""
        return Segment(self.encode(self.tail, after=self.end_of_turn), "observation")

    def prompt(self, messages: Sequence[Message], tools: Sequence[JSON] = ()) -> Segment:
        """Everything before the first generated turn, with its generation header. Earlier assistant turns are context."""
        text = self._render(self._fit(messages), generate=True, tools=self._marked_tools(tools))
        return Segment(self.encode(text), "prompt")

    def action(self, text: str, loss: bool = True) -> Segment:
        """An assistant turn: content and exactly one end-of-turn token (more only if special tokens in contents are trusted)."""
        return self._action(self.lead + self._marked(text.strip()) + self.end_of_turn, loss)

    def sampled(self, tokens: Sequence[int], loss: bool = True) -> Segment:
        """An assistant turn exactly as a policy with this tokenizer sampled it; closed if it was cut off."""
        ids = np.asarray(tokens, np.int32)
        if len(ids) == 0 or ids[-1] != self.end_id:
            ids = np.append(ids, np.int32(self.end_id))
        return Segment(ids, "action", loss)

    def observation(self, *contents: str) -> Segment:
        """User messages after an assistant turn, from the end of that turn to the next generation header."""
        text = self._between(self._fit([Message("user", c) for c in contents]))
        return Segment(self.encode(text, after=self.end_of_turn), "observation")

    def conversation(self, messages: Sequence[Message], tools: Sequence[JSON] = ()) -> list[Segment]:
        """A whole conversation as segments; assistant turns keep their `loss`. Text after the last assistant turn is dropped.

        Turns before the first one with loss (an opening "OK") are context, part of the prompt, as they are when acting; a
        conversation in which no turn has loss begins with its first assistant turn.

        Args:
          tools: schemas of the functions that the assistant may call.

        Raises:
          UserError: the conversation has no assistant turn, the template rewrites earlier turns of it, or leaves something out.
        """
        messages, tools = self._fit(messages), self._marked_tools(tools)
        turns = [i for i, m in enumerate(messages) if m.role == "assistant"]
        if not turns:
            raise UserError("a conversation without an assistant turn cannot be scored or learned from")
        if turns[0] == 0:
            raise UserError("a conversation begins with a system or user message, this one with an assistant turn")
        first = next((i for i in turns if messages[i].loss), turns[0])
        segments: list[Segment] = []
        done, last = "", -1
        for i in turns[turns.index(first) :]:
            header = self._render(messages[:i], generate=True, tools=tools)
            text = self._turn(messages[: i + 1], header, tools)
            between = messages[last + 1 : i]
            if header.startswith(done):
                context = header[len(done) :]
            elif self.keeps_turns:
                context = self._between(between)
            else:
                raise UserError(
                    f"the chat template rewrites turns of this conversation before message {i}; {self.advice}"
                )
            if tools and not segments:
                self._require_tools(tools, context, without=self._render(messages[:i], generate=True))
            self._require_all(between, context)
            self._require_all(messages[i : i + 1], text)
            ids = self.encode(context, after=self.end_of_turn if segments else "")
            segments.append(Segment(ids, "observation" if segments else "prompt"))
            segments.append(self._action(text, messages[i].loss))
            done, last = header + text, i
        return segments

    def encode(self, text: str, after: str = "") -> np.ndarray:
        """Ids of a piece of rendered text (special tokens in it are recognised, none are added): int32[t].

        `after` is what comes before it: SentencePiece-style tokenizers write a blank at the start of a text, but not there.
        """
        return tokenizers.encode(self.tokenizer, text, after)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Text of an assistant turn's tokens, without end-of-turn and other special tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()

    def _action(self, text: str, loss: bool) -> Segment:
        """An assistant turn of its rendered text, lead and end of turn included."""
        ids = self.encode(text, after=self.header)
        assert ids[-1] == self.end_id, "checked when the template was loaded"
        return Segment(ids, "action", loss)

    def _turn(self, messages: Sequence[Message], header: str, tools: Sequence[JSON]) -> str:
        """The last of some messages, an assistant turn, as the template writes it after `header`, up to its end-of-turn token."""
        whole, after = self._render(messages, generate=False, tools=tools), self.end_of_turn + self.tail
        if not whole.startswith(header) or not whole.endswith(after):
            raise UserError(
                f"the chat template does not write message {len(messages) - 1} between its usual header and end; {self.advice}"
            )
        return whole[len(header) : len(whole) - len(self.tail)]

    def _between(self, messages: Sequence[Message]) -> str:
        """What the template writes from the end of an assistant turn, over `messages`, to the next generation header."""
        before = (Message("user", "x"), Message("assistant", _PROBE))
        text = self._render([*before, *messages], generate=True)
        _, found, rest = text.rpartition(_PROBE + self.end_of_turn)
        if not found:
            raise UserError(f"the chat template leaves out assistant turns; {self.advice}")
        return rest

    def _require_all(self, messages: Sequence[Message], text: str) -> None:
        """Raises UserError if a piece of rendered text leaves out something that its messages hold."""
        if name := rendering.missing(messages, text):
            raise UserError(f"the chat template leaves out {name}; {self.advice}")

    def _require_tools(self, tools: Sequence[JSON], text: str, without: str) -> None:
        """Raises UserError if a prompt does not tell of all tools."""
        if name := rendering.missing_tools(tools, text, without):
            raise UserError(f"the chat template does not tell of tools (of {name}); {self.advice}")

    def _render(self, messages: Sequence[Message], generate: bool, tools: Sequence[JSON] = ()) -> str:
        try:
            return _render(self.template, self.tokenizer, messages, generate, tools)
        except UserError as error:
            raise UserError(f"{error}; {self.advice}") from error

    def _marked_tools(self, tools: Sequence[JSON]) -> list[JSON]:
        return [rendering.each_text(tool, self._marked) for tool in tools]

    def _marked(self, content: str) -> str:
        return content if self.trust_special_tokens else tokenizers.mark(self.tokenizer, content)

    def _fit(self, messages: Sequence[Message]) -> list[Message]:
        """Messages as the template accepts them, special tokens in their contents marked as text."""
        out = list(messages)
        if out and out[0].role == "system" and not self.system:
            told = out[1:2] if len(out) > 1 and out[1].role == "user" else []
            first = "\n\n".join(m.content for m in (out[0], *told))
            out = [Message("user", first), *out[1 + len(told) :]]
        if self.alternates:
            merged: list[Message] = []
            for m in out:
                if merged and merged[-1].role == m.role and not merged[-1].more and not m.more:
                    text = merged[-1].content + "\n\n" + m.content
                    merged[-1] = Message(m.role, text, merged[-1].loss or m.loss)
                else:
                    merged.append(m)
            out = merged
        return [rendering.marked(m, self._marked) for m in out]


def load_chat(
    tokenizer: Any,
    template: str = "",
    *,
    date: str = "",
    rows: int = 0,
    trust_special_tokens: bool = False,
    flag: str = "--config.chat_template",
) -> Chat:
    """Checks a tokenizer's chat template and learns its parts.

    `template` is another one to use: the word `chatml`, a file, or the text itself; or the word `keep`, for the tokenizer's own where
    it rewrites earlier turns (`Chat.keeps_turns`). `date` (ISO, default: today) is what a template
    that reads the clock is told, always the same one. `rows` are the rows of the model's embedding, if known: a padding token may be
    added below them. `trust_special_tokens`: see `Chat`. `flag` is the command's flag for `template`, for messages.

    Raises:
      UserError: no template, the template does not keep prefixes or alters contents, or pad and end-of-turn are one token.
    """
    keeps = template == KEEP
    if template and not keeps:
        tokenizer.chat_template = _template(template, flag)
    source = getattr(tokenizer, "chat_template", None)
    if isinstance(source, dict):  # several named ones
        source = source.get("default")
    advice = _advice(tokenizer, source, flag)
    if not source:
        raise UserError(f"the tokenizer has no chat template; {advice}")
    try:
        compiled = Template(source, date)
        header, lead, after = _parts(compiled, tokenizer, keeps)
        stops = [t for t in tokenizer.all_special_tokens if after.lstrip().startswith(t)]
        if not stops:
            raise UserError(f"the chat template ends no assistant turn with a special token (found {after!r})")
        stop = max(stops, key=len)
        blank, _, tail = after.partition(stop)
        end_id = tokenizer.convert_tokens_to_ids(stop)
        if end_id not in tokenizers.ids_of(tokenizer, after):
            raise UserError(f"the end-of-turn text {stop!r} is not one token of this tokenizer")
    except UserError as error:
        raise UserError(f"{error}; {advice}") from error
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == end_id:
        _separate_pad(tokenizer, end_id, rows)
    ask, answer = Message("user", "ask one"), Message("assistant", "Thought: reply one.\nAction: go")
    return Chat(
        tokenizer=tokenizer,
        end_of_turn=blank + stop,
        end_id=end_id,
        tail=tail,
        header=header,
        lead=lead,
        alternates=not _accepts(compiled, tokenizer, [ask, Message("user", "ask two"), answer]),
        system=_accepts(compiled, tokenizer, [Message("system", "be brief"), ask, answer], "be brief"),
        template=compiled,
        advice=advice,
        trust_special_tokens=trust_special_tokens,
        keeps_turns=keeps,
    )


def _template(name: str, flag: str) -> str:
    if name == "chatml":
        return CHATML
    if "{" in name:
        return name
    try:
        return Path(name).read_text()
    except (OSError, ValueError) as error:
        raise UserError(f"{flag}={name}: neither chatml nor a file that can be read ({error})") from error


def _advice(tokenizer: Any, source: str | None, flag: str) -> str:
    """What helps against a template that does not do: chatml if the tokenizer has its tokens and it is not the one in use."""
    if source != CHATML and "<|im_end|>" in tokenizer.all_special_tokens:
        return f"set {flag}=chatml or to a template file"
    ends = [t for t in tokenizer.all_special_tokens if t not in (tokenizer.bos_token, tokenizer.unk_token)]
    which = f"with one of {', '.join(ends[:5])}" if ends else "with a special token, of which this tokenizer has none"
    return f"set {flag} to a template file that ends assistant turns {which}"


def _parts(template: Template, tokenizer: Any, keeps: bool) -> tuple[str, str, str]:
    """(header, lead, what follows an assistant turn) of a template.

    Args:
      keeps: turns stay as they were written when they were the newest, so the template may write earlier ones as it likes.

    Raises:
      UserError: the template does not keep prefixes, or alters contents.
    """
    u1, a1 = Message("user", "ask one"), Message("assistant", "Thought: reply one.\nAction: go")
    u2, a2 = Message("user", "ask two"), Message("assistant", "reply two")
    texts = [_render(template, tokenizer, s, False) for s in ([u1], [u1, a1], [u1, a1, u2], [u1, a1, u2, a2])]
    for shorter, longer in itertools.pairwise(texts):
        if not keeps and not longer.startswith(shorter):
            raise UserError(
                "the chat template does not keep prefixes (a later turn changes an earlier one); "
                f"{KEEP} instead of it keeps every turn as it was written"
            )
    header = lead = after = None
    for messages, full, answer in (([u1], texts[1], a1), ([u1, a1, u2], texts[3], a2)):
        header = _render(template, tokenizer, messages, True)
        if not full.startswith(header):
            raise UserError("the chat template's generation prompt is no prefix of the answered conversation")
        before, found, rest = full[len(header) :].partition(answer.content)
        differs = lead is not None and (lead, after) != (before, rest)
        if not found or (before.strip() and not keeps) or differs:
            raise UserError("the chat template alters the text of assistant turns")
        lead, after = before, rest
    assert header is not None
    assert lead is not None
    assert after is not None
    return header, lead, after


def _separate_pad(tokenizer: Any, end_id: int, rows: int) -> None:
    """Gives padding a token of its own: readers of 'the last token that is not padding' would skip the end of turn.

    In this order: a special token that is made for it, another special token, a token of the vocabulary that no text gives, the
    beginning of text (which ends none), and a new token, if the embedding has a row for it. Ids without a row are never taken.
    """
    vocabulary = {t: i for t, i in tokenizer.get_vocab().items() if not rows or i < rows}
    special_ids = tokenizers.special_ids(tokenizer) - {end_id}
    special = [t for t in sorted(vocabulary, key=vocabulary.__getitem__) if vocabulary[t] in special_ids]
    made = [t for t in special if "pad" in t.lower() or "finetune" in t.lower()]
    other = [t for t in special if t not in (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)]
    unused = sorted(t for t in vocabulary if re.fullmatch(r"[<\[]\W?(?:unused|reserved|extra_id)\w*\W?[>\]]", t))
    beginning = [t for t in (tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token) if t in special]
    free = ["<|pad|>"] if max(tokenizer.get_vocab().values()) + 1 < rows else []
    named = [*made, *other, *unused, *beginning, *free]
    if not named:
        raise UserError(
            f"padding and end of turn are the same token, {tokenizer.pad_token}, and the tokenizer has no other one to pad with; "
            "set pad_token in its tokenizer_config.json to a token that no text contains"
        )
    if named == free:
        tokenizer.add_special_tokens({"pad_token": named[0]})
    tokenizer.pad_token = named[0]


def _render(
    template: Template, tokenizer: Any, messages: Sequence[Message], generate: bool, tools: Sequence[JSON] = ()
) -> str:
    rows = [rendering.row(m) for m in messages]
    return template.render(rows, generate=generate, tools=tools, **tokenizer.special_tokens_map)


def _accepts(template: Template, tokenizer: Any, messages: Sequence[Message], shows: str = "") -> bool:
    """Whether the template renders these messages (and `shows` appears in the text)."""
    try:
        return shows in _render(template, tokenizer, messages, False)
    except UserError:
        return False
