"""Texts over HTTP, in OpenAI's forms: what our engine would write, streamed or whole, read by our own client and by theirs."""

import asyncio
import json
import threading
import time

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from agentrm_jax import places
from agentrm_jax.generators.http import Client, Settings
from agentrm_jax.generators.native import load_engine_generator
from agentrm_jax.generators.openai import ServerGenerator
from agentrm_jax.policies.loading import load_policy
from agentrm_jax.types import Message
from tests.serving.conftest import counted, events

ASK = [{"role": "user", "content": "Your task: go to the red ball."}]
ENGINE = {
    "dtype": "float32",
    "cache_tokens": 4096,
    "rows": (2, 8),
    "batch_tokens": (512,),
    "new_tokens": (64, 512),
    "context": (256, 512),
    "samples": 4,
    "max_new": 16,
}


def chat_of(client, **asked):
    answer = client.post("/v1/chat/completions", json={"messages": ASK, "max_tokens": 12, "seed": 3} | asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


def texts_of(answer) -> list[str]:
    return [choice["message"]["content"] for choice in answer["choices"]]


def streamed(client, path="/v1/chat/completions", **asked):
    payload = {"messages": ASK, "max_tokens": 12, "seed": 3, "stream": True} | asked
    payload = {name: value for name, value in payload.items() if value is not None}
    with client.stream("POST", path, json=payload) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return events(response)


# --- Our own client ---------------------------------------------------------------------------------------------------


def test_samples_of_the_server_are_those_of_an_engine_to_the_last_token(server, models, chat):
    """Our client renders conversations itself and sends token ids: what comes back is what the policy says here."""
    prompt = [Message("user", "Your task: go to the red ball."), Message("assistant", "OK"), Message("user", "A door.")]
    here = load_engine_generator(models[1], ENGINE)

    async def both():
        there = ServerGenerator("policy", Client(f"{server.url}/v1", Settings()), max_tokens=16, chat=chat)
        await there.check()
        assert there.context == 512
        try:
            for temperature, n in ((0.0, 1), (0.7, 6), (1.3, 2)):
                asked = {"temperature": temperature, "seed": 11, "max_tokens": 16}
                mine, theirs = await here.generate(prompt, n, **asked), await there.generate(prompt, n, **asked)
                assert [a.tokens for a in theirs] == [a.tokens for a in mine]
                assert [a.text for a in theirs] == [a.text for a in mine]
                assert [a.finish for a in theirs] == [a.finish for a in mine]
                np.testing.assert_allclose([a.logprob for a in theirs], [a.logprob for a in mine], atol=1e-4)
            options = ("1", "2", "3")
            assert (await there.choose(prompt, options)) is not None
        finally:
            await there.aclose()
        return there.usage[""]

    assert asyncio.run(both()).completion > 0


def test_a_policy_of_a_search_can_be_the_server(server, hall):
    place = f"openai:policy@{server.url}/v1"
    assert isinstance(places.read(place), places.Server)
    policy = load_policy(place, {"hall": hall}, {"max_new": 8})

    async def ask():
        try:
            return await policy.generator.generate([Message("user", "x")], 3, temperature=0.7, seed=1, name="t")
        finally:
            await policy.aclose()

    assert len({action.text for action in asyncio.run(ask())}) == 3


# --- The contract -----------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_samples_and_others_do_not_matter(client):
    first = chat_of(client, n=3, temperature=1.0)
    results: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: results.append(texts_of(chat_of(client, n=3, temperature=1.0)))),
        threading.Thread(target=lambda: chat_of(client, n=7, seed=4)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [texts_of(first)]
    assert len(set(texts_of(first))) == 3
    assert texts_of(chat_of(client, seed=4, n=3)) != texts_of(first)
    assert texts_of(chat_of(client, temperature=0)) == texts_of(chat_of(client, temperature=0, seed=9))


@pytest.mark.parametrize("asked", [{}, {"n": 6}, {"stop": ["e", "red"]}, {"logprobs": True, "top_logprobs": 2, "n": 2}])
def test_a_stream_is_the_answer_in_pieces(client, asked):
    whole = chat_of(client, **asked)
    rows = [row for event in streamed(client, **asked) for row in event["choices"]]
    for choice in whole["choices"]:
        own = [row for row in rows if row["index"] == choice["index"]]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(row["delta"].get("content", "") for row in own) == choice["message"]["content"]
        assert [row["finish_reason"] for row in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
        if asked.get("logprobs"):
            pieces = [entry for row in own if row["logprobs"] for entry in row["logprobs"]["content"]]
            assert [p["token"] for p in pieces] == [p["token"] for p in choice["logprobs"]["content"]]


def test_a_stream_of_several_prompts_is_the_answer_in_pieces(client):
    asked = {"prompt": ["go to", "a red"], "n": 2, "max_tokens": 9, "seed": 5, "logprobs": 1}
    whole = client.post("/v1/completions", json=asked).json()
    found = streamed(client, "/v1/completions", messages=None, stream_options={"include_usage": True}, **asked)
    assert found[-1]["choices"] == []
    assert found[-1]["usage"] == whole["usage"]
    rows = [row for event in found for row in event["choices"]]
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    for choice in whole["choices"]:
        own = [row for row in rows if row["index"] == choice["index"]]
        assert "".join(row["text"] for row in own) == choice["text"]
        pieces = [token for row in own if row["logprobs"] for token in row["logprobs"]["tokens"]]
        assert pieces == choice["logprobs"]["tokens"]


def test_the_first_pieces_come_before_the_answer_is_whole(client):
    with client.stream(
        "POST",
        "/v1/chat/completions",
        json={"messages": ASK, "max_tokens": 400, "seed": 1, "stream": True, "ignore_eos": True},
    ) as response:
        began, times = time.monotonic(), []
        for line in response.iter_lines():
            if line.startswith("data: {"):
                times.append(time.monotonic() - began)
    assert len(times) > 20
    assert times[1] < times[-1] / 2


def test_a_stop_text_ends_a_sample_and_is_left_out_of_it(client):
    [text] = texts_of(chat_of(client))
    stop = text[3:5]
    [choice] = chat_of(client, stop=stop)["choices"]
    assert choice["message"]["content"] == text[: text.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    [kept] = texts_of(chat_of(client, stop=[stop, "never"], include_stop_str_in_output=True))
    assert kept == text[: text.index(stop) + len(stop)]


def test_usage_and_reasons_and_lengths(client, chat):
    [choice] = chat_of(client, max_tokens=5, ignore_eos=True)["choices"]
    assert choice["finish_reason"] == "length"
    answer = chat_of(client, max_tokens=None, max_completion_tokens=5, n=2, ignore_eos=True, return_token_ids=True)
    prompt = len(chat.prompt([Message("user", ASK[0]["content"])]).tokens)
    assert answer["usage"] == {"prompt_tokens": prompt, "completion_tokens": 10, "total_tokens": prompt + 10}
    third = answer["choices"][0]["token_ids"][2]
    [stopped, _] = chat_of(client, n=2, stop_token_ids=[third], return_token_ids=True)["choices"]
    assert stopped["token_ids"] == answer["choices"][0]["token_ids"][:3]
    assert stopped["finish_reason"] == "stop"
    default = client.post("/v1/completions", json={"prompt": "go", "ignore_eos": True}).json()
    assert default["usage"]["completion_tokens"] == 16


def test_log_probabilities_are_those_of_the_engine_and_the_likeliest_lead(client, models):
    answer = chat_of(client, logprobs=True, top_logprobs=5, temperature=0, return_token_ids=True)
    [choice] = answer["choices"]
    for entry in choice["logprobs"]["content"]:
        tops = [top["logprob"] for top in entry["top_logprobs"]]
        assert tops == sorted(tops, reverse=True)
        assert entry["logprob"] == pytest.approx(tops[0], abs=1e-5)
        assert bytes(entry["bytes"]).decode() == entry["token"]
    named = chat_of(client, logprobs=True, temperature=0, return_tokens_as_token_ids=True)["choices"][0]
    assert [e["token"] for e in named["logprobs"]["content"]] == [f"token_id:{t}" for t in choice["token_ids"]]


def test_the_next_turn_of_a_conversation_costs_its_new_tokens(client, chat):
    messages, lengths = [], []
    for i in range(5):
        messages.append({"role": "user", "content": f"You are in front of door {i}."})
        before = counted(client, "agentrm_tokens_total", model="policy", kind="read")
        answer = chat_of(client, messages=messages, max_tokens=1)
        lengths.append(answer["usage"]["prompt_tokens"])
        cost = counted(client, "agentrm_tokens_total", model="policy", kind="read") - before
        assert cost <= (lengths[-1] - lengths[-2] + 1 if i else lengths[0])
        messages.append({"role": "assistant", "content": "Thought: I should turn.\nAction: turn left"})


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "user"}]}, "messages[0] is no message"),
        ({"messages": ASK, "max_tokens": 500}, "maximum context length is 512"),
        ({"messages": ASK, "max_tokens": 0}, "max_tokens is 0; expected a whole number from 1 on"),
        ({"messages": ASK, "temperature": -1}, "temperature is -1"),
        ({"messages": ASK, "temperature": "hot"}, 'temperature is "hot"; expected a number'),
        ({"messages": ASK, "n": 1000}, "at most 256"),
        ({"messages": ASK, "top_logprobs": 3}, "needs logprobs"),
        ({"messages": ASK, "stop": ["x"] * 20}, "up to 16 texts"),
        ({"messages": ASK, "stop": [""]}, "1 to 1000 characters"),
        ({"messages": ASK, "response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": ASK, "logit_bias": {"5": 1}}, "does not offer"),
        ({"messages": ASK, "temprature": 1}, "did you mean temperature?"),
        ({"messages": ASK, "stream": 1}, "stream is 1; expected true or false"),
        ({}, "without messages"),
        ([], "expected a JSON object"),
    ],
)
def test_what_is_wrong_is_named(client, payload, says):
    answer = client.post("/v1/chat/completions", content=json.dumps(payload))
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


def test_openais_own_client_reads_it(server):
    openai = pytest.importorskip("openai", reason="the package openai is not installed")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as theirs:
        assert {model.id for model in theirs.models.list()} == {"rm", "policy"}
        asked = {"model": "policy", "messages": ASK, "max_tokens": 8, "seed": 2, "n": 2}
        whole = theirs.chat.completions.create(**asked, logprobs=True, top_logprobs=1)
        assert whole.choices[0].logprobs.content[0].top_logprobs
        texts = ["", ""]
        for chunk in theirs.chat.completions.create(**asked, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        assert texts == [choice.message.content for choice in whole.choices]
        text = theirs.completions.create(model="policy", prompt="go to", max_tokens=4, logprobs=1)
        assert len(text.choices[0].logprobs.tokens) == text.usage.completion_tokens
        with pytest.raises(openai.NotFoundError, match="no model"):
            theirs.chat.completions.create(model="other", messages=ASK)
        with pytest.raises(openai.BadRequestError, match="temperature"):
            theirs.chat.completions.create(model="policy", messages=ASK, temperature=-1)
