"""The prefix cache against a brute-force record of what was inserted: longest matches, exclusive slots, safe eviction."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrm_jax.engine.prefix import PrefixCache


def ids(*tokens):
    return np.array(tokens, np.int32)


class Device:
    """A stand-in for the pool: which prefix each slot holds the last token of."""

    def __init__(self, capacity):
        self.cache = PrefixCache(capacity)
        self.content = [()] * capacity
        self.locks = []

    def add(self, path):
        """What the engine does for a path: match, allocate the rest, write it, insert. Returns the path's slots, or None."""
        lock = self.cache.lock(path)
        known = lock.slots
        fresh = self.cache.allocate(len(path) - len(known))
        if fresh is None:
            self.cache.unlock(lock)
            return None
        slots = np.concatenate([known, fresh])
        for i in range(len(known), len(path)):
            self.content[slots[i]] = tuple(path[: i + 1])
        held = self.cache.insert(path, slots)
        self.cache.unlock(lock)
        return held

    def keep(self, path):
        """Locks what is cached of a path until `let_go`."""
        self.locks.append(self.cache.lock(path))
        return self.locks[-1].slots

    def let_go(self):
        for lock in self.locks:
            self.cache.unlock(lock)
        self.locks = []

    def holds(self, path, slots):
        return [self.content[s] for s in slots] == [tuple(path[: i + 1]) for i in range(len(slots))]

    def paths(self):
        """Every prefix the tree records, with its slot, by walking all of it."""
        found, stack = {}, [(self.cache._root, ())]
        while stack:
            run, prefix = stack.pop()
            for token, slot in zip(run.tokens, run.slots, strict=True):
                prefix = (*prefix, int(token))
                assert prefix not in found
                found[prefix] = int(slot)
            stack += [(child, prefix) for child in run.children.values()]
        return found


def test_matches_the_longest_cached_beginning():
    device = Device(32)
    slots = device.add(ids(1, 2, 3, 4))
    assert device.cache.match(ids(1, 2, 3, 4, 5)).tolist() == slots.tolist()
    assert device.cache.match(ids(1, 2, 9)).tolist() == slots[:2].tolist()
    assert device.cache.match(ids(2, 1)).tolist() == []
    assert device.cache.match(ids()).tolist() == []


def test_forks_share_their_trunk():
    device = Device(32)
    trunk = device.add(ids(1, 2, 3))
    left, right = device.add(ids(1, 2, 3, 4)), device.add(ids(1, 2, 3, 5, 6))
    assert left[:3].tolist() == right[:3].tolist() == trunk.tolist()
    assert device.cache.free == 32 - 6


def test_a_path_inserted_twice_keeps_its_first_slots_and_frees_the_others():
    cache = PrefixCache(8)
    first = cache.insert(ids(1, 2, 3), cache.allocate(3))
    again = cache.insert(ids(1, 2, 4), cache.allocate(3))
    assert again[:2].tolist() == first[:2].tolist()
    assert again[2] not in first
    assert cache.free == 8 - 4


def test_evicts_what_was_used_longest_ago_and_ends_before_beginnings():
    device = Device(10)
    for path in (ids(1, 2, 3), ids(4, 5, 6), ids(7, 8, 9)):
        device.add(path)
    device.cache.match(ids(1, 2))
    assert device.add(ids(10, 11, 12)) is not None
    assert len(device.cache.match(ids(1, 2, 3))) == 2  # the 3 was oldest, its beginning was in use
    assert len(device.cache.match(ids(4, 5, 6))) == 0  # then this path
    assert len(device.cache.match(ids(7, 8, 9))) == 3


def test_what_lies_beyond_a_match_may_be_evicted():
    device = Device(8)
    device.add(ids(*range(8)))
    kept = device.keep(ids(0, 1, 2))
    assert device.add(ids(0, 1, 2, 90, 91, 92, 93, 94)) is not None
    assert device.holds(ids(0, 1, 2), kept)


def test_refuses_more_than_can_be_freed():
    device = Device(8)
    device.add(ids(1, 2, 3, 4, 5))
    device.keep(ids(1, 2, 3, 4, 5))
    assert device.cache.allocate(4) is None
    assert device.cache.free == 3
    assert len(device.cache.match(ids(1, 2, 3, 4, 5))) == 5


def test_a_lock_holds_its_path_and_no_more_and_until_it_is_let_go():
    device = Device(8)
    device.add(ids(1, 2, 3, 4))
    device.add(ids(1, 2, 8, 9))
    device.keep(ids(1, 2, 3, 4))
    device.keep(ids(1, 2, 3))  # a lock in the middle of what is locked
    assert device.add(ids(5, 6, 7, 0)) is not None
    assert len(device.cache.match(ids(1, 2, 8, 9))) == 2
    assert len(device.cache.match(ids(1, 2, 3, 4))) == 4
    assert device.cache.locked == 2
    device.let_go()
    assert device.cache.locked == 0
    assert device.cache.allocate(8) is not None


def test_released_slots_are_given_out_again():
    cache = PrefixCache(4)
    slots = cache.allocate(4)
    cache.release(slots[1:3])
    assert sorted(cache.allocate(2).tolist()) == sorted(slots[1:3].tolist())
    assert cache.allocate(1) is None


PATHS = st.lists(st.integers(0, 2), min_size=1, max_size=12)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.one_of(PATHS, st.none()), max_size=40), st.sampled_from([12, 20, 40, 200]))
def test_against_a_brute_force_record(operations, capacity):
    """Any order of paths (None lets go of all that came before), in caches that overflow early, late or never."""
    device = Device(capacity)
    inserted: set[tuple[int, ...]] = set()
    protected: set[tuple[int, ...]] = set()
    for operation in operations:
        if operation is None:
            device.let_go()
            protected = set()
            continue
        path = ids(*operation)
        before = device.paths()
        known = device.keep(path)
        longest = max((n for n in range(len(path) + 1) if tuple(operation[:n]) in before or n == 0), default=0)
        assert len(known) == longest
        assert device.holds(path, known)
        protected |= {tuple(operation[: n + 1]) for n in range(longest)}
        slots = device.add(path)
        if slots is None:
            assert len(protected | {tuple(operation[: n + 1]) for n in range(len(path))}) > capacity
        else:
            assert device.holds(path, slots)
            device.keep(path)
            inserted |= {tuple(operation[: n + 1]) for n in range(len(path))}
            protected |= {tuple(operation[: n + 1]) for n in range(len(path))}
        after = device.paths()
        assert set(after) <= inserted
        assert protected <= set(after)
        assert len(set(after.values())) == len(after)
        assert all(device.content[slot] == prefix for prefix, slot in after.items())
        assert device.cache.free + len(after) == capacity


def test_giving_back_more_than_there_is_fails_loudly():
    cache = PrefixCache(4)
    with pytest.raises(ValueError):
        cache.release(np.arange(2, dtype=np.int32))
