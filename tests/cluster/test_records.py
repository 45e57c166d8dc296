"""What an engine tells the driver: it pickles however long an episode is, and nothing of it is lost on the way."""

import dataclasses
import pickle

from agentrm_jax.cluster.records import Finished, FlatResult
from agentrm_jax.search import Candidate, Cost, Result
from agentrm_jax.types import Action, Outcome, State, Task, trajectory_of


def episode(steps: int) -> State:
    state = State(Task("maze", "1", "test", steps, {"size": 3}), "find it", outcome=Outcome("see"))
    for i in range(steps):
        answer = Outcome(f"see {i}", i / steps, done=i + 1 == steps)
        state = dataclasses.replace(state.propose(Action(f"go {i}", (i, 2), -0.5)), outcome=answer)
    return state


def test_a_result_comes_back_whole_however_long_its_episodes_are():
    candidates = (Candidate(episode(3000), 0.25, (0.5, 0.25), 2), Candidate(episode(1), 0.75, (), 4))
    result = Result(candidates, 1, {"faults": 3})
    task = result.state.task
    sent = Finished(
        task, FlatResult.of(result), None, 1.5, Cost(env_steps=7), Cost(env_steps=9), {"judge": {"asked": 1}}
    )
    got = pickle.loads(pickle.dumps(sent))
    assert got == sent
    done = got.done()
    assert (done.task, done.fault, done.seconds) == (task, None, 1.5)
    assert done.task.args == {"size": 3}
    assert (done.result.chosen, done.result.counts, done.result.tree) == (1, {"faults": 3}, None)
    for before, after in zip(candidates, done.result.candidates, strict=True):
        assert trajectory_of(after.state) == trajectory_of(before.state)
        assert (after.state.depth, after.state.done) == (before.state.depth, True)
        assert (after.score, after.step_scores, after.sample) == (before.score, before.step_scores, before.sample)


def test_a_task_that_failed_has_its_reason_and_no_result():
    done = Finished(episode(1).task, None, "it hung", 2.0, Cost(), Cost(), {}).done()
    assert (done.result, done.fault) == (None, "it hung")
