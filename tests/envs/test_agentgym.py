"""The AgentGym client against a small server of our own on loopback, which can misbehave in all the ways theirs do."""

import asyncio
import json
import socket
import time

import pytest

from agentrm_jax.envs.agentgym import environment as agentgym
from agentrm_jax.envs.agentgym.http import ServerError
from agentrm_jax.envs.agentgym.kinds import KINDS, sent
from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.types import Action, EnvironmentFault, UserError
from tests.envs.agentgym_server import count_up, options, play, task, through_pool

# Speaking the protocol

STYLES = {
    "custom": {},
    "alfworld": {"index_field": "game", "extra": frozenset({"world_type"})},
    "webshop": {
        "env_field": "env_idx",
        "index_field": "session_id",
        "bare_id": True,
        "text_key": "state",
        "reset_answer": "list",
        "lists": True,
    },
    "weather": {"env_field": "env_idx", "index_field": "id", "bare_id": True, "reset_answer": "text", "lists": True},
    "wordle": {"index_field": "seed"},
    "maze": {"index_field": "game", "reset_answer": "empty"},
    "sciworld": {"reward_key": "score", "full": 100, "failure": -100},
    "webarena": {"env_field": "env_idx", "index_field": "idx", "done_key": "terminated", "extra": frozenset({"seed"})},
}


@pytest.mark.parametrize("kind", STYLES)
def test_every_spelling_of_the_protocol_is_the_same_game(serve, kind, monkeypatch):
    server = serve(**STYLES[kind])
    monkeypatch.setattr("agentrm_jax.envs.agentgym.environment.sent", lambda kind, command: command)
    env = agentgym.make(options(server, kind=kind))
    start, steps = play(env, ["up", "stay", "up"])
    assert start.observation.endswith("Your goal: count to 2.\nYou are at 0.")
    assert start.goal == (KINDS[kind].goal or "count to 2.")
    assert [s.observation for s in steps] == ["You are at 1.", "You are at 1.", "You are at 2."]
    assert [(s.reward, s.progress, s.over) for s in steps] == [(0, 0, False), (0, 0, False), (1, 1, True)]
    assert play(env, ["up"], index=1)[1][0].over  # the next episode uses the same environment
    env.close()
    assert server.envs == {}
    assert [r[0] for r in server.requests].count("/create") == 1


def test_the_rules_come_before_the_first_observation_and_can_be_replaced(serve):
    server = serve()
    assert play(agentgym.make(options(server)), [])[0].observation.startswith("Your goal")
    start, _ = play(agentgym.make(options(server, rules="Say up or down.")), [])
    assert start.observation == "Say up or down.\n\nYour goal: count to 2.\nYou are at 0."


def test_field_names_and_the_full_reward_can_be_set(serve):
    server = serve(env_field="e", index_field="i", reward_key="points", full=50)
    fields = {"env_field": "e", "index_field": "i", "reward_field": "points", "full_reward": 50}
    assert play(agentgym.make(options(server, **fields)), ["up", "up"])[1][-1].reward == 1.0


def test_a_failure_below_zero_is_reward_zero_and_not_success(serve):
    server = serve(reward_key="score", full=100, failure=-100)
    (step,) = play(agentgym.make(options(server, kind="sciworld")), ["down"])[1]
    assert (step.reward, step.progress, step.over) == (0.0, 0.0, True)


def test_how_commands_are_sent():
    assert sent(KINDS["webshop"], "click[Buy Now]\nand then I wait") == "click[Buy Now]"
    assert sent(KINDS["sqlgym"], "SELECT 1\nFROM t") == "SELECT 1\nFROM t"
    assert sent(KINDS["webarena"], "click [12]") == "```click [12]```"
    call = 'get_x with Action Input: {"flag": true, "name": "it\'s"}'
    assert sent(KINDS["weather"], call) == "Action: get_x with Action Input: {'flag': True, 'name': \"it's\"}"
    assert sent(KINDS["weather"], "?!") == "Action: ?!"


# Misbehaviour

FAULTS = ["hang", "drop", "error", "html", "crash", "null", "textless", "endless", "rewardless", "nan", "forget"]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_goes_wrong_in_a_step_is_a_server_error(serve, fault):
    server = serve(bad=fault)
    with pytest.raises(ServerError, match=r"http://127\.0\.0\.1:\d+/step"):
        play(agentgym.make(options(server)), ["up"])


@pytest.mark.parametrize("fault", FAULTS)
def test_the_pool_replays_the_episode_in_another_environment(serve, fault):
    server = serve()
    timeout = 1.0 if fault == "hang" else 10.0

    async def run(pool):
        state = await count_up(pool, 1)
        server.style.bad = fault
        return await pool.step(state, Action("Action: up"))

    state, stats = through_pool(server, run, timeout=timeout)
    assert (state.outcome.observation, state.outcome.success) == ("Observation: You are at 2.", True)
    assert (stats.faults, stats.failed, stats.replayed_steps) == (1, 0, 1)
    assert [r[0] for r in server.requests].count("/create") == 2


def test_a_step_is_never_sent_twice_unless_it_was_turned_away(serve):
    server = serve(bad="drop")
    with pytest.raises(ServerError, match="connection was lost"):
        play(agentgym.make(options(server)), ["up"])
    assert [r[0] for r in server.requests].count("/step") == 1
    server = serve(bad="busy")
    assert play(agentgym.make(options(server)), ["up"])[1][0].observation == "You are at 1."


def test_a_server_that_keeps_failing_is_an_environment_fault_that_says_why(serve):
    server = serve(bad="error", forever=True)
    with pytest.raises(EnvironmentFault, match="/step reports an error: list index out of range"):
        through_pool(server, count_up)


