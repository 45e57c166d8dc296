"""What an engine is asked for, what it answers, and the sizes it works in."""

import dataclasses

import numpy as np

from agentrm_jax.types import UserError


class RequestError(UserError):
    """One request cannot be served, whatever else is asked for; other requests go on."""


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one request are chosen.

    Filters apply in the order temperature, top_k, top_p, min_p, each to what the one before has left.

    Attributes:
      temperature: 0 takes the most likely token.
      n: samples drawn of one path.
      seed: sample i depends on the path, the parameters, the seed and i alone.
      max_tokens: tokens a sample may have; None for the engine's `max_new`.
      stop_token_ids: tokens that end a sample (and belong to it); None for the engine's end-of-turn token.
      stop: texts that end a sample, wherever token boundaries lie; the token that completes one is the last.
      top_k: only the k most likely tokens are drawn; 0 for all.
      top_p: only the most likely tokens are drawn, as many as have this probability together.
      min_p: only tokens at least this times as likely as the most likely one are drawn.
      repetition_penalty: divides positive and multiplies negative logits of tokens that the path or the sample has.
      logprobs: how many of the most likely tokens are reported with every token, at most 20.
    """

    temperature: float = 1.0
    n: int = 1
    seed: int = 0
    max_tokens: int | None = None
    stop_token_ids: tuple[int, ...] | None = None
    stop: tuple[str, ...] = ()
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logprobs: int = 0

    MOST_LOGPROBS = 20
    MOST_STOP_IDS = 8

    def __post_init__(self) -> None:
        ranges = {
            "temperature": self.temperature >= 0,
            "n": self.n >= 1,
            "max_tokens": self.max_tokens is None or self.max_tokens >= 1,
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "min_p": 0 <= self.min_p <= 1,
            "repetition_penalty": self.repetition_penalty > 0,
            "logprobs": 0 <= self.logprobs <= self.MOST_LOGPROBS,
            "stop_token_ids": len(self.stop_token_ids or ()) <= self.MOST_STOP_IDS,
            "stop": all(self.stop),
        }
        for name, fine in ranges.items():
            if not fine:
                raise RequestError(f"{name}={getattr(self, name)!r} is not a value that sampling can have")

    @property
    def shaped(self) -> bool:
        """Whether drawing needs more than a temperature."""
        filtered = self.top_k > 0 or self.top_p < 1 or self.min_p > 0 or self.repetition_penalty != 1
        return filtered or self.logprobs > 0


@dataclasses.dataclass(frozen=True, eq=False)
class GenerateRequest:
    """Samples after the path `tokens` (int32[t], t >= 1; for a chat it ends with a generation header)."""

    tokens: np.ndarray
    params: SamplingParams = SamplingParams()


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreRequest:
    """The value head's output (the outputs of several) at the end of the path `tokens` (int32[t], t >= 1)."""

    tokens: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class LogprobsRequest:
    """log p of every token of the path from index `start` (at least 1) on, each given all before it."""

    tokens: np.ndarray
    start: int


Request = GenerateRequest | ScoreRequest | LogprobsRequest


@dataclasses.dataclass(frozen=True, eq=False)
class Completion:
    """One continuation.

    Attributes:
      tokens: int32[m] sampled ids, the stop token included if one was reached.
      logprobs: float32[m], their log-probabilities under the model itself: at temperature 1 and without filters.
      finished: a stop token or a stop text was reached.
      stop: the stop text that was reached, or None.
      top: int32[m, k] and float32[m, k], the most likely tokens at every place and their log-probabilities, if asked for.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    finished: bool
    stop: str | None = None
    top: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def logprob(self) -> float:
        return float(self.logprobs.sum(dtype=np.float64))


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Sizes the engine compiles for.

    Attributes:
      cache_tokens: slots of the key/value pool.
      rows: allowed numbers of histories in a decode batch, ascending; a batch grows and shrinks between them.
      batch_tokens: allowed numbers of new tokens in a prefill batch, padding included, ascending.
      new_tokens: allowed numbers of new tokens of one history in a batch, ascending; more are read in chunks.
      context: allowed numbers of cached tokens of a row, ascending; the last one bounds the path.
      samples: samples of one history that are decoded side by side.
      max_new: tokens a sample may have unless its request says otherwise, and that a row of a decode batch has room for.
      trunk: tokens of what most requests begin with that the rows of a decode batch read together; 0: each reads its own.
      draft: tokens that a decode step proposes for a sample by prompt lookup and verifies, where that is faster; 0: none.
      tensor: devices that share weights and cache, by heads and vocabulary.
      weights: type of embeddings and linear maps, "bfloat16" or "int8" (a scale for every output channel); empty: the engine's own.
    """

    cache_tokens: int = 65536
    rows: tuple[int, ...] = (8, 24, 64)
    batch_tokens: tuple[int, ...] = (512, 2048)
    new_tokens: tuple[int, ...] = (64, 512)
    context: tuple[int, ...] = (256, 512, 1024)
    samples: int = 5
    max_new: int = 64
    trunk: int = 0
    draft: int = 0
    tensor: int = 1
    weights: str = ""


@dataclasses.dataclass
class EngineStats:
    """What has been done.

    Attributes:
      path_tokens: tokens of the histories that prefill batches were about, cached ones included.
      read_tokens: tokens of given paths that were computed.
      sampled_tokens: tokens that were sampled and kept.
      prefills: prefill batches run; `tiles` and `padded_tiles`: what they held and what of it was padding.
      decode_steps: decode steps run, of whatever number of rows; `rows`: rows in them that were not padding.
      drafted, accepted: tokens that were proposed, and those of them that were drawn.
    """

    path_tokens: int = 0
    read_tokens: int = 0
    sampled_tokens: int = 0
    prefills: int = 0
    tiles: int = 0
    padded_tiles: int = 0
    decode_steps: int = 0
    rows: int = 0
    drafted: int = 0
    accepted: int = 0
