"""Who decodes with whom: rows of decode batches, and the sequences that are ready for one.

Sequences of one batch have the same number of samples and similar lengths, and may begin alike: what most requests of late begin
with (an environment's instruction) becomes the batch's trunk, which a decode step reads once for all of its rows.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from agentrm_jax.engine import layout
from agentrm_jax.engine.batch import DecodeShape
from agentrm_jax.engine.layout import bucket
from agentrm_jax.engine.prefix import common_length
from agentrm_jax.engine.requests import EngineConfig
from agentrm_jax.engine.sequence import Sequence

_PATIENCE = 16  # decode dispatches after which nobody gets a row before the one that has been ready longest
_RECENT = 64  # requests whose common beginning becomes a trunk


@dataclasses.dataclass(eq=False)
class DecodeBatch:
    """Rows that are decoded together. `state` and `shared` are the device's part, kept here for its owner; None before a step.

    Attributes:
      rows: the sequence in each row, None where it is free.
      trunk: int32[t], what the targets of all rows begin with; it may be empty.
      keep: int32[rows] old rows of a batch whose number of rows has changed since its last step, else None.
      turn: when it was last served.
    """

    shape: DecodeShape
    rows: list[Sequence | None]
    trunk: np.ndarray
    state: Any = None
    shared: Any = None
    keep: np.ndarray | None = None
    turn: int = 0

    @property
    def live(self) -> int:
        return sum(row is not None for row in self.rows)

    def fits(self, sequence: Sequence, samples: int) -> bool:
        same = (self.shape.samples, self.shape.shaped) == (samples, sequence.params.shaped)
        own = len(sequence.target) - len(self.trunk)
        return same and own <= self.shape.columns and begins_with(sequence.target, self.trunk)


def begins_with(path: np.ndarray, trunk: np.ndarray) -> bool:
    return len(path) >= len(trunk) and bool((path[: len(trunk)] == trunk).all())


class Seats:
    """The decode batches of one engine.

    Attributes:
      ready: sequences that want a row, in the order they became ready.
      batches: those in use, and perhaps one that is empty and kept for the next.
    """

    def __init__(self, config: EngineConfig, in_place: str = ""):
        self._config, self._in_place = config, in_place
        self.ready: list[Sequence] = []
        self.batches: list[DecodeBatch] = []
        self._recent: collections.deque[np.ndarray] = collections.deque(maxlen=_RECENT)
        self._turn = 0
        self._passed_over = 0  # dispatches since the one that has been ready longest could have had a row

    def expect(self, path: np.ndarray) -> None:
        """A request with this path was made."""
        self._recent.append(path[:-1])

    def taken(self) -> Iterator[tuple[DecodeBatch, int, Sequence]]:
        """Every row that is taken: its batch, its number, its sequence."""
        for batch in self.batches:
            for i, sequence in enumerate(batch.rows):
                if sequence is not None:
                    yield batch, i, sequence

    def next(self, *, more_to_come: bool) -> DecodeBatch | None:
        """Gives rows to those that are ready; the batch that has not been served for longest, None if all are empty."""
        self._seat()
        live = [batch for batch in self.batches if batch.live]
        if not live:
            return None
        batch = min(live, key=lambda batch: batch.turn)
        self._turn += 1
        batch.turn = self._turn
        self._shrink(batch, more_to_come)
        return batch

    def _seat(self) -> None:
        """First come, first served: free rows, then those of larger or new batches."""
        homeless: list[Sequence] = []
        first = self.ready[:1]
        for sequence in first if self._passed_over > _PATIENCE else self.ready:
            samples = self._samples(sequence)
            free = [b for b in self.batches if b.live and b.fits(sequence, samples) and b.live < b.shape.rows]
            if free:
                self._sit(sequence, max(free, key=lambda b: (len(b.trunk), -b.shape.columns)))
            else:
                homeless.append(sequence)
        trunk = self._common_beginning() if homeless and self._config.trunk else np.zeros(0, np.int32)
        groups: dict[DecodeShape, list[Sequence]] = {}
        for sequence in homeless:
            groups.setdefault(self._wanted(sequence, trunk), []).append(sequence)
        for wanted, group in groups.items():
            batch = self._batch_for(wanted, trunk if wanted.trunk else trunk[:0], len(group))
            if batch is not None:
                for sequence in itertools.islice(group, batch.shape.rows - batch.live):
                    self._sit(sequence, batch)
        self.ready = [s for s in self.ready if not s.fresh]
        self._passed_over = self._passed_over + 1 if first and first == self.ready[:1] else 0

    def _samples(self, sequence: Sequence) -> int:
        return self._config.samples if len(sequence.lanes) > 1 else 1

    def _sit(self, sequence: Sequence, batch: DecodeBatch) -> None:
        batch.rows[batch.rows.index(None)] = sequence
        sequence.fresh = True

    def _common_beginning(self) -> np.ndarray:
        """What all recent requests begin with, or nothing if that is not much."""
        trunk = self._recent[0] if len(self._recent) > 1 else np.zeros(0, np.int32)
        for path in self._recent:
            trunk = trunk[: common_length(trunk, path)]
        return trunk[: self._config.trunk] if 2 * len(trunk) >= self._config.trunk else trunk[:0]

    def _wanted(self, sequence: Sequence, trunk: np.ndarray) -> DecodeShape:
        """The shape, but for its rows, of a new batch for a sequence."""
        c, shared = self._config, len(trunk) if begins_with(sequence.target, trunk) else 0
        # In place a step reads each row's own length, however long the table is.
        columns = bucket(c.context[-1] if self._in_place else len(sequence.target) - shared, c.context)
        shaped = sequence.params.shaped
        draft = 0 if shaped else c.draft  # a penalty depends on what was drawn just before
        before = c.trunk if shared else 0
        return DecodeShape(0, self._samples(sequence), columns, c.max_new, shaped, before, draft, self._in_place)

    def _batch_for(self, wanted: DecodeShape, trunk: np.ndarray, count: int) -> DecodeBatch | None:
        """A batch with room for some of `count` more rows: one that grows, or another one, as far as all may have rows."""
        sizes = self._config.rows
        for batch in self.batches:
            alike = dataclasses.replace(batch.shape, rows=0) == wanted and np.array_equal(batch.trunk, trunk)
            if batch.live and alike:
                larger = next((size for size in sizes if size > batch.shape.rows), None)
                worth = larger is not None and batch.live + count >= (batch.shape.rows + larger) // 2
                if larger is None or not worth or self._rows_but(batch) + larger > sizes[-1]:
                    return None
                self._resize(batch, larger)
                return batch
        others = self._rows_but(None)
        size = bucket(layout.cover(count, sizes)[0], sizes)
        while others and others + size > sizes[-1]:
            if size == sizes[0]:
                return None
            size = sizes[sizes.index(size) - 1]
        shape = dataclasses.replace(wanted, rows=size)
        empty = next((b for b in self.batches if not b.live and b.shape == shape), None)
        self.batches = [batch for batch in self.batches if batch.live]
        self.batches.append(DecodeBatch(shape, [None] * size, trunk, state=empty.state if empty else None))
        return self.batches[-1]

    def _rows_but(self, but: DecodeBatch | None) -> int:
        """Rows of all batches that are in use, padding included, except one."""
        return sum(batch.shape.rows for batch in self.batches if batch.live and batch is not but)

    def _shrink(self, batch: DecodeBatch, more_to_come: bool) -> None:
        """Fewer rows for a batch that has become small, unless more are to come."""
        smaller = [size for size in self._config.rows if batch.live <= size < batch.shape.rows]
        coming = self.ready or more_to_come or any(s.fresh for s in batch.rows if s is not None)
        if smaller and (not coming or self._passed_over > _PATIENCE) and batch.keep is None:
            self._resize(batch, smaller[-1])

    def _resize(self, batch: DecodeBatch, size: int) -> None:
        taken = [i for i, sequence in enumerate(batch.rows) if sequence is not None]
        if batch.state is not None:
            before = np.arange(len(batch.rows)) if batch.keep is None else batch.keep
            batch.keep = np.full(size, -1, np.int32)
            batch.keep[: len(taken)] = before[taken]
        batch.rows = [batch.rows[i] for i in taken] + [None] * (size - len(taken))
        batch.shape = dataclasses.replace(batch.shape, rows=size)
