"""A request on its way: the job its asker holds, and the sequences that the scheduler moves."""

import dataclasses
from typing import Any

import numpy as np

from agentrm_jax.engine.facts import SlotFacts
from agentrm_jax.engine.prefix import Lock
from agentrm_jax.engine.requests import Completion, GenerateRequest, LogprobsRequest, Request, SamplingParams


@dataclasses.dataclass(eq=False, slots=True)
class Job:
    """What became of a request. Its result is there once it is `done`, unless it was cancelled.

    Attributes:
      result: samples of a `GenerateRequest`, a float for a `ScoreRequest` (of several value heads float32[e]), float32[len - start]
        for a `LogprobsRequest`.
    """

    request: Request
    result: Any = None
    done: bool = False
    cancelled: bool = False
    samples: dict[int, Completion] = dataclasses.field(default_factory=dict)

    def finish(self, result: Any) -> None:
        self.result, self.done = result, True

    def add_sample(self, index: int, sample: Completion) -> None:
        """Keeps one sample; the last one finishes the job."""
        assert isinstance(self.request, GenerateRequest)
        self.samples[index] = sample
        if len(self.samples) == self.request.params.n:
            self.finish([self.samples[i] for i in range(len(self.samples))])


@dataclasses.dataclass(eq=False, slots=True)
class Lane:
    """One sample under way. `base` counts the tokens that came before its row was last entered."""

    index: int
    seed: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    top: list[tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=list)
    base: int = 0
    ended: bool = False
    stop: str | None = None


@dataclasses.dataclass(eq=False, slots=True)
class Sequence:
    """A path that is to be cached, and what is to be done then. It waits, is ready, or runs in a row of a decode batch.

    Attributes:
      path: int32[t], all tokens so far.
      target: the part of it that has to be cached first. A sample goes on from the path's last token, which decode reads.
      lanes: the samples that continue the path side by side; none for scores and log-probabilities.
      lock: keeps the cached beginning of `target`.
      fresh: it has a row that the device does not know of.
    """

    job: Job
    path: np.ndarray
    lanes: list[Lane]
    target: np.ndarray
    lock: Lock | None = None
    fresh: bool = False

    @classmethod
    def of(cls, job: Job, path: np.ndarray, lanes: list[Lane]) -> "Sequence":
        return cls(job, path, lanes, path[: len(path) - 1] if lanes else path)

    @property
    def params(self) -> SamplingParams:
        assert isinstance(self.job.request, GenerateRequest)
        return self.job.request.params

    @property
    def wants_logprobs(self) -> bool:
        return isinstance(self.job.request, LogprobsRequest)

    def first_unread(self, slots: np.ndarray, facts: SlotFacts) -> int:
        """Index in `target` that prefill goes on from, if `slots` hold its beginning; its length if nothing is left to read.

        A log-probability is computed where the token before is read, so that token is read again.
        """
        reach = len(self.target)
        if self.lanes:
            return len(slots)
        if isinstance(self.job.request, LogprobsRequest):
            start = self.job.request.start
            unknown = np.flatnonzero(~facts.has_logprob[slots[start:]])
            first = start + int(unknown[0]) if len(unknown) else max(start, len(slots))
            return reach if first == reach else min(len(slots), first - 1)
        if len(slots) == reach and not facts.has_value[slots[-1]]:
            return reach - 1
        return len(slots)

    def finish(self, slots: np.ndarray, facts: SlotFacts) -> None:
        """Answers a score or log-probabilities from what is known of all of `target`."""
        if isinstance(self.job.request, LogprobsRequest):
            self.job.finish(facts.logprob[slots[self.job.request.start :]].copy())
        else:
            value = facts.value[slots[-1]]
            self.job.finish(value.copy() if value.ndim else float(value))

    def again(self) -> "list[Sequence]":
        """What is left to do after this has lost its row: samples that have begun go on by themselves."""
        going = [lane for lane in self.lanes if not lane.ended]
        if all(len(lane.tokens) == lane.base for lane in going):
            return [Sequence.of(self.job, self.path, going)] if going else []
        out = []
        for lane in going:
            path = np.concatenate([self.path, np.asarray(lane.tokens[lane.base :], np.int32)])
            lane.base = len(lane.tokens)
            out.append(Sequence.of(self.job, path, [lane]))
        return out
