"""Samples as OpenAI's endpoints write them: texts, reasons, log-probabilities; whole, or what is new of them."""

import dataclasses
import math
from collections.abc import Sequence

from agentrm_jax.engine.requests import Completion
from agentrm_jax.serving.contracts import Sampled
from agentrm_jax.serving.texts import Texts
from agentrm_jax.types import JSON

_LEAST = -9999.0  # stands for a log-probability of minus infinity, which is no JSON number


@dataclasses.dataclass(frozen=True)
class Style:
    """How samples are written.

    Attributes:
      chat: as messages, else as texts.
      stops: texts that end a sample and are left out of it, unless `keeps_stop`.
      logprobs: whether log-probabilities are reported, with the `top` likeliest tokens.
      as_ids: tokens are written as `token_id:ID`; `with_ids`: their ids are reported.
    """

    chat: bool
    stops: tuple[str, ...]
    keeps_stop: bool
    logprobs: bool
    top: int
    as_ids: bool
    with_ids: bool

    @classmethod
    def of(cls, asked: Sampled, *, chat: bool, logprobs: bool, top: int) -> "Style":
        return cls(
            chat,
            asked.stops,
            bool(asked.include_stop_str_in_output),
            logprobs,
            top,
            bool(asked.return_tokens_as_token_ids),
            bool(asked.return_token_ids),
        )


def text_of(sample: Completion, texts: Texts, style: Style) -> str:
    """The text of a sample, up to where it was stopped."""
    text = texts.decode(sample.tokens.tolist())
    if sample.stop is not None:
        end = text.index(sample.stop)
        text = text[: end + len(sample.stop) if style.keeps_stop else end]
    return text.removeprefix(texts.chat.lead) if style.chat else text


def choice(index: int, sample: Completion, texts: Texts, style: Style) -> JSON:
    """One entry of `choices`."""
    text = text_of(sample, texts, style)
    row: dict[str, JSON] = {"index": index}
    if style.chat:
        row["message"] = {"role": "assistant", "content": text, "refusal": None}
    else:
        row["text"] = text
    row["logprobs"] = logprobs(sample, 0, 0, texts, style) if style.logprobs else None
    row["finish_reason"], row["stop_reason"] = reason(sample), sample.stop
    return row | ({"token_ids": sample.tokens.tolist()} if style.with_ids else {})


def reason(sample: Completion) -> str:
    """Why a sample ended."""
    return "stop" if sample.finished else "length"


def logprobs(sample: Completion, first: int, offset: int, texts: Texts, style: Style) -> JSON:
    """Log-probabilities of the tokens of a sample from index `first` on.

    Args:
      offset: characters before the first of them, for texts.
    """

    def name(token: int) -> str:
        return f"token_id:{token}" if style.as_ids else texts.token(token)

    rows = []
    for i in range(first, len(sample.tokens)):
        token, own = int(sample.tokens[i]), _finite(float(sample.logprobs[i]))
        likely: list[tuple[int, float]] = []
        if style.top and sample.top is not None:
            ids, values = sample.top
            likely = [(int(t), _finite(float(p))) for t, p in zip(ids[i], values[i], strict=True)][: style.top]
        rows.append((token, own, likely))
    if style.chat:
        content = [
            {
                **_entry(name(t), p, texts.token(t)),
                "top_logprobs": [_entry(name(u), q, texts.token(u)) for u, q in likely],
            }
            for t, p, likely in rows
        ]
        return {"content": content, "refusal": None}
    offsets, at = [], offset
    for token, _, _ in rows:
        offsets.append(at)
        at += len(texts.token(token))
    tops = [{name(u): q for u, q in [*likely, (t, p)]} for t, p, likely in rows]
    return {
        "tokens": [name(t) for t, _, _ in rows],
        "token_logprobs": [p for _, p, _ in rows],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def usage(prompt: int, samples: Sequence[Completion]) -> JSON:
    """Tokens given and written."""
    written = sum(len(sample.tokens) for sample in samples)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


class Unsent:
    """What of one sample a stream has not sent yet. A text that may turn out to begin a stop text, or half a character, waits."""

    def __init__(self, index: int, texts: Texts, style: Style):
        self._index, self._texts, self._style = index, texts, style
        self._characters = self._tokens = 0
        self._begun = self._ended = False

    def news(self, sample: Completion, last: bool) -> list[JSON]:
        """Entries of `choices` for what is new of the sample; none if nothing is. `last`: the sample is whole."""
        if self._ended:
            return []
        style, first = self._style, self._tokens
        text = text_of(sample, self._texts, style)
        safe = text if last else self._safe(text)
        new, self._characters = safe[self._characters :], max(len(safe), self._characters)
        reports = style.logprobs or style.with_ids
        grown = reports and len(sample.tokens) > first
        rows: list[JSON] = []
        if style.chat and not self._begun:
            opening = {"role": "assistant", "content": ""}
            rows.append({"index": self._index, "delta": opening, "logprobs": None, "finish_reason": None})
        self._begun, self._ended = True, last
        if new or grown or last:
            row: dict[str, JSON] = {"index": self._index}
            row |= {"delta": {"content": new} if new or not last else {}} if style.chat else {"text": new}
            offset = self._characters - len(new)
            row["logprobs"] = logprobs(sample, first, offset, self._texts, style) if style.logprobs and grown else None
            row["finish_reason"] = reason(sample) if last else None
            if last:
                row["stop_reason"] = sample.stop
            if style.with_ids:
                row["token_ids"] = sample.tokens[first:].tolist()
            rows.append(row)
        self._tokens = len(sample.tokens)
        return rows

    def _safe(self, text: str) -> str:
        """The beginning of a text that stays as it is, whatever comes."""
        lead = self._texts.chat.lead if self._style.chat else ""
        if lead.startswith(text):
            return ""
        kept = len(text.rstrip("\N{REPLACEMENT CHARACTER}"))
        for stop in self._style.stops:
            begun = next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
            kept = min(kept, len(text) - begun)
        return text[:kept]


def _entry(token: str, logprob: float, text: str) -> dict[str, JSON]:
    return {"token": token, "logprob": logprob, "bytes": list(text.encode())}


def _finite(value: float) -> float:
    return value if math.isfinite(value) else _LEAST
