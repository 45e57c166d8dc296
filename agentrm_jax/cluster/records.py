"""What engines tell the driver about a task. Flat records: a state is a chain as long as its episode, which pickle would descend."""

import dataclasses
from collections.abc import Mapping

from agentrm_jax.search import Candidate, Cost, Done, Result
from agentrm_jax.types import JSON, SearchTree, Task, Trajectory, state_of, trajectory_of


@dataclasses.dataclass(frozen=True)
class FlatResult:
    """A `Result`, with a trajectory and the remaining fields of each candidate instead of its state."""

    candidates: tuple[tuple[Trajectory, float, tuple[float, ...], int], ...]
    chosen: int
    counts: Mapping[str, int]
    tree: SearchTree | None

    @classmethod
    def of(cls, result: Result) -> "FlatResult":
        """`result` without its chains of states; keys of states, which mean something in one pool only, are left out."""
        flat = ((trajectory_of(c.state), c.score, c.step_scores, c.sample) for c in result.candidates)
        return cls(tuple(flat), result.chosen, dict(result.counts), result.tree)

    def result(self) -> Result:
        """The result, with states again."""
        candidates = (
            Candidate(state_of(trajectory), score, step_scores, sample)
            for trajectory, score, step_scores, sample in self.candidates
        )
        return Result(tuple(candidates), self.chosen, self.counts, self.tree)


@dataclasses.dataclass(frozen=True)
class Finished:
    """A task's end, as the engine that searched it tells it.

    Attributes:
      result, fault, seconds: as in `search.Done`.
      cost: what the task cost.
      spent: what the engine has spent in all since it was started, on tasks in flight too.
      notes: what the reward model has to say about its scores of the task.
    """

    task: Task
    result: FlatResult | None
    fault: str | None
    seconds: float
    cost: Cost
    spent: Cost
    notes: Mapping[str, JSON]

    def done(self) -> Done[Result]:
        """As `search.run_tasks` hands it over."""
        return Done(self.task, self.result.result() if self.result else None, self.fault, self.seconds)