def test_an_environment_that_somebody_else_uses_is_refused(serve):
    server = serve(lists=True, bare_id=True)
    server.envs[3] = None
    first = agentgym.make(options(server))
    server.style.full_up = True
    with pytest.raises(ServerError, match=r"handed out environment 7, which is already in use: it is full"):
        agentgym.make(options(server))
    assert 7 in server.envs  # and it is not closed under its user's feet
    assert play(first, ["up"])[1][0].observation == "You are at 1."


def test_the_same_id_twice_is_noticed_without_a_list_of_environments_too(serve):
    server = serve()
    first = agentgym.make(options(server))
    server.style.full_up = True
    with pytest.raises(ServerError, match="already in use"):
        agentgym.make(options(server))
    first.close()


def test_a_reset_answered_for_another_environment_is_refused(serve):
    server = serve()
    env = agentgym.make(options(server))
    real = server.play
    server.play = lambda url, body: (200, {"id": 99, "observation": "x"}) if url.path == "/reset" else real(url, body)
    with pytest.raises(ServerError, match="answered for environment 99 instead of 7"):
        env.reset(task())


# What the user can mend


def test_wrong_addresses_and_kinds_are_named(serve):
    server = serve(bad="gone@/create")
    with pytest.raises(UserError, match=r"/create answers 404 .*check the options base_url and kind"):
        agentgym.make(options(server))
    server = serve(bad="strange@/reset")
    with pytest.raises(UserError, match=r"/reset answers 422 .*field required"):
        agentgym.make(options(server)).reset(task())
    with pytest.raises(
        UserError, match=r"cannot be reached: .*; start the AgentGym server, or correct option base_url"
    ):
        agentgym.make({"base_url": "http://127.0.0.1:9", "kind": "custom", "patience": 0})
    with pytest.raises(UserError, match="must look like http"):
        agentgym.make({"base_url": "127.0.0.1:36001", "kind": "custom"})
    with pytest.raises(UserError, match="base_url is missing"):
        agentgym.make({"kind": "custom"})


def test_a_reward_above_the_full_one_is_not_clipped_in_silence(serve):
    server = serve(bad="generous")
    with pytest.raises(UserError, match="reward of 7, above 1; set option full_reward"):
        play(agentgym.make(options(server)), ["up"])


def test_a_server_that_is_not_up_yet_is_waited_for():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    begin = time.monotonic()
    with pytest.raises(UserError, match="cannot be reached"):
        agentgym.make({"base_url": f"http://127.0.0.1:{port}", "kind": "custom", "patience": 0.3})
    assert time.monotonic() - begin >= 0.3


# Tasks


def test_tasks_are_named_by_numbers_ranges_and_files(tmp_path):
    def indices(value, split="test"):
        return [t.args["index"] for t in agentgym.tasks(split, {"kind": "webshop", "indices": value})]

    assert indices(3) == [0, 1, 2]
    assert indices("4,0-2,1") == [4, 0, 1, 2]
    assert indices([5, 7]) == [5, 7]
    assert indices({"train": "8-9", "test": 1}, "train") == [8, 9]
    rows = [{"conversations": None, "item_id": "webshop_12"}, {"item_id": "lmrlgym_maze_3"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert indices(str(tmp_path / "a.json")) == indices(str(tmp_path / "b.jsonl")) == [12, 3]
    for split, value in [("train", "0-9"), ("test", None), ("test", {"train": "0"})]:
        with pytest.raises(UserError, match="names no tasks of split"):
            indices(value, split)
    for wrong in ["a-b", str(tmp_path / "none.json"), [None]]:
        with pytest.raises(UserError, match="option indices cannot be read"):
            indices(wrong)


def test_tasks_know_their_step_limit_and_wrong_options_are_named():
    assert task().max_steps == 30
    assert agentgym.tasks("test", {"kind": "webshop", "indices": 1})[0].max_steps == 10
    assert agentgym.tasks("test", {"kind": "webshop", "indices": 1, "max_steps": 6})[0].max_steps == 6
    with pytest.raises(UserError, match="option kind must be one of webshop, alfworld"):
        agentgym.tasks("test", {"kind": "shop", "indices": 1})
    with pytest.raises(UserError, match="no option 'url'"):
        agentgym.tasks("test", {"kind": "webshop", "url": "x"})


def test_a_server_under_a_name_of_its_own(serve):
    server = serve(full=2)
    spec = agentgym.served("custom", name="half", success_threshold=0.5, full_reward=4, base_url=server.url)
    (chosen,) = spec.tasks("test", {"indices": "2"})
    assert chosen.key == "half/custom-2"

    async def go():
        async with EnvironmentPool({"half": {}}, workers=1, specs={"half": spec}) as pool:
            state = await pool.reset(chosen)
            for _ in range(2):
                state = await pool.step(state, Action("Action: up"))
            return state.outcome

    outcome = asyncio.run(go())
    assert (outcome.reward, outcome.success) == (0.5, True)


def test_the_threshold_of_success_is_an_option_too(serve):
    options = {"kind": "custom", "base_url": serve(full=2).url, "full_reward": 4, "indices": "2"}

    async def go(threshold):
        async with EnvironmentPool({"agentgym": {**options, **threshold}}, workers=1) as pool:
            (chosen,) = agentgym.tasks("test", options)
            state = await pool.reset(chosen)
            for _ in range(2):
                state = await pool.step(state, Action("Action: up"))
            return state.outcome.success

    assert not asyncio.run(go({}))
    assert asyncio.run(go({"success_threshold": 0.5}))
    with pytest.raises(UserError, match="success_threshold must be a number above 0 and up to 1, not 7"):
        asyncio.run(go({"success_threshold": 7}))
