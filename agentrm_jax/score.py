"""Scores trajectories with a reward model: one JSON line a trajectory, in the order of the file.

    python -m agentrm_jax.score RM TRAJECTORIES      {"id": "webshop_12", "step_scores": [0.41, 0.77], "score": 0.77}

RM is a training workdir or a Hugging Face folder: any *ForSequenceClassification with one label. TRAJECTORIES is a file in any
format that `agentrm_jax.data.conversations` reads (ETO, AgentGym, TRL, ours). Steps are the trained assistant turns; a step's
score is the value at its end-of-turn token. All steps of a trajectory come from one forward pass; trajectories share rows.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from agentrm_jax import parallel, tree
from agentrm_jax.chat import Chat
from agentrm_jax.data import conversations
from agentrm_jax.data.conversations import Conversation
from agentrm_jax.models.card import read_card
from agentrm_jax.models.pretrained import open_pretrained
from agentrm_jax.models.transformer import Transformer, values
from agentrm_jax.run import stages as start
from agentrm_jax.search import aggregate as aggregation
from agentrm_jax.tree import FlatTree, Segment
from agentrm_jax.types import JSON, UserError

_PASSES = 16  # forward passes whose trajectories are packed, and printed, together


@dataclasses.dataclass(frozen=True)
class Scored:
    """One trajectory's scores.

    Attributes:
      step_scores: the value after every trained assistant turn, in order.
      score: their aggregate; NaN if there are none.
      tokens: tokens read.
      dropped_turns: the oldest turns that the last step was read without, because the trajectory is too long.
    """

    id: str | int
    step_scores: tuple[float, ...]
    score: float
    tokens: int
    dropped_turns: int

    def to_json(self) -> dict[str, JSON]:
        return {
            "id": self.id,
            "step_scores": list(self.step_scores),
            "score": None if math.isnan(self.score) else self.score,
        }


def score(
    model: Transformer,
    chat: Chat,
    trajectories: Iterable[Conversation],
    *,
    aggregate: str = "last",
    row_length: int = 1024,
    rows: int = 8,
    max_length: int | None = None,
    dtype: jnp.dtype = jnp.float32,
) -> Iterator[Scored]:
    """Scores of every trajectory, in order, as their batches are done; rows are split over the local devices.

    Args:
      row_length: tokens of a row, into which several trajectories are packed; rows are as long as the longest trajectory needs.
      rows: rows of `row_length` in one forward pass (fewer if they are longer).
      max_length: tokens of the longest path to read, by default the model's own limit. Steps that lie within it are read in
        one pass; each step beyond it is read without the oldest turns, as a search does.

    Raises:
      UserError: no such aggregate; a trajectory cannot be rendered, or one turn of it alone is too long.
    """
    aggregation.check(aggregate)
    limit = max_length or model.config.max_length
    mesh = parallel.make_mesh(devices=jax.local_devices())
    model = jax.device_put(model, NamedSharding(mesh, PartitionSpec()))
    before: list[_Prepared] = []
    coming: Iterator[list[float]] = iter(())
    windows = _windows(_prepare(trajectories, chat, limit), _PASSES * rows * row_length)
    for window in itertools.chain(windows, [[]]):  # a window is begun before the one before it is waited for
        passes = _passes([r.flat for one in window for r in one.readings], row_length, rows)
        started = [(p, _start(model, mesh, p, dtype)) for p in passes]
        yield from (_scored(one, coming, aggregate) for one in before)
        before, coming = window, _finish([r for one in window for r in one.readings], started)


def _scored(one: "_Prepared", found: Iterator[list[float]], aggregate: str) -> Scored:
    steps = tuple(v for _ in one.readings for v in next(found))
    tokens = sum(len(r.flat) for r in one.readings)
    return Scored(one.id, steps, aggregation.aggregate(steps, aggregate), tokens, one.dropped)


# --- From trajectories to paths --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Reading:
    """A path, and the tokens on it at which values are read."""

    flat: FlatTree
    at: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class _Prepared:
    """A trajectory as the paths to read, whose values in order are those of its steps."""

    id: str | int
    readings: list[_Reading]
    dropped: int


def _prepare(trajectories: Iterable[Conversation], chat: Chat, limit: int) -> Iterator[_Prepared]:
    for one in trajectories:
        try:
            yield _Prepared(one.id, *_readings(conversations.segments(one, chat), limit))
        except ValueError as error:
            raise UserError(f"{one.origin}, id {one.id}: {error}; raise --max-length or leave it out") from error


def _readings(segments: Sequence[Segment], limit: int) -> tuple[list[_Reading], int]:
    """One path for all the steps within `limit` tokens and one for each step beyond it; and the turns the last one lacks."""
    ends = np.cumsum([len(s.tokens) for s in segments])
    steps = [i for i, s in enumerate(segments) if s.loss]
    near = [i for i in steps if ends[i] <= limit]
    readings, dropped = [], 0
    if near:
        readings.append(_Reading(tree.flatten(tree.path_tree(segments[: near[-1] + 1])), ends[near] - 1))
    for i in steps[len(near) :]:
        kept, dropped = tree.truncate(segments[: i + 1], limit)
        flat = tree.flatten(tree.path_tree(kept))
        readings.append(_Reading(flat, np.array([len(flat) - 1])))
    return readings, dropped


def _windows(prepared: Iterable[_Prepared], tokens: int) -> Iterator[list[_Prepared]]:
    """Runs of trajectories with about `tokens` tokens together."""
    window: list[_Prepared] = []
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


def _start(model: Transformer, mesh: Mesh, one: _Pass, dtype: jnp.dtype) -> jax.Array:
    """Begins a forward pass; its number of rows is rounded up so that few programs are compiled: float32[b, t]."""
    count = 1 << (len(one.flat) - 1).bit_length()
    count += -count % mesh.size
    empty: list[list[FlatTree]] = [[]] * (count - len(one.flat))
    flat = [tree.to_row(row, one.length) for row in [*one.flat, *empty]]
    batch = {name: np.stack([getattr(f, name) for f in flat]) for name in ("tokens", "positions", "subtree_end")}
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest" if dtype == jnp.float32 else "default"):
        placed = parallel.put_batch(batch, mesh)
        return _forward(model, placed["tokens"], placed["positions"], placed["subtree_end"], dtype=dtype)


def _finish(readings: Sequence[_Reading], started: Sequence[tuple[_Pass, jax.Array]]) -> Iterator[list[float]]:
    """The values asked for, reading by reading."""
    found: dict[int, list[float]] = {}
    for one, result in started:
        values_bt = np.asarray(result)
        for b, row in enumerate(one.rows):
            begins = 0
            for i in row:
                found[i] = [float(v) for v in values_bt[b, begins + readings[i].at]]
                begins += len(readings[i].flat)
    yield from (found[i] for i in range(len(readings)))


@functools.partial(jax.jit, static_argnames="dtype")
def _forward(
    model: Transformer, tokens_bt: jax.Array, positions_bt: jax.Array, end_bt: jax.Array, *, dtype: jnp.dtype
) -> jax.Array:
    return values(model, model(tokens_bt, positions_bt, end_bt, dtype=dtype))


def _bucket(size: int) -> int:
    """The next of 128, 192, 256, 384, 512, 768, ..."""
    power = 128
    while power < size:
        if size <= power * 3 // 2:
            return power * 3 // 2
        power *= 2
    return power


# --- Command line ----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code (2 for what the user can mend)."""
    parser = argparse.ArgumentParser(prog="python -m agentrm_jax.score", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "rm", help="a training workdir, or a Hugging Face folder: *ForSequenceClassification, one label"
    )
    parser.add_argument("trajectories", type=Path, help="a file of ETO, AgentGym, TRL or our own, or a folder of such")
    parser.add_argument("--aggregate", default="last", help="last (default), min, mean, sum, prod or max of the steps")
    parser.add_argument("--out", type=Path, help="file to write to instead of standard output")
    parser.add_argument("--rows", type=int, default=8, help="rows of a forward pass (default 8)")
    parser.add_argument("--row-length", type=int, default=1024, help="tokens of a row (default 1024)")
    parser.add_argument("--max-length", type=int, help="tokens of a trajectory to read (default: the model's limit)")
    parser.add_argument("--dtype", default="float32", help="float32 (default) or bfloat16")
    parser.add_argument(
        "--chat-template", default="", help="chatml, or a file with the template, instead of the tokenizer's own"
    )
    args = parser.parse_args(argv)
    try:
        return _run(args)
    except UserError as error:
        print(f"error: {str(error).replace('--config.chat_template', '--chat-template')}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(args: argparse.Namespace) -> int:
    aggregation.check(args.aggregate)
    if args.dtype not in ("float32", "bfloat16"):
        raise UserError(f"--dtype={args.dtype}: use float32 or bfloat16")
    for name in ("rows", "row_length", "max_length"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}={getattr(args, name)}: use a positive number")
    _require_value_head(args.rm)
    trajectories = list(conversations.read(args.trajectories))  # all of it, so that a bad line is found before the work
    start.accelerator()
    from agentrm_jax.models.opening import load_model

    loaded = load_model(args.rm, template=args.chat_template)
    options = {"row_length": args.row_length, "rows": args.rows, "max_length": args.max_length}
    done: list[Scored] = []
    began = time.monotonic()
    with _output(args.out) as out:
        for one in score(
            loaded.model, loaded.chat, trajectories, aggregate=args.aggregate, dtype=jnp.dtype(args.dtype), **options
        ):
            print(json.dumps(one.to_json(), ensure_ascii=False), file=out, flush=True)
            done.append(one)
    _report(done, args.max_length or loaded.model.config.max_length, time.monotonic() - began)
    return 0


def _require_value_head(place: str) -> None:
    """Refuses a policy before anything large is read."""
    card = read_card(Path(place))
    rewards = card.value_head if card else open_pretrained(place).head != "CausalLM"
    if not rewards:
        raise UserError(
            f"{place} holds a policy, a model without a value head; score with a workdir of configs/explicit.py or a "
            "*ForSequenceClassification folder with one label"
        )


def _output(path: Path | None) -> contextlib.AbstractContextManager[IO[str]]:
    if path is None:
        return contextlib.nullcontext(sys.stdout)
    try:
        return path.open("w")
    except OSError as error:
        raise UserError(f"--out={path} cannot be written: {error}") from error


def _report(done: Sequence[Scored], limit: int, seconds: float) -> None:
    """What was read, and what readers of the scores should know, on standard error."""
    steps, tokens = sum(len(s.step_scores) for s in done), sum(s.tokens for s in done)
    print(
        f"{len(done)} trajectories, {steps} steps, {tokens} tokens in {seconds:.1f} s ({tokens / seconds:,.0f} tokens/s)",
        file=sys.stderr,
    )
    if cut := sum(s.dropped_turns > 0 for s in done):
        print(
            f"{cut} longer than {limit} tokens: their later steps were read without the oldest turns", file=sys.stderr
        )
    if none := sum(not s.step_scores for s in done):
        print(f"{none} without a trained assistant turn: no score", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
