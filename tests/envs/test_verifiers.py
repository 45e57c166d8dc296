"""Environments of verifiers as environments of ours, on the package itself: `counting_taskset.py` beside this file is one."""

import asyncio
import importlib.util
from pathlib import Path

import pytest

from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.envs.verifiers import environment as verifiers
from agentrm_jax.types import Action, UserError

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("verifiers") is None, reason="the package verifiers is not installed"
)
OPTIONS = {"taskset": "counting-taskset", "indices": "0-4"}


@pytest.fixture
def here(monkeypatch):
    """The folder of the taskset is the one that the program was started in."""
    monkeypatch.chdir(Path(__file__).parent)
    monkeypatch.syspath_prepend(Path(__file__).parent)


@pytest.fixture
def make(here):
    made = []

    def call(**more):
        made.append(verifiers.make({**OPTIONS, **more}))
        return made[-1]

    yield call
    for env in made:
        env.close()


def task(index=0, **more):
    return next(t for t in verifiers.tasks("test", {**OPTIONS, **more}) if t.args["index"] == index)


@needs_package
def test_an_episode_is_asked_turn_by_turn_and_judged_at_the_end(make):
    env = make()
    start = env.reset(task())
    assert (start.goal, start.observation) == ("Count to 2.", "You count.\n\nCount to 2.")
    first, last = env.step("up please"), env.step("up please")
    assert (first.observation, first.reward, first.over) == ("You are at 1.", 0.0, False)
    assert (last.reward, last.progress, last.over) == (1.0, 1.0, True)


@needs_package
@pytest.mark.parametrize(
    ("replies", "reward"),
    [
        (["up please", "up"], 0.5),  # there, but not always polite
        (["down please", "up please", "up please"], 1.0),
        (["up please", "bored"], 0.0),  # the task's own stop
    ],
)
def test_weighted_rewards_and_stops_are_the_tasks_own(make, replies, reward):
    env = make()
    env.reset(task())
    steps = [env.step(reply) for reply in replies]
    assert [s.over for s in steps] == [False] * (len(replies) - 1) + [True]
    assert steps[-1].reward == reward


@needs_package
def test_the_reward_is_what_verifiers_says_of_the_same_replies(make):
    """The environment's coroutine, driven by nothing of ours, with the same replies: the same trace is scored."""
    import verifiers.v1 as vf
    from verifiers.v1 import graph
    from verifiers.v1.trace import AgentInfo, Trace, TraceTask
    from verifiers.v1.types import AssistantMessage, Response, SystemMessage, UserMessage

    env = make()
    row = next(iter(env.environment.taskset))
    trace = Trace(
        task=TraceTask(type=type(row).__name__, data=row.data, key=row.key, hash=row.hash),
        state=vf.State(),
        agent=AgentInfo(config=vf.AgentConfig()),
    )
    messages = [SystemMessage(content="You count."), UserMessage(content="Count to 2.")]
    for reply, answer in (("up please", "You are at 1."), ("up please", "")):
        said = AssistantMessage(content=reply)
        response = Response(id=reply, created=0, model="m", message=said, finish_reason="stop")
        graph.prepare_turn(trace, messages).commit(response)
        messages += [said, UserMessage(content=answer)]
    asyncio.run(row.score(trace))
    trace.record_reward("reached", 1.0, 0.5)
    env.reset(task())
    env.step("up please")
    assert env.step("up please").reward == trace.reward == 1.0
    ours = env.exchange.episode.traces[0]
    assert [(n.message, n.sampled, n.parent) for n in ours.nodes] == [
        (n.message, n.sampled, n.parent) for n in trace.nodes
    ]


@needs_package
def test_the_last_turn_that_the_limit_allows_is_judged(make):
    env = make()
    env.reset(task(2, max_steps=2))
    env.step("up please")
    last = env.step("up please")
    assert (last.over, last.reward) == (True, 0.5)


