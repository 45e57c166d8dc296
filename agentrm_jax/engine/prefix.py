"""Which token paths have their keys and values in the pool: a radix tree over tokens, on the host.

The pool on the device is an array of token slots. A path is a list of slots, so paths that share a beginning share its slots,
memory grows with unique tokens, and a fork copies nothing.
"""

import dataclasses
import heapq

import numpy as np


@dataclasses.dataclass(eq=False, slots=True)
class _Run:
    """An edge of the radix tree: some tokens in a row and where they lie."""

    tokens: np.ndarray
    slots: np.ndarray
    parent: "_Run | None"
    used: int
    locks: int = 0  # of this run and of everything below it
    children: "dict[int, _Run]" = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Lock:
    """A cached beginning of a path that stays until it is unlocked: its slots, int32[m]."""

    slots: np.ndarray
    run: _Run


class PrefixCache:
    """Slots for up to `capacity` tokens; of what is not locked, the least recently used ends of paths are dropped first."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._root = _Run(np.zeros(0, np.int32), np.zeros(0, np.int32), None, 0)
        self._free = np.arange(capacity, dtype=np.int32)[::-1].copy()  # a stack: the first `_top` are free
        self._top = capacity
        self._clock = 0

    @property
    def free(self) -> int:
        return self._top

    @property
    def held(self) -> int:
        """Slots of paths that are cached (walks all of them)."""
        count, stack = 0, [self._root]
        while stack:
            run = stack.pop()
            stack.extend(run.children.values())
            count += len(run.slots)
        return count

    @property
    def locked(self) -> int:
        """Locks that are held."""
        return self._root.locks

    def match(self, tokens: np.ndarray) -> np.ndarray:
        """Slots of the longest cached prefix of `tokens`: int32[m], m <= len(tokens)."""
        return self._walk(tokens)[0]

    def lock(self, tokens: np.ndarray) -> Lock:
        """The same, kept until it is unlocked."""
        slots, run = self._walk(tokens)
        self._count(run, 1)
        return Lock(slots, run)

    def unlock(self, lock: Lock) -> None:
        """Lets a lock go, once."""
        self._count(lock.run, -1)

    def _count(self, run: _Run | None, change: int) -> None:
        while run is not None:
            run.locks += change
            run = run.parent

    def _walk(self, tokens: np.ndarray) -> tuple[np.ndarray, _Run]:
        self._clock += 1
        run, at, parts = self._root, 0, []
        while at < len(tokens):
            child = run.children.get(int(tokens[at]))
            if child is None:
                break
            same = common_length(child.tokens, tokens[at:])
            if same < len(child.tokens):
                child = self._cut(child, same)  # what lies beyond stays evictable
            child.used = self._clock
            parts.append(child.slots)
            run, at = child, at + same
        return (np.concatenate(parts) if parts else np.zeros(0, np.int32)), run

    def allocate(self, count: int) -> np.ndarray | None:
        """`count` fresh slots, evicting what is not locked; None if that is not enough."""
        if count > self._top and not self._evict(count):
            return None
        self._top -= count
        return self._free[self._top : self._top + count][::-1].copy()

    def release(self, slots: np.ndarray) -> None:
        """Gives back slots that were allocated but not inserted."""
        self._free[self._top : self._top + len(slots)] = slots[::-1]
        self._top += len(slots)

    def insert(self, tokens: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Records that `tokens` (a whole path) lie in `slots`; returns the slots that hold them from now on.

        A part that is known already keeps its slots, and the caller's duplicates are given back.
        """
        self._clock += 1
        run, at = self._root, 0
        held = slots.copy()
        while at < len(tokens):
            child = run.children.get(int(tokens[at]))
            if child is None:
                run.children[int(tokens[at])] = _Run(tokens[at:].copy(), slots[at:].copy(), run, self._clock)
                break
            same = common_length(child.tokens, tokens[at:])
            ours, theirs = slots[at : at + same], child.slots[:same]
            held[at : at + same] = theirs
            if (spare := ours[ours != theirs]).size:
                self.release(spare)
            if same < len(child.tokens):
                child = self._cut(child, same)
            child.used = self._clock
            run, at = child, at + same
        return held

    def _cut(self, run: _Run, at: int) -> _Run:
        """Splits an edge after `at` tokens; returns the upper part."""
        assert run.parent is not None
        upper = _Run(run.tokens[:at], run.slots[:at], run.parent, run.used, run.locks)
        upper.children[int(run.tokens[at])] = run
        run.parent.children[int(run.tokens[0])] = upper
        run.tokens, run.slots, run.parent = run.tokens[at:], run.slots[at:], upper
        return upper

    def _evict(self, count: int) -> bool:
        """Drops least recently used leaves until `count` slots (and a tenth of the pool, to do this rarely) are free."""
        goal = max(count, self.capacity // 10)
        heap: list[tuple[int, int, _Run]] = []
        stack = [self._root]
        while stack:
            run = stack.pop()
            stack.extend(run.children.values())
            if not run.children and run.parent is not None and not run.locks:
                heapq.heappush(heap, (run.used, id(run), run))
        while heap and self._top < goal:
            _, _, run = heapq.heappop(heap)
            parent = run.parent
            assert parent is not None
            del parent.children[int(run.tokens[0])]
            self.release(run.slots)
            if not parent.children and parent.parent is not None and not parent.locks:
                heapq.heappush(heap, (parent.used, id(parent), parent))
        return self._top >= count


def common_length(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common beginning."""
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    return int(different.argmax()) if different.any() else n
