"""Who is served next: sequences wait until their path is cached, are ready for a row, and run in a decode batch.

Pure host code. A call of `next` is one decision: a prefill batch to read, or some steps of a decode batch (and who joins it).
Whoever came first is served first where the cache is short: it waits for those that run, and others that wait give way to it.
"""

import collections
import dataclasses
from collections.abc import Iterator

import numpy as np

from agentrm_jax.engine import layout
from agentrm_jax.engine.facts import SlotFacts
from agentrm_jax.engine.layout import bucket
from agentrm_jax.engine.prefix import PrefixCache, common_length
from agentrm_jax.engine.requests import EngineConfig, GenerateRequest
from agentrm_jax.engine.sampling import fold
from agentrm_jax.engine.seats import DecodeBatch, Seats
from agentrm_jax.engine.sequence import Job, Lane, Sequence

_PREFILLS = 4  # prefill batches between two dispatches of decode, as long as that fills rows


@dataclasses.dataclass(frozen=True, eq=False)
class Prefill:
    """Rows to read, the slots for each, and the sequences they are read for."""

    rows: list[layout.PrefillRow]
    slots: list[np.ndarray]
    sequences: list[Sequence]
    logprobs: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Decode:
    """A batch to decode; the rows in `joining` are to be put there first."""

    batch: DecodeBatch
    joining: list[int]