@needs_package
def test_a_taskset_without_an_environment_is_one_turn(here, tmp_path, monkeypatch):
    (tmp_path / "echo_taskset.py").write_text(
        "import verifiers.v1 as vf\n__all__ = ['Echo']\n"
        "class Said(vf.TaskData):\n    answer: str\n"
        "class Saying(vf.Task[Said, vf.State, vf.TaskConfig]):\n"
        "    @vf.reward\n    async def right(self, task, trace) -> float:\n"
        "        return float(trace.last_reply == task.answer)\n"
        "class Echo(vf.Taskset[Saying, vf.TasksetConfig]):\n    def load(self):\n"
        "        yield Saying(Said(prompt='Say yes.', answer='yes'), self.config.task)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    env = verifiers.make({"taskset": "echo-taskset"})
    for reply, reward in (("yes", 1.0), ("no", 0.0)):
        assert env.reset(task()).observation == "Say yes."
        answer = env.step(reply)
        assert (answer.over, answer.reward) == (True, reward)
    with pytest.raises(UserError, match="echo-taskset has no task number 4"):
        env.reset(task(4))


@needs_package
def test_a_pool_plays_many_and_goes_back_by_replay(here):
    async def one(pool, index):
        root = await pool.reset(task(index))
        other = await pool.step(root, Action("Action: down please"))
        state = root
        while not state.done:
            state = await pool.step(state, Action("Action: up please"))
        back = await pool.step(other, Action("Action: up please"))
        return state.depth, state.outcome.reward, back.outcome.observation

    async def go():
        async with EnvironmentPool({"verifiers": OPTIONS}, workers=2, live=2) as pool:
            return await asyncio.gather(*(one(pool, index) for index in range(3))), pool.stats

    found, stats = asyncio.run(go())
    assert found == [(n + 2, 1.0, "Observation: You are at 1.") for n in range(3)]
    assert (stats.faults, stats.failed) == (0, 0)


@needs_package
def test_what_the_user_can_mend_is_named(make, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"no_such_taskset.* cannot be opened: ModuleNotFoundError"):
        make(taskset="no_such_taskset")
    with pytest.raises(UserError, match="counting-taskset cannot be opened: ValidationError"):
        make(config={"least": "many"})
    env = make(full_reward=0.5)
    env.reset(task())
    env.step("up please")
    with pytest.raises(UserError, match=r"gave a reward of 1, above 0\.5; set option full_reward"):
        env.step("up please")
    for body, reason in (
        ("    @vf.reward\n    async def run(self, runtime) -> float: ...\n", "judged in a sandbox"),
        ("    NEEDS_CONTAINER = True\n", "need a container"),
        ("    @classmethod\n    def toolsets(cls, config): return [1]\n", "done with tools"),
    ):
        name = f"needy_{reason.split()[0]}"
        (tmp_path / f"{name}.py").write_text(
            "import verifiers.v1 as vf\n__all__ = ['Needy']\n"
            f"class Needing(vf.Task[vf.TaskData, vf.State, vf.TaskConfig]):\n{body}"
            "class Needy(vf.Taskset[Needing, vf.TasksetConfig]):\n"
            "    def load(self):\n        yield Needing(vf.TaskData(prompt='x'), self.config.task)\n"
        )
        with pytest.raises(UserError, match=reason):
            make(taskset=name).reset(task())
    with pytest.raises(UserError, match="has the seats assistant, user; only those with one"):
        make(env="user-sim")


def test_tasks_are_places_in_the_taskset():
    assert [t.key for t in verifiers.tasks("test", {**OPTIONS, "indices": "1,3"})] == [
        "verifiers/counting-taskset-1",
        "verifiers/counting-taskset-3",
    ]
    with pytest.raises(UserError, match="indices names no tasks of split 'train'"):
        verifiers.tasks("train", OPTIONS)
    with pytest.raises(UserError, match="option taskset is missing"):
        verifiers.tasks("test", {})
