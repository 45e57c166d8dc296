"""/v1/search: several answers to a conversation, the best by the reward model first. No environment is needed.

Best-of-n draws whole answers. Beam search draws them piece by piece (a piece ends with a delimiter, an empty line for instance): every
round the reward model scores each answer as far as it goes, as if it ended there, and the best are continued.
"""

import asyncio
import dataclasses
import math
import time
from collections.abc import Sequence

import numpy as np
from starlette.requests import Request

from agentrm_jax.data.conversations import Conversation
from agentrm_jax.data.messages import context
from agentrm_jax.engine.requests import SamplingParams
from agentrm_jax.search import aggregate as aggregation
from agentrm_jax.serving.completions import conversation
from agentrm_jax.serving.contracts import Searched, read
from agentrm_jax.serving.exchange import Answer, body_of
from agentrm_jax.serving.faults import ServingError
from agentrm_jax.serving.limits import Limits
from agentrm_jax.serving.scorer import Scorer
from agentrm_jax.serving.values import require_model
from agentrm_jax.serving.writer import Writer
from agentrm_jax.text import clean
from agentrm_jax.types import JSON, Message


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """An answer, or its beginning.

    Attributes:
      tokens: int32[m] sampled so far.
      finish: why it ended; empty if it has not.
      score: NaN if it has none.
    """

    tokens: np.ndarray
    text: str
    finish: str
    score: float = math.nan


class Search:
    """What is asked of policy and reward model together."""

    def __init__(self, writer: Writer, scorer: Scorer, limits: Limits):
        self._writer, self._scorer, self._limits = writer, scorer, limits

    async def search(self, request: Request, ident: str) -> Answer:
        """Answers to a conversation as `choices`, the one to take first, each with its score."""
        asked = read(Searched, await body_of(request))
        require_model(asked.model, self._writer.name)
        if asked.aggregate is not None:
            aggregation.check(asked.aggregate)
        drawn = asked.n if asked.method == "best_of_n" else asked.width * asked.branch
        if drawn > self._limits.items:
            raise ServingError(400, f"{drawn} answers; at most {self._limits.items} are drawn at once")
        messages = context(conversation(asked.messages))
        texts = self._writer.texts
        path = await texts.on_thread(lambda: texts.chat.prompt(messages).tokens)
        room = self._writer.room(path, asked.max_tokens)
        one = _One(self._writer, self._scorer, asked, messages, path, room)
        found = await (one.best_of_n() if asked.method == "best_of_n" else one.beam())
        ranked = aggregation.rank([candidate.score for candidate in found])
        counts = {"prompt_tokens": len(path), "completion_tokens": one.written, "reward_tokens": one.valued}
        return {
            "id": f"search-{ident}",
            "object": "search",
            "created": int(time.time()),
            "model": self._writer.name,
            "reward_model": self._scorer.name,
            "method": asked.method,
            "choices": [_row(rank, i, found[i]) for rank, i in enumerate(ranked)],
            "usage": counts | {"total_tokens": len(path) + one.written},
        }


class _One:
    """One search.

    Attributes:
      written: tokens that were sampled; `valued`: tokens that were read for scores.
    """

    def __init__(
        self,
        writer: Writer,
        scorer: Scorer,
        asked: Searched,
        messages: Sequence[Message],
        path: np.ndarray,
        room: int,
    ):
        self._writer, self._scorer, self._asked = writer, scorer, asked
        self._messages, self._path, self._room = tuple(messages), path, room
        self.written = self.valued = 0

    async def best_of_n(self) -> list[Candidate]:
        start = Candidate(np.zeros(0, np.int32), "", "")
        return await self._scored(await self._continued(start, self._asked.n, ()))

    async def beam(self) -> list[Candidate]:
        """As `search.beam`: a finished answer keeps its slot, and those under way compete for the rest."""
        asked, stop = self._asked, (self._asked.delimiter,)
        start = Candidate(np.zeros(0, np.int32), "", "")
        drawn = await self._continued(start, asked.width * asked.branch, stop)
        kept = await self._best(drawn, asked.width)
        for _ in range(1, asked.max_rounds):
            live = [candidate for candidate in kept if not candidate.finish]
            if not live:
                break
            done = [candidate for candidate in kept if candidate.finish]
            drawn = [
                c
                for several in await asyncio.gather(*(self._continued(c, asked.branch, stop) for c in live))
                for c in several
            ]
            kept = done + await self._best(drawn, asked.width - len(done))
        finished = [candidate for candidate in kept if candidate.finish]
        return finished + [dataclasses.replace(c, finish="length") for c in kept if not c.finish]

    async def _best(self, drawn: Sequence[Candidate], count: int) -> list[Candidate]:
        """The best of some candidates; of those with one text, the first only."""
        scored = await self._scored(list({candidate.text: candidate for candidate in reversed(drawn)}.values())[::-1])
        return [scored[i] for i in aggregation.rank([c.score for c in scored])[:count]]

    async def _continued(self, start: Candidate, n: int, stop: tuple[str, ...]) -> list[Candidate]:
        left = self._room - len(start.tokens)
        asked = self._asked
        params = SamplingParams(
            temperature=asked.temperature, n=n, seed=asked.seed, max_tokens=left, stop=stop, top_p=asked.top_p
        )
        path = np.concatenate([self._path, start.tokens])
        texts, out = self._writer.texts, []
        for sample in await self._writer.generate(path, params):
            self.written += len(sample.tokens)
            tokens = np.concatenate([start.tokens, sample.tokens])
            ended = sample.finished and sample.stop is None
            finish = "stop" if ended else "length" if len(tokens) >= self._room else ""
            text = texts.decode(tokens.tolist()).removeprefix(texts.chat.lead)
            out.append(Candidate(tokens, text, finish or ("" if stop else "length")))
        return out

    async def _scored(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        rows = [
            Conversation(i, (*self._messages, Message("assistant", clean(c.text), loss=True)), "trl", {}, f"answer {i}")
            for i, c in enumerate(candidates)
        ]
        found = await self._scorer.score(rows, self._asked.aggregate)
        self.valued += sum(one.tokens for one in found)
        return [dataclasses.replace(c, score=one.score) for c, one in zip(candidates, found, strict=True)]


def _row(rank: int, sample: int, found: Candidate) -> JSON:
    score = found.score if math.isfinite(found.score) else None
    message = {"role": "assistant", "content": found.text}
    return {"index": rank, "sample": sample, "score": score, "message": message, "finish_reason": found.finish}