class Scheduler:
    """Waiting, ready and running sequences of one engine.

    Attributes:
      waiting: their path is not all cached; in the order they came.
      seats: the others, ready for a row or in one.
    """

    def __init__(self, config: EngineConfig, cache: PrefixCache, facts: SlotFacts, in_place: str = ""):
        self.config, self.cache, self.facts = config, cache, facts
        self.waiting: collections.deque[Sequence] = collections.deque()
        self.seats = Seats(config, in_place)
        self._in_a_row = 0  # prefill batches since the last decode
        self.preempted = 0

    def add(self, job: Job) -> None:
        """Puts the sequences of a request at the end of those that wait."""
        request, path = job.request, np.asarray(job.request.tokens, np.int32)
        if not isinstance(request, GenerateRequest):
            self.waiting.append(Sequence.of(job, path, []))
            return
        params, width = request.params, self.config.samples
        self.seats.expect(path)
        lanes = [Lane(i, fold(params.seed, i)) for i in range(params.n)]
        self.waiting.extend(Sequence.of(job, path, lanes[i : i + width]) for i in range(0, params.n, width))

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.seats.ready or any(batch.live for batch in self.seats.batches))

    def running(self) -> Iterator[tuple[DecodeBatch, int, Sequence]]:
        """Every row that is taken: its batch, its number, its sequence."""
        return self.seats.taken()

    def next(self) -> Prefill | Decode | None:
        """What to do now; None if there is nothing to do."""
        if self._prefill_first() and (prefill := self._plan_prefill()):
            self._in_a_row += 1
            return prefill
        self._in_a_row = 0
        return self._plan_decode() or self._plan_prefill()

    def cancel(self, job: Job) -> None:
        """Drops whatever of a request has not been done; its rows are free at once."""
        job.cancelled = True
        for sequence in [s for s in (*self.waiting, *self.seats.ready) if s.job is job]:
            self._leave(sequence)
        for batch, row, sequence in list(self.running()):
            if sequence.job is job:
                self.release(batch, row)

    def release(self, batch: DecodeBatch, row: int) -> None:
        """Frees a row whose sequence has ended."""
        sequence = batch.rows[row]
        assert sequence is not None
        self._unlock(sequence)
        batch.rows[row] = None

    def requeue(self, batch: DecodeBatch, row: int) -> None:
        """Takes back a row: what is left of its sequence waits again, before all others."""
        sequence = batch.rows[row]
        assert sequence is not None
        self.preempted += 1
        self.release(batch, row)
        self.waiting.extendleft(reversed(sequence.again()))

    def preempt(self, job: Job) -> None:
        """Takes back everything that a request holds; what is left of it waits."""
        for batch, row, sequence in list(self.running()):
            if sequence.job is job:
                self.requeue(batch, row)
        for sequence in [s for s in (*self.seats.ready, *self.waiting) if s.job is job and s.lock is not None]:
            self._give_way(sequence)

    def _give_way(self, sequence: Sequence) -> None:
        self.preempted += 1
        self._unlock(sequence)
        if sequence in self.seats.ready:
            self.seats.ready.remove(sequence)
            self.waiting.appendleft(sequence)

    # --- prefill ---------------------------------------------------------------------------------------------------------

    def _prefill_first(self) -> bool:
        """Decode is the faster a token the more rows it has, so rows are filled first; but those that run are not held up long."""
        if not self.waiting:
            return False
        taken = len(self.seats.ready) + sum(batch.live for batch in self.seats.batches)
        if not taken:
            return True
        return self._in_a_row < (_PREFILLS if taken < self.config.rows[-1] else 1)

    def _plan_prefill(self) -> Prefill | None:
        """A batch with the first sequence that waits, and others whose tokens go well with its; None if none can be read now."""
        chosen = self._candidates()
        if not chosen:
            return None
        head = next(iter(chosen))
        rows = self._rows(chosen)
        mine = _row_for(head, len(chosen[head]), rows)
        rows = self._batch_with(mine, rows)
        while (slots := self.cache.allocate(sum(len(row.tokens) for row in rows))) is None:
            if self._make_room({id(path) for row in rows for path in row.paths}):
                continue
            if len(rows) > 1:
                rows = [row for row in rows if row is mine] if rows[-1] is mine else rows[:-1]
            elif len(mine.paths) > 1:
                [mine] = layout.rows(mine.cached, [head.target], self.config.new_tokens)
                rows = [mine]
            elif any(True for _ in self.running()):
                return None
            else:
                raise AssertionError("a path that fits the cache alone found no room in it")
        self.facts.forget(slots)
        inside = {id(path) for row in rows for path in row.paths}
        own = np.split(slots, np.cumsum([len(row.tokens) for row in rows])[:-1])
        return Prefill(rows, own, [s for s in chosen if id(s.target) in inside], head.wants_logprobs)

    def _candidates(self) -> dict[Sequence, np.ndarray]:
        """Sequences in order, until they fill a batch, with the cached slots they are read on from (which are locked)."""
        chosen: dict[Sequence, np.ndarray] = {}
        room, before = 2 * self.config.batch_tokens[-1], np.zeros(0, np.int32)
        for sequence in list(self.waiting):
            if chosen and sequence.wants_logprobs != next(iter(chosen)).wants_logprobs:
                continue
            begin = self._look_up(sequence)
            if begin == len(sequence.target):
                self._settle(sequence)
                continue
            assert sequence.lock is not None
            chosen[sequence] = sequence.lock.slots[:begin]
            new = len(sequence.target) - max(begin, common_length(before, sequence.target))
            room -= min(max(new, 0), self.config.new_tokens[-1])
            before = sequence.target
            if room <= 0:
                break
        return chosen

    def _rows(self, chosen: dict[Sequence, np.ndarray]) -> list[layout.PrefillRow]:
        """Trees of the new tokens of sequences; those that read on from the same place share theirs."""
        groups: dict[tuple[int, int], tuple[np.ndarray, list[np.ndarray]]] = {}
        for sequence, cached in chosen.items():
            place = (len(cached), int(cached[-1]) if len(cached) else -1)
            groups.setdefault(place, (cached, []))[1].append(sequence.target)
        return [row for cached, paths in groups.values() for row in layout.rows(cached, paths, self.config.new_tokens)]

    def _batch_with(self, mine: layout.PrefillRow, rows: list[layout.PrefillRow]) -> list[layout.PrefillRow]:
        """The batch of similar rows that `mine` lies in."""
        new = bucket(len(mine.tokens), self.config.new_tokens)
        similar = [row for row in rows if bucket(len(row.tokens), self.config.new_tokens) == new]
        similar.sort(key=lambda row: -len(row.cached))
        tile = layout.tile(new)
        batches = layout.fill(similar, tile, tuple(-(-size // tile) for size in self.config.batch_tokens))
        return next(batch for batch in batches if any(row is mine for row in batch))

    def _make_room(self, inside: set[int]) -> bool:
        """Lets go of what the last comer holds that is not running and whose path is not `inside`; False if nobody is left."""
        for sequence in (*reversed(self.seats.ready), *reversed(self.waiting)):
            if sequence.lock is not None and len(sequence.lock.slots) and id(sequence.target) not in inside:
                self._give_way(sequence)
                return True
        return False

    def _look_up(self, sequence: Sequence) -> int:
        """Locks what is cached of a sequence's target; the index that it is to be read on from."""
        lock = self.cache.lock(sequence.target)
        self._unlock(sequence)
        begin = sequence.first_unread(lock.slots, self.facts)
        if begin < len(lock.slots) and begin < len(sequence.target):  # what is read again need not stay meanwhile
            self.cache.unlock(lock)
            lock = self.cache.lock(sequence.target[:begin])
        sequence.lock = lock
        return begin

    def prefilled(self, work: Prefill) -> None:
        """Records what was read: from now on it is cached, and sequences that have all they need go on."""
        for row, mine in zip(work.rows, work.slots, strict=True):
            lies = mine.copy()  # where each token is found from now on: elsewhere if it was cached already
            for path, index in zip(row.paths, row.index, strict=True):
                whole = np.concatenate([row.cached, lies[index]])
                held = self.cache.insert(path[: len(whole)], whole)[len(row.cached) :]
                self.facts.move(lies[index], held)
                lies[index] = held
        for sequence in work.sequences:
            if not sequence.job.cancelled and self._look_up(sequence) == len(sequence.target):
                self._settle(sequence)

    def _settle(self, sequence: Sequence) -> None:
        """Moves on a sequence whose target is cached: to the rows, or to its result."""
        if sequence.lanes:
            self.waiting.remove(sequence)
            self.seats.ready.append(sequence)
            return
        assert sequence.lock is not None
        sequence.finish(sequence.lock.slots, self.facts)
        self._leave(sequence)

    def _leave(self, sequence: Sequence) -> None:
        self._unlock(sequence)
        (self.waiting if sequence in self.waiting else self.seats.ready).remove(sequence)

    def _unlock(self, sequence: Sequence) -> None:
        if sequence.lock is not None:
            self.cache.unlock(sequence.lock)
            sequence.lock = None

    # --- decode ----------------------------------------------------------------------------------------------------------

    def _plan_decode(self) -> Decode | None:
        batch = self.seats.next(more_to_come=any(sequence.lanes for sequence in self.waiting))
        if batch is None:
            return None
        joining = [i for i, sequence in enumerate(batch.rows) if sequence is not None and sequence.fresh]
        return Decode(batch, joining)


def _row_for(sequence: Sequence, begin: int, rows: list[layout.PrefillRow]) -> layout.PrefillRow:
    """The row that a sequence is read in; if it was left out for want of room, one that begins as it goes on."""
    for row in rows:
        if any(path is sequence.target for path in row.paths):
            return row
    token = sequence.target[begin]
    return next(
        row
        for row in rows
        if len(row.cached) == begin
        and np.array_equal(row.paths[0][:begin], sequence.target[:begin])
        and any(path[begin] == token for path in row.paths)
    )
