"""A policy behind a server: turns from chat messages or token ids, tokens as the server counts them, old turns give way."""

import asyncio

import pytest

from agentrm_jax import prompts
from agentrm_jax.policies.loading import load_policy
from agentrm_jax.policies.native import NativePolicy
from agentrm_jax.prompts import Encoder
from agentrm_jax.search import Meter, greedy
from agentrm_jax.testing.inline import InlineEnvironments
from agentrm_jax.testing.model_server import ModelServer, answer, status
from agentrm_jax.testing.scripted import walk
from agentrm_jax.testing.toy_env import SPEC, make_task
from agentrm_jax.types import Message, Outcome, State, Task, TooLong, UserError

START = State(Task("hall", "1", "train", 9), "leave", outcome=Outcome("A door."))
SIZES = {"max_new": 5}


@pytest.fixture
def server():
    with ModelServer(lambda request: answer(*["Action: look"] * request.get("n", 1), usage=(30, 4))) as server:
        yield server


def load(server, hall, **how):
    settings = {"retries": 0, "timeout": 10.0} | how.pop("settings", {})
    return load_policy(server.place, {"hall": hall, "toy": SPEC}, SIZES, config={"server": settings}, **how)


def propose(policy, state, n=1):
    async def once():
        try:
            return await policy.propose(state, n, temperature=0.0, seed=3)
        finally:
            await policy.aclose()

    return asyncio.run(once())


def test_a_state_becomes_the_messages_that_our_own_policies_read(hall, chat):
    state = walk(walk(START, "Action: look", "a key"), "Action: take", "you have it")
    messages = prompts.messages(state, hall, examples=1)
    assert [m.role for m in messages[-4:]] == ["assistant", "user", "assistant", "user"]
    assert messages[-1] == Message("user", "you have it")
    segments = Encoder(chat, {"hall": hall}, "policy", 1).history(state)
    text = chat.tokenizer.decode([i for s in segments for i in s.tokens])
    assert text == chat.tokenizer.decode(chat.prompt(messages).tokens)
    assert prompts.messages(state, hall, last=1) == [
        *prompts.messages(START, hall),
        *prompts.messages(state, hall)[-2:],
    ]
    assert prompts.messages(state, hall, last=9) == prompts.messages(state, hall)
    assert prompts.messages(state, hall, last=0) == prompts.messages(START, hall)


def test_a_turn_continues_the_conversation(server, hall):
    state = walk(START, "Action: look", "a key")
    actions = propose(load(server, hall, examples=1), state, n=2)
    assert [a.text for a in actions] == ["Action: look"] * 2
    [request] = server.asked
    assert request["messages"] == [
        {"role": m.role, "content": m.content} for m in prompts.messages(state, hall, examples=1)
    ]
    assert (request["max_tokens"], request["seed"], request["n"]) == (5, 3, 2)


def test_tokens_are_those_that_the_server_counts(server, hall):
    policy, task = load(server, hall), make_task(3)
    for _ in range(2):  # what was used before belongs to another search
        meter = Meter()
        asyncio.run(closing(policy, greedy(task, meter.policy(policy), InlineEnvironments(SPEC))))
        cost = meter.tasks[task.key]
        assert cost.policy_turns == 5
        assert (cost.policy_tokens, cost.policy_prompt_tokens) == (5 * 4, 5 * 30)


async def closing(policy, coroutine):
    try:
        return await coroutine
    finally:
        await policy.aclose()


def test_old_turns_give_way_where_the_server_says_that_it_is_too_long(server, hall):
    state = START
    for i in range(8):
        state = walk(state, f"Action: look {i}", "a wall")
    policy = load(server, hall)
    too_long = status(400, {"error": {"message": "maximum context length is 64 tokens"}})
    server.script = [too_long, too_long]
    assert propose(policy, state)
    kept = [m["content"] for m in server.asked[-1]["messages"] if m["role"] == "assistant"]
    assert kept == [f"Action: look {i}" for i in range(4, 8)]  # 8, 6, 4
    assert policy.dropped_turns == {"hall/1": 4}
    server.script = [too_long] * 9
    with pytest.raises(TooLong):
        propose(policy, state)
    assert len(prompts.messages(START, hall)) == 1


def test_with_a_tokenizer_it_reads_the_ids_that_our_engine_would(server, hall, chat, tmp_path):
    chat.tokenizer.save_pretrained(tmp_path)
    policy = load(server, hall, settings={"tokenizer": str(tmp_path), "context": 500})
    server.reply = lambda request: {"choices": [{"text": "Action: go", "finish_reason": "stop"}]}
    state = walk(START, "Action: look", "a key")
    [action] = propose(policy, state)
    assert (action.text, action.tokens) == ("Action: go", ())
    ours = [i for s in Encoder(chat, {"hall": hall}).history(state) for i in s.tokens.tolist()]
    assert server.asked[0]["prompt"] == ours
    assert not isinstance(policy, NativePolicy)
    with pytest.raises(UserError, match=r"set --config\.server\.context"):
        load(server, hall, settings={"tokenizer": str(tmp_path)})


def test_a_server_that_is_not_there_is_named_before_anything_is_begun(hall):
    config = {"server": {"retries": 0}}
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/v1.*nothing accepts a connection") as caught:
        load_policy("openai:stub@http://127.0.0.1:9/v1", {"hall": hall}, SIZES, config=config)
    assert "\n" not in str(caught.value)


def test_a_judge_is_no_policy(hall):
    with pytest.raises(UserError, match="is a judge"):
        load_policy("judge:smollm2", {"hall": hall}, SIZES)
