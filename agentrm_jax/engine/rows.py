"""Between sequences on the host and rows on the device: what a joining row is given, and what its steps have brought."""

from collections.abc import Callable

import numpy as np

from agentrm_jax.engine.batch import RowState, Steps
from agentrm_jax.engine.requests import SamplingParams
from agentrm_jax.engine.sampling import Shaping
from agentrm_jax.engine.seats import DecodeBatch
from agentrm_jax.engine.sequence import Lane


def stop_ids(params: SamplingParams, end_id: int) -> tuple[int, ...]:
    """The tokens that end a sample."""
    return (end_id,) if params.stop_token_ids is None else params.stop_token_ids


def limit_of(params: SamplingParams, max_new: int) -> int:
    """Tokens that a sample may have."""
    return params.max_tokens or max_new


def joining_rows(
    batch: DecodeBatch, joining: list[int], vocabulary: int, end_id: int, max_new: int
) -> tuple[np.ndarray, np.int32, np.ndarray, RowState]:
    """The arguments of `decode.admit` for rows that join."""
    u, n = batch.shape.rows, batch.shape.samples
    at_rows = np.full(u, u, np.int32)
    context = np.zeros((u, batch.shape.columns), np.int32)
    state = RowState(
        context_length=np.zeros(u, np.int32),
        temperature=np.zeros(u, np.float32),
        stops=np.full((u, SamplingParams.MOST_STOP_IDS), -1, np.int32),
        token=np.zeros((u, n), np.int32),
        count=np.zeros((u, n), np.int32),
        base=np.zeros((u, n), np.int32),
        limit=np.zeros((u, n), np.int32),
        done=np.ones((u, n), bool),
        seeds=np.zeros((u, n), np.uint32),
        shaping=_no_shaping(u, vocabulary) if batch.shape.shaped else None,
        known=np.zeros((u, batch.shape.known), np.int32) if batch.shape.draft else None,
    )
    for i, row in enumerate(joining):
        sequence = batch.rows[row]
        assert sequence is not None
        assert sequence.lock is not None
        params, shared = sequence.params, len(batch.trunk)
        cached = len(sequence.target) - shared
        at_rows[i] = row
        context[i, :cached] = sequence.lock.slots[shared:]
        state.context_length[i] = cached
        state.temperature[i] = params.temperature
        ids = stop_ids(params, end_id)
        state.stops[i, : len(ids)] = ids
        state.token[i] = sequence.path[-1]
        for j, lane in enumerate(sequence.lanes):
            state.count[i, j] = state.base[i, j] = len(lane.tokens)
            state.limit[i, j] = limit_of(params, max_new)
            state.done[i, j] = lane.ended
            state.seeds[i, j] = lane.seed
        if state.known is not None:
            state.known[i, : len(sequence.path)] = sequence.path
        if (shaping := state.shaping) is not None:
            shaping.top_k[i], shaping.top_p[i], shaping.min_p[i] = params.top_k, params.top_p, params.min_p
            shaping.penalty[i] = params.repetition_penalty
            shaping.seen[i, sequence.path] = True
    return at_rows, np.int32(len(joining)), context, state


def _no_shaping(rows: int, vocabulary: int) -> Shaping:
    zero, one = np.zeros(rows, np.float32), np.ones(rows, np.float32)
    return Shaping(np.zeros(rows, np.int32), one, zero, one.copy(), np.zeros((rows, vocabulary), bool))


def take_steps(batch: DecodeBatch, steps: Steps, end_id: int, text: Callable[[list[int]], str] | None) -> list[int]:
    """Gives samples their new tokens; the rows that do not go on, whether their samples have ended or their room has."""
    over = []
    for row, sequence in enumerate(batch.rows):
        if sequence is None:
            continue
        going = False
        for j, lane in enumerate(sequence.lanes):
            if lane.ended:
                continue
            gained = int(steps.count[row, j]) - len(lane.tokens)
            lane.tokens += np.asarray(steps.tokens)[:gained, row, j].tolist()
            lane.logprobs += np.asarray(steps.logprobs)[:gained, row, j].tolist()
            if sequence.params.logprobs and steps.top is not None:
                ids, logprobs = (np.asarray(x)[:gained, row, j] for x in steps.top)
                lane.top += list(zip(ids, logprobs, strict=True))
            _look_for_stop(lane, sequence.params.stop, gained, text)
            if not lane.ended and steps.done[row, j]:
                full = lane.tokens[-1] not in stop_ids(sequence.params, end_id)
                lane.ended = not full or len(lane.tokens) >= limit_of(sequence.params, batch.shape.max_new)
            going |= not steps.done[row, j] and not lane.ended
        if not going:
            over.append(row)
    return over


def _look_for_stop(lane: Lane, stops: tuple[str, ...], gained: int, text: Callable[[list[int]], str] | None) -> None:
    """Ends a sample at the token that completes the first stop text."""
    if not stops or text is None:
        return
    for size in range(len(lane.tokens) - gained + 1, len(lane.tokens) + 1):
        so_far = text(lane.tokens[:size])
        found = [(so_far.index(stop), stop) for stop in stops if stop in so_far]
        if found:
            del lane.tokens[size:], lane.logprobs[size:], lane.top[size:]
            lane.ended, lane.stop = True, min(found)[1]
            return
