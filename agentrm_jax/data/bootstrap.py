"""Bootstrap samples of the tasks, one for each value head of an ensemble."""

import functools
import hashlib

import numpy as np


def task_number(key: str) -> int:
    """A number of 31 bits that stands for a task's key in a dataset."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big") >> 1


@functools.lru_cache(maxsize=1 << 16)
def task_weights(number: int, seed: int, heads: int) -> tuple[float, ...]:
    """How often a task is in the sample of every head: Poisson(1) draws, as in the online bootstrap of Oza and Russell.

    They depend on the task, the seed and the head alone, so runs, processes and resumed runs agree.
    """
    return tuple(np.random.default_rng((seed, number)).poisson(1.0, heads).astype(np.float32).tolist())


def head_weights(tasks_t: np.ndarray, seed: int, heads: int) -> np.ndarray:
    """float32[t, e] of the tasks' numbers int32[t]; 0 where the number is negative (no task)."""
    found = np.zeros((len(tasks_t), heads), np.float32)
    for number in np.unique(tasks_t):
        if number >= 0:
            found[tasks_t == number] = task_weights(int(number), seed, heads)
    return found
