"""The endpoints of a reward model: /score with our formats, /classify and /pooling as vLLM has them."""

import base64
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from starlette.requests import Request

from agentrm_jax.data import fields, files, labels
from agentrm_jax.data.conversations import Conversation
from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.scoring import Scored
from agentrm_jax.search import aggregate as aggregation
from agentrm_jax.serving.contracts import Pooled, Trajectories, Valued, read
from agentrm_jax.serving.exchange import Answer, Lines, body_of
from agentrm_jax.serving.faults import ServingError
from agentrm_jax.serving.limits import Limits
from agentrm_jax.serving.scorer import Scorer
from agentrm_jax.serving.texts import paths_of
from agentrm_jax.types import JSON, UserError


class Values:
    """What is asked of the reward model.

    Args:
      specs: environments whose records can be scored.
    """

    def __init__(self, scorer: Scorer, specs: Mapping[str, EnvSpec], limits: Limits):
        self._scorer, self._specs, self._limits = scorer, specs, limits

    # --- /score -----------------------------------------------------------------------------------------------------------

    async def score(self, request: Request, ident: str) -> Answer:
        """Step scores and aggregate of trajectories: a JSON object with `trajectories`, one trajectory, or lines of them.

        Lines are answered with the lines that `python -m agentrm_jax.score` prints.
        """
        raw, aggregate = await request.body(), request.query_params.get("aggregate")
        rows = self._lines(raw)
        if rows is None:
            value = await body_of(request)
            if isinstance(value, dict) and "trajectories" in value:
                asked = read(Trajectories, value)
                require_model(asked.model, self._scorer.name)
                listed, aggregate = asked.trajectories, asked.aggregate or aggregate
            else:
                listed = value if isinstance(value, list) else [value]
            rows = [(f"trajectories[{i}]", row) for i, row in enumerate(listed)]
            if len(rows) > self._limits.items:
                raise ServingError(413, f"{len(rows)} trajectories; at most {self._limits.items} are scored at once")
            scored = await self._scored(rows, aggregate)
            data = [one.to_json() for one in scored]
            usage = _usage(sum(one.tokens for one in scored))
            return {
                "model": self._scorer.name,
                "aggregate": aggregate or self._scorer.aggregate,
                "data": data,
                "usage": usage,
            }
        return Lines([one.to_json() for one in await self._scored(rows, aggregate)])

    def _lines(self, raw: bytes) -> list[tuple[str, JSON]] | None:
        """The rows of a body of JSON lines; None if it is one JSON value."""
        lines = [(i, line) for i, line in enumerate(raw.splitlines(), 1) if line.strip()]
        if len(lines) < 2 or not _is_object(lines[0][1]):
            return None
        if len(lines) > self._limits.items:
            raise ServingError(413, f"{len(lines)} lines; at most {self._limits.items} are scored at once")
        try:
            return [(f"line {i}", fields.parse(line, f"line {i}")) for i, line in lines]
        except UserError as error:
            raise ServingError(400, str(error)) from None

    async def _scored(self, rows: Sequence[tuple[str, JSON]], aggregate: str | None) -> list[Scored]:
        if aggregate is not None:
            aggregation.check(aggregate)
        found: list[Conversation] = []
        for number, (origin, row) in enumerate(rows, 1):
            found += _conversations(row, origin, number, self._specs)
        return await self._scorer.score(found, aggregate)

    # --- /classify and /pooling -------------------------------------------------------------------------------------------

    async def classify(self, request: Request, ident: str) -> Answer:
        """One probability or value for every input, in vLLM's form."""
        asked = read(Valued, await body_of(request))
        values, tokens = await self._valued(asked)
        data = [{"index": i, "label": "LABEL_0", "probs": [value], "num_classes": 1} for i, value in enumerate(values)]
        return self._list("classify", ident, data, tokens)

    async def pool(self, request: Request, ident: str) -> Answer:
        """The same as a list of one number for every input, or its bytes in base64."""
        asked = read(Pooled, await body_of(request))
        values, tokens = await self._valued(asked)
        write: Callable[[float], JSON] = lambda value: [value]  # noqa: E731
        if asked.encoding_format == "base64":
            little = asked.endianness == "little" or (asked.endianness == "native" and sys.byteorder == "little")
            kind = "<f4" if little else ">f4"
            write = lambda value: base64.b64encode(np.array([value], kind).tobytes()).decode()  # noqa: E731
        data = [{"index": i, "object": "pooling", "data": write(value)} for i, value in enumerate(values)]
        return self._list("pool", ident, data, tokens)

    def _list(self, prefix: str, ident: str, data: list[JSON], tokens: int) -> JSON:
        about = {"id": f"{prefix}-{ident}", "object": "list", "created": int(time.time()), "model": self._scorer.name}
        return {**about, "data": data, "usage": _usage(tokens)}

    async def _valued(self, asked: Valued) -> tuple[list[float], int]:
        """The values asked for, and how many tokens they are the values of.

        Raises:
          ServingError: there is nothing to value, or a value is no number.
        """
        require_model(asked.model, self._scorer.name)
        if (asked.input is None) == (asked.messages is None):
            raise ServingError(400, "the request needs one of input and messages")
        if asked.messages is not None:
            values, tokens = await self._conversation(asked)
        else:
            values, tokens = await self._inputs(asked)
        if missing := [i for i, value in enumerate(values) if math.isnan(value)]:
            raise ServingError(422, f"the model's value of input {missing[0]} is not a number")
        return ([_sigmoid(value) for value in values] if asked.activated else values), tokens

    async def _conversation(self, asked: Valued) -> tuple[list[float], int]:
        row = {"messages": asked.messages} | ({} if asked.tools is None else {"tools": asked.tools})
        [found] = _conversations(row, "messages", 0)
        if not found.messages or found.messages[-1].role != "assistant" or not found.messages[-1].loss:
            raise ServingError(
                400, "a reward model values what an assistant did: the last message must be its", param="messages"
            )
        [scored] = await self._scorer.score([found], "last")
        if scored.error:
            raise ServingError(400, scored.error, param="messages")
        return [scored.score], scored.tokens

    async def _inputs(self, asked: Valued) -> tuple[list[float], int]:
        inputs = paths_of(asked.input, "input", self._limits.items)
        paths = await self._scorer.texts.on_thread(lambda: [self._path(one, asked) for one in inputs])
        return await self._scorer.values(paths), sum(map(len, paths))

    def _path(self, one: str | np.ndarray, asked: Valued) -> np.ndarray:
        """int32[t], which ends where the value is read; a rendered conversation of a model that is read there, at its end of turn."""
        limit, keep = self._scorer.limit, asked.truncate_prompt_tokens
        if isinstance(one, str):
            add_special = asked.add_special_tokens is not False
            most = limit if keep is None else 1 << 20
            path = self._scorer.texts.ids(one, add_special=add_special, limit=most)
            path = self._at_end_of_turn(path)
        else:
            path = one
        if keep is not None and keep != 0:
            most = limit if keep == -1 else min(keep, limit)
            path = path[-most:] if asked.truncation_side == "left" else path[:most]
        if not len(path):
            raise ServingError(400, "an input without tokens has no value", param="input")
        return path

    def _at_end_of_turn(self, path: np.ndarray) -> np.ndarray:
        """Without what the template writes after an end of turn, where values are read at the end of turn itself."""
        chat = self._scorer.texts.chat
        tail = chat.closing.tokens
        begin = len(path) - len(tail)
        if self._scorer.read_at != "end_of_turn" or not len(tail) or begin < 1:
            return path
        ends = path[begin - 1] == chat.end_id and np.array_equal(path[begin:], tail)
        return path[:begin] if ends else path


def require_model(asked: str | None, name: str) -> None:
    """Raises ServingError if another model is asked for than the one that is here."""
    if asked is not None and asked != name:
        raise ServingError(
            404, f"there is no model {fields.shown(asked)} at this endpoint; it has {name}", param="model"
        )


def _usage(tokens: int) -> JSON:
    return {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def _is_object(line: bytes) -> bool:
    """Whether a line is a whole JSON object, as the lines of a file of trajectories are."""
    try:
        return isinstance(fields.parse(line, ""), dict)
    except UserError:
        return False


def _conversations(
    row: JSON, origin: str, fallback: int, specs: Mapping[str, EnvSpec] | None = None
) -> list[Conversation]:
    """The conversations of a row. Raises: UserError, as `labels.of_row`."""
    return [c for one in labels.of_row(files.Row(row, origin, origin, fallback), specs) for c in one.conversations]
