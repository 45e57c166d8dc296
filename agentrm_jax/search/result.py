"""What every search method returns."""

import dataclasses
from collections.abc import Mapping, Sequence

from agentrm_jax.search import aggregate as agg
from agentrm_jax.types import SearchTree, State


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """One trajectory that could be chosen.

    Attributes:
      state: its last executed state; `state.outcome.reward` is what it was worth.
      score: aggregate of `step_scores`; NaN if the reward model gave none.
      step_scores: the reward model's scores that were asked for, in step order (with `last` just the final one, in
        best-of-n).
      sample: index in that order; trajectories lost to environment faults leave gaps in best-of-n.
    """

    state: State
    score: float
    step_scores: tuple[float, ...] = ()
    sample: int = 0

    def scored(self, score: float, aggregate: str) -> "Candidate":
        """The same trajectory with the score of one more step; `aggregate` says what becomes of its own."""
        step_scores = (*self.step_scores, score)
        return dataclasses.replace(self, score=agg.aggregate(step_scores, aggregate), step_scores=step_scores)


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a search on one task.

    Attributes:
      candidates: in order of sampling (beam: in order of finishing, then what is unfinished); enough to compute
        curves over n, and the random and oracle rows, later.
      chosen: index into `candidates`.
      counts: what went on inside: `faults` (proposals or samples lost to the environment), `duplicates` (merged
        proposals), `unscored` (missing scores), and what a method's docstring names besides.
      tree: everything that was explored, of a method that keeps it; the candidate is then the best episode in it.
    """

    candidates: tuple[Candidate, ...]
    chosen: int
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    tree: SearchTree | None = None

    @property
    def state(self) -> State:
        """Last state of the chosen trajectory."""
        return self.candidates[self.chosen].state

    @property
    def finished(self) -> bool:
        """Whether the chosen episode is over; False only if none of the candidates is."""
        return self.state.done


def settle(candidates: Sequence[Candidate], counts: Mapping[str, int]) -> Result:
    """The result of a method whose candidates need not be finished; `sample` becomes their place.

    The best score among the finished is chosen, and an unfinished one only if there is none.
    """
    order = agg.rank([c.score for c in candidates])
    chosen = next((i for i in order if candidates[i].state.done), order[0])
    return Result(tuple(dataclasses.replace(c, sample=i) for i, c in enumerate(candidates)), chosen, dict(counts))
