"""Values of the steps of trajectories: conversations in, scores out, in the order they came.

All steps of a trajectory come from one forward pass, and trajectories share rows. A trajectory that cannot be scored says why, and the
others are scored. A step's score is the value at its end, or of an implicit reward model the log-ratio of its tokens.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from agentrm_jax import parallel, tree
from agentrm_jax.chat import Chat
from agentrm_jax.data import conversations
from agentrm_jax.data.conversations import Conversation
from agentrm_jax.models.card import ReadAt
from agentrm_jax.models.transformer import Transformer, token_logprobs, values
from agentrm_jax.prompts import Representation
from agentrm_jax.search import aggregate as aggregation
from agentrm_jax.tree import FlatTree
from agentrm_jax.types import JSON, TooLong, UserError
from agentrm_jax.window import Reading, Window

_PASSES = 16  # forward passes whose trajectories are packed, and printed, together


@dataclasses.dataclass(frozen=True)
class Scored:
    """One trajectory's scores.

    Attributes:
      step_scores: the score of every trained assistant turn, in order; NaN where the model gave no number.
      score: their aggregate; NaN if there are none, or one that it needs is missing.
      tokens: tokens read.
      dropped_turns: the oldest turns that the last step was read without, because the trajectory is too long.
      error: why scores are missing; empty if none is. A trajectory without steps has no score and no error.
    """

    id: str | int
    step_scores: tuple[float, ...]
    score: float
    tokens: int
    dropped_turns: int
    error: str = ""

    def to_json(self) -> dict[str, JSON]:
        """`{"id", "step_scores", "score"}`, where a missing number is null, and `error` if there is one."""
        steps = [value if math.isfinite(value) else None for value in self.step_scores]
        row = {"id": self.id, "step_scores": steps, "score": self.score if math.isfinite(self.score) else None}
        return row | ({"error": self.error} if self.error else {})


@dataclasses.dataclass(frozen=True, eq=False)
class LogRatio:
    """How a policy is an implicit reward model (paper 3.2.2).

    Attributes:
      reference: the policy that it is compared with.
      beta: what log-ratios (nats) are multiplied by.
      accumulated: a step's score is the sum of the rewards up to it; otherwise its own.
    """

    reference: Transformer
    beta: float = 1.0
    accumulated: bool = True


def score(
    model: Transformer,
    chat: Chat,
    trajectories: Iterable[Conversation],
    *,
    aggregate: str = "last",
    row_length: int = 1024,
    rows: int = 8,
    max_length: int | None = None,
    read_at: ReadAt = "end_of_turn",
    dtype: jnp.dtype = jnp.float32,
    ratio: LogRatio | None = None,
    state: Representation = "default",
) -> Iterator[Scored]:
    """Scores of every trajectory, in order, as their batches are done; rows are split over the local devices.

    Args:
      row_length: tokens of a row, into which several trajectories are packed; rows are as long as the longest trajectory needs.
      rows: rows of `row_length` in one forward pass (fewer if they are longer).
      max_length: tokens of the longest path to read, by default the model's own limit. Steps that lie within it are read in
        one pass; each step beyond it is read without the oldest turns, as a search does.
      ratio: `model` is a policy whose log-ratio is the reward; otherwise it has a value head.
      read_at: where the value of a step is read (`models.card.Card`).
      state: what the model reads of a conversation (`prompts.Representation`), as its card says.

    A trajectory that cannot be rendered, or of which prompt and one turn alone are too long, has an `error` and no scores.

    Raises:
      UserError: no such aggregate; or the model reads what was observed last, which conversations do not keep.
    """
    aggregation.check(aggregate)
    check_state(state)
    limit = max_length or model.config.max_length
    mesh = parallel.make_mesh(devices=jax.local_devices())
    models = jax.device_put((model, ratio.reference if ratio else None), NamedSharding(mesh, PartitionSpec()))
    how = (ratio.beta, ratio.accumulated) if ratio else (1.0, False)
    before: list[Prepared] = []
    coming: Iterator[list[float]] = iter(())
    prepared = (prepare(one, chat, limit, model.config.max_length, read_at, state) for one in trajectories)
    windows = _windows(prepared, _PASSES * rows * row_length)
    for window in itertools.chain(windows, [[]]):  # a window is begun before the one before it is waited for
        passes = _passes([r.flat for one in window for r in one.readings], row_length, rows)
        started = [(p, _start(models[0], models[1], mesh, p, dtype)) for p in passes]
        for one in before:
            yield scored(one, [v for _ in one.readings for v in next(coming)], aggregate, *how)
        before, coming = window, _finish([r for one in window for r in one.readings], started, summed=ratio is not None)


def check_state(state: Representation) -> None:
    """Raises UserError if a model reads what was observed last, which conversations do not keep."""
    if state == "last_observation":
        raise UserError(
            "this reward model reads what was observed after the last action, which trajectories are not scored with; "
            "train one without --config.state=last_observation"
        )


def scored(one: "Prepared", numbers: Sequence[float], aggregate: str, beta: float, accumulated: bool) -> Scored:
    """The scores of a trajectory, given what the model says of its steps: the value of each, or its log-ratio (nats).

    Args:
      beta, accumulated: as of `LogRatio`; 1 and False for values.
    """
    numbers = [beta * v for v in (itertools.accumulate(numbers) if accumulated else numbers)]
    steps = tuple(v if math.isfinite(v) else math.nan for v in numbers)
    tokens = sum(len(r.flat) for r in one.readings)
    error = one.error
    if missing := [str(i) for i, v in enumerate(steps, 1) if math.isnan(v)]:
        error = f"{one.origin}: the model's value is not a number after step {', '.join(missing)}"
    return Scored(one.id, steps, aggregation.aggregate(steps, aggregate), tokens, one.dropped, error)


# --- From trajectories to paths --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class PathSteps:
    """A path, and the steps on it that are scored: the last token of each, and how many tokens it has."""

    flat: FlatTree
    at: np.ndarray
    sizes: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A trajectory as the paths to read, whose values in order are those of its steps; or why it cannot be read."""

    id: str | int
    origin: str
    readings: list[PathSteps]
    dropped: int
    error: str = ""


