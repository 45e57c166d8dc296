"""What an engine is asked for, what it answers, and the sizes it works in."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class GenerateRequest:
    """`n` samples after the path `tokens` (int32[t], ends with a generation header)."""

    tokens: np.ndarray
    n: int
    temperature: float
    seed: int


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """Sampled ids (end-of-turn included if it was reached) and the sum of their log-probabilities at temperature 1."""

    tokens: np.ndarray
    logprob: float
    finished: bool


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Sizes the engine compiles for.

    Attributes:
      cache_tokens: slots of the key/value pool.
      rows: allowed numbers of histories in a decoding batch, ascending; it shrinks to a smaller one as samples end.
      batch_tokens: allowed numbers of new tokens in a reading batch, padding included, ascending.
      new_tokens: allowed numbers of new tokens of one history in a batch, ascending; more are read in pieces.
      context: allowed numbers of cached tokens of a row, ascending; the last one bounds the path.
      samples: samples of one history drawn together.
      max_new: tokens a sample may have.
      tensor: devices that share weights and cache, by heads and vocabulary.
    """

    cache_tokens: int = 65536
    rows: tuple[int, ...] = (8, 24, 64)
    batch_tokens: tuple[int, ...] = (512, 2048)
    new_tokens: tuple[int, ...] = (64, 512)
    context: tuple[int, ...] = (256, 512, 1024)
    samples: int = 5
    max_new: int = 64
    tensor: int = 1


@dataclasses.dataclass
class EngineStats:
    """What has been done: tokens of histories, tokens really read, tokens sampled, calls, their rows (tiles) and padding."""

    path_tokens: int = 0
    read_tokens: int = 0
    sampled_tokens: int = 0
    calls: int = 0
    rows: int = 0
    padded_rows: int = 0