def prepare(
    one: Conversation, chat: Chat, limit: int, longest: int, read_at: ReadAt, state: Representation
) -> Prepared:
    """A conversation within `limit` tokens, of a model that reads up to `longest`."""
    try:
        found = Window(limit).steps(
            conversations.segments(one, chat, state), chat.closing if read_at == "last_token" else None
        )
        readings = [_reading(r) for r in found]
    except TooLong as error:
        advice = f"raise --max-length, up to {longest}" if limit < longest else "the model reads no more: shorten them"
        return Prepared(one.id, one.origin, [], 0, f"{one.origin}: {error}; {advice}")
    except UserError as error:  # begins with the origin
        return Prepared(one.id, one.origin, [], 0, str(error))
    return Prepared(one.id, one.origin, readings, found[-1].dropped_turns if found else 0)


def _reading(found: Reading) -> PathSteps:
    sizes = [len(s.tokens) for s in found.segments if s.loss]
    return PathSteps(
        tree.flatten(tree.path_tree(found.segments)), found.ends, np.array(sizes[-len(found.ends) :], np.int32)
    )


def _windows(prepared: Iterable[Prepared], tokens: int) -> Iterator[list[Prepared]]:
    """Runs of trajectories with about `tokens` tokens together."""
    window: list[Prepared] = []
    used = 0
    for one in prepared:
        window.append(one)
        used += sum(len(r.flat) for r in one.readings)
        if used >= tokens:
            yield window
            window, used = [], 0
    if window:
        yield window


# --- From paths to values --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Pass:
    """One forward pass: the paths in its rows (indices and the paths themselves), and how long the rows are."""

    rows: list[list[int]]
    flat: list[list[FlatTree]]
    length: int


def _passes(paths: Sequence[FlatTree], row_length: int, rows: int) -> list[_Pass]:
    """Packs paths into rows, as long as the longest needs, and rows into passes of about `rows * row_length` tokens."""
    if not paths:
        return []
    sizes = [len(p) for p in paths]
    length = max(max(sizes), min(sum(sizes), row_length))
    length = length if length == row_length else _bucket(length)
    most = max(1, rows * row_length // length)
    packed = tree.pack(paths, length)
    parts = [packed[i : i + most] for i in range(0, len(packed), most)]
    return [_Pass(part, [[paths[i] for i in row] for row in part], length) for part in parts]


def _start(model: Transformer, reference: Transformer | None, mesh: Mesh, one: _Pass, dtype: jnp.dtype) -> jax.Array:
    """Begins a forward pass; its number of rows is rounded up so that few programs are compiled: float32[b, t]."""
    count = 1 << (len(one.flat) - 1).bit_length()
    count += -count % mesh.size
    empty: list[list[FlatTree]] = [[]] * (count - len(one.flat))
    flat = [tree.to_row(row, one.length) for row in [*one.flat, *empty]]
    batch = {name: np.stack([getattr(f, name) for f in flat]) for name in _FIELDS}
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest" if dtype == jnp.float32 else "default"):
        placed = parallel.put_batch(batch, mesh)
        if reference is None:
            return _values(model, placed, dtype=dtype)
        return _ratios(model, reference, placed, dtype=dtype)


def _finish(
    readings: Sequence[PathSteps], started: Sequence[tuple[_Pass, jax.Array]], *, summed: bool
) -> Iterator[list[float]]:
    """The numbers asked for, reading by reading: at the end of each step, or the sums over its tokens."""
    found: dict[int, list[float]] = {}
    for one, result in started:
        values_bt = np.asarray(result)
        for b, row in enumerate(one.rows):
            begins = 0
            for i in row:
                ends = begins + readings[i].at
                if summed:
                    spans = zip(ends - readings[i].sizes + 1, ends + 1, strict=True)
                    found[i] = [float(values_bt[b, first:after].sum(dtype=np.float64)) for first, after in spans]
                else:
                    found[i] = [float(v) for v in values_bt[b, ends]]
                begins += len(readings[i].flat)
    yield from (found[i] for i in range(len(readings)))


_FIELDS = ("tokens", "positions", "subtree_end", "previous")


@functools.partial(jax.jit, static_argnames="dtype")
def _values(model: Transformer, batch: dict[str, jax.Array], *, dtype: jnp.dtype) -> jax.Array:
    return values(model, model(batch["tokens"], batch["positions"], batch["subtree_end"], dtype=dtype))


@functools.partial(jax.jit, static_argnames="dtype")
def _ratios(model: Transformer, reference: Transformer, batch: dict[str, jax.Array], *, dtype: jnp.dtype) -> jax.Array:
    """log pi - log pi_ref of every token: float32[b, t]."""

    def logprobs(one: Transformer) -> jax.Array:
        hidden = one(batch["tokens"], batch["positions"], batch["subtree_end"], dtype=dtype)
        return token_logprobs(one, hidden, batch["tokens"], batch["previous"])

    return logprobs(model) - logprobs(reference)


def _bucket(size: int) -> int:
    """The next of 128, 192, 256, 384, 512, 768, ..."""
    power = 128
    while power < size:
        if size <= power * 3 // 2:
            return power * 3 // 2
        power *= 2
    return power
