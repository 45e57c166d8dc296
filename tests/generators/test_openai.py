"""A model behind a server gives what it offers; what it does not offer is done without, and said once."""

import asyncio
import json
import math

import numpy as np
import pytest

from agentrm_jax.generators.choices import chosen, first_token_logprobs
from agentrm_jax.generators.generator import GenerationFailure
from agentrm_jax.generators.http import Client, Settings
from agentrm_jax.generators.openai import ServerGenerator
from agentrm_jax.testing.model_server import ModelServer, answer, first_token, status
from agentrm_jax.types import Message, TooLong, UserError

ASKED = [Message("user", "Which way?"), Message("assistant", "North."), Message("user", "A wall.")]


async def no_pause(seconds: float) -> None:
    await asyncio.sleep(0)


@pytest.fixture
def server():
    with ModelServer(lambda request: answer(*["hello"] * request.get("n", 1))) as server:
        yield server


@pytest.fixture
def notes():
    return []


@pytest.fixture
def generator(server, notes):
    client = Client(server.url, Settings(retries=1, timeout=10), sleep=no_pause)
    return ServerGenerator("stub", client, max_tokens=9, note=notes.append)


def run(generator, coroutine):
    async def closing():
        try:
            return await coroutine
        finally:
            await generator.aclose()

    return asyncio.run(closing())


def generate(generator, n=1, prompt=ASKED, **how):
    return run(generator, generator.generate(prompt, n, **{"temperature": 0.7, "seed": 5} | how))


def choose(generator, count=3):
    return run(generator, generator.choose(ASKED, [str(i + 1) for i in range(count)], name="hall/1"))


def test_a_request_holds_the_conversation_and_how_to_sample(generator, server):
    [action] = generate(generator, name="hall/1")
    assert (action.text, action.tokens, action.finish) == ("hello", (), "stop")
    assert math.isnan(action.logprob)
    assert server.requests[0][0] == "/v1/chat/completions"
    assert server.asked == [
        {
            "model": "stub",
            "messages": [
                {"role": "user", "content": "Which way?"},
                {"role": "assistant", "content": "North."},
                {"role": "user", "content": "A wall."},
            ],
            "max_tokens": 9,
            "temperature": 0.7,
            "seed": 5,
            "logprobs": True,
        }
    ]


def test_what_the_server_says_about_a_reply_is_kept(generator, server):
    logprobs = {"content": [{"token": "go", "logprob": -0.5}, {"token": "!", "logprob": -0.25}]}
    server.reply = lambda request: answer("go!", finish="length", logprobs=logprobs)
    [action] = generate(generator)
    assert (action.logprob, action.finish) == (-0.75, "length")


def test_tokens_are_counted_by_the_name_of_the_request(generator, server):
    server.reply = lambda request: answer("hello", usage=(40, 2))
    for name in ("a", "a", "b"):
        generate(generator, name=name)
    assert {name: (u.prompt, u.completion) for name, u in generator.usage.items()} == {"a": (80, 4), "b": (40, 2)}
    assert generator.tokens == 126
    tokens = {"content": [{"token": "a", "logprob": -1.0}] * 3}
    for usage in (None, [], {"prompt_tokens": "many", "completion_tokens": -1}, {"completion_tokens": True}):
        server.reply = lambda request, usage=usage: {"choices": answer("x", logprobs=tokens)["choices"], "usage": usage}
        generate(generator, name=str(usage))
        assert (generator.usage[str(usage)].prompt, generator.usage[str(usage)].completion) == (0, 3)


def test_several_samples_are_one_request_where_the_server_draws_several(generator, server, notes):
    assert len(generate(generator, 4)) == 4
    assert [request["n"] for request in server.asked] == [4]
    assert notes == []


def test_a_server_that_refuses_n_is_asked_as_often_with_seeds_of_their_own(generator, server, notes):
    server.refuses["n"] = "'n' must be 1"
    assert len(generate(generator, 4)) == 4
    seeds = [request["seed"] for request in server.asked]
    assert len(seeds) == 5  # one was refused
    assert seeds[:2] == [5, 5]
    assert len(set(seeds)) == 4
    generate(generator, 4)
    assert [request["seed"] for request in server.asked][5:6] == [5]
    assert sorted(request["seed"] for request in server.asked[5:]) == sorted(set(seeds))
    assert len(notes) == 1
    assert "does not offer n for stub; each sample is a request" in notes[0]


@pytest.mark.parametrize("given", [1, 2, 7])
def test_a_wrong_number_of_choices_is_made_right(given, generator, server, notes):
    server.reply = lambda request: answer(*["hello"] * (given if "n" in request else 1))
    assert len(generate(generator, 4)) == 4
    assert len(server.asked) == 1 + max(0, 4 - given)
    assert len(notes) == (given == 1)  # it draws one, whatever it is asked
    assert len({request["seed"] for request in server.asked}) == len(server.asked)


@pytest.mark.parametrize(
    ("field", "why", "said"),
    [
        ("seed", "unknown parameter: seed", "sampling cannot be repeated"),
        ("seed", "Extra inputs are not permitted", "sampling cannot be repeated"),
        ("logprobs", "This model does not support logprobs.", "actions have no log-probabilities"),
        ("logprobs", "bad request", "actions have no log-probabilities"),
    ],
)
def test_what_a_server_refuses_is_left_out_from_then_on_and_said_once(field, why, said, generator, server, notes):
    server.refuses[field] = why
    for _ in range(3):
        assert len(generate(generator, 2)) == 2
    assert [field in request for request in server.asked[-2:]] == [False, False]
    assert sum(said in note for note in notes) == 1


def test_newer_models_call_the_limit_of_a_reply_otherwise(generator, server, notes):
    server.refuses["max_tokens"] = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    generate(generator)
    generate(generator)
    assert [request.get("max_completion_tokens") for request in server.asked] == [None, 9, 9]
    assert notes == []


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "This model's maximum context length is 64 tokens. However, you requested 99"}},
        {
            "error": {
                "message": "the request exceeds the available context size (64 tokens)",
                "type": "exceed_context_size_error",
            }
        },
        {"message": "The input (99 tokens) is longer than the model's context length (64 tokens)."},
    ],
)
def test_a_prompt_that_is_too_long_is_told_apart(body, generator, server):
    server.script = [status(400, body)]
    with pytest.raises(TooLong):
        generate(generator)
    assert len(server.asked) == 1


def test_a_refused_request_ends_a_run_that_has_had_no_answer_and_costs_one_task_later(generator, server):
    nonsense = [status(400, {"error": {"message": "temperature is not supported"}})] * 9
    server.script = list(nonsense)
    with pytest.raises(UserError, match="it has answered none so far") as caught:
        generate(generator)
    assert "temperature is not supported" in str(caught.value)
    server.script = []
    generate(generator)
    server.script = list(nonsense)
    with pytest.raises(GenerationFailure, match="temperature is not supported"):
        generate(generator)
    server.script = []
    assert len(generate(generator, 2)) == 2
    assert "logprobs" in server.asked[-1]  # what the refusal was not about is still asked for


# --- Before a run ------------------------------------------------------------------------------------------------------


def check(server, model="stub", **settings):
    client = Client(server.url, Settings(**{"retries": 0} | settings), sleep=no_pause)
    generator = ServerGenerator(model, client, max_tokens=9)
    asyncio.run(generator.check())
    return generator


def test_a_listed_model_needs_no_trial_and_its_context_is_known(server):
    server.context = 4096
    assert check(server).context == 4096
    assert server.requests == []


def test_a_server_that_lists_no_models_is_tried_with_one_token(server):
    server.models = None
    assert check(server).usage == {}
    assert server.asked[0]["max_tokens"] == 1


def test_a_wrong_model_is_named_with_those_there_are(server):
    server.models = ("Qwen3-4B", "Qwen3-8B")
    with pytest.raises(UserError, match=r"does not exist.*; it has Qwen3-4B, Qwen3-8B$"):
        check(server, "Qwen3-4")


def test_a_wrong_path_a_wrong_key_and_a_server_that_is_not_there_are_named(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    server.key = "sk-right"
    with pytest.raises(UserError, match="refuses the key in OPENAI_API_KEY"):
        check(server)
    server.key = ""
    for url, reason in (
        (server.url.removesuffix("/v1"), "mostly it ends in /v1"),
        ("http://127.0.0.1:9/v1", "nothing accepts"),
    ):
        with pytest.raises(UserError, match=reason):
            asyncio.run(ServerGenerator("stub", Client(url, Settings(retries=0), sleep=no_pause), max_tokens=9).check())


# --- Choosing ----------------------------------------------------------------------------------------------------------


def test_a_choice_is_read_from_the_likely_first_tokens(generator, server):
    tops = first_token(_1=-0.6, _2=-1.5, The=-2.0)
    tops["content"][0]["top_logprobs"].append({"token": " 2", "logprob": -3.0})
    server.reply = lambda request: answer("1", logprobs=tops)
    found = choose(generator)
    assert found.how == "logprobs"
    assert found.logprobs[0] == pytest.approx(-0.6)
    assert found.logprobs[1] == pytest.approx(math.log(math.exp(-1.5) + math.exp(-3.0)))  # with and without a blank
    assert found.logprobs[2] == pytest.approx(
        math.log(1 - sum(map(math.exp, (-0.6, -1.5, -2.0, -3.0))))
    )  # what is left
    assert found.bounded == 1
    assert server.asked[0]["top_logprobs"] == 20
    assert server.asked[0]["temperature"] == 0


def test_an_option_that_is_not_listed_is_at_most_as_likely_as_the_least_that_is():
    assert first_token_logprobs({"1": -2.0, "x": -3.0}, ["1", "2", "3"]) == ((-2.0, -3.0, -3.0), 2)
    assert first_token_logprobs({"1": 0.0}, ["1", "2"]) == ((0.0, -math.inf), 1)
    assert first_token_logprobs({"x": -1.0}, ["1", "2"]) is None


def test_a_model_that_thinks_first_is_read_from_its_text(generator, server):
    server.reply = lambda request: answer("<think>1 or 3?</think>\nThe best is 3.", logprobs=first_token(think=-0.1))
    assert choose(generator) == choose(generator)
    assert choose(generator).how == "text"
    assert choose(generator).logprobs == (-math.inf, -math.inf, 0.0)


def call(arguments):
    return {
        "tool_calls": [{"type": "function", "function": {"name": "answer", "arguments": arguments}}],
        "content": None,
    }


def with_tools(arguments):
    def reply(request):
        found = answer("I would rather not say")
        if "tools" in request:
            found["choices"][0]["message"] = call(arguments)
        return found

    return reply


def test_without_log_probabilities_the_model_is_made_to_call_a_function(generator, server, notes):
    server.refuses["logprobs"] = "logprobs are not supported"
    server.reply = with_tools('{"number": 2}')
    found = choose(generator)
    assert (found.how, found.logprobs) == ("tool", (-math.inf, 0.0, -math.inf))
    parameters = server.asked[-1]["tools"][0]["function"]["parameters"]
    assert parameters["properties"]["number"]["enum"] == [1, 2, 3]  # made from the number of candidates


@pytest.mark.parametrize(
    "arguments", ['{"number": 0}', '{"number": 4}', '{"number": 1.5}', '{"number": true}', "{", "[]", "null"]
)
def test_a_call_out_of_range_is_no_answer(arguments, generator, server):
    server.refuses["logprobs"] = "logprobs are not supported"
    server.reply = with_tools(arguments)
    assert choose(generator) is None


def test_without_functions_too_the_text_is_read(generator, server, notes):
    server.refuses |= {"logprobs": "logprobs are not supported", "tools": "tool_choice is not supported"}
    server.reply = lambda request: answer("Attempt 2")
    assert [choose(generator).how for _ in range(2)] == ["text", "text"]
    assert len(notes) == 2


def test_more_candidates_than_one_digit_can_name_are_not_read_from_one_token(generator, server):
    server.refuses["tools"] = "tools: no"
    server.reply = lambda request: answer("12", logprobs=first_token(_1=-0.1))
    assert choose(generator, 12).logprobs.index(0.0) == 11


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(
            ("2", 2),
            ("2.", 2),
            (" **3** ", 3),
            ("Attempt 1 is best", 1),
            ("1 or 2? Hmm.\n2", 2),
            ("<think>1</think>3", 3),
        ),
        *(("", None), ("none", None), ("4", None), ("0", None), ("1 or 2", None), ("-", None), ("2.5", None)),
    ],
)
def test_a_reply_names_one_number_or_none(text, number):
    assert chosen(text, 3) == number


# --- Token ids ---------------------------------------------------------------------------------------------------------


def test_with_our_template_the_server_reads_and_gives_token_ids(server, chat):
    client = Client(server.url, Settings(retries=0), sleep=no_pause)
    generator = ServerGenerator("stub", client, max_tokens=9, chat=chat, context=500)
    ids = [*chat.encode("go", after=chat.header).tolist(), chat.end_id]
    logprobs = {"tokens": [f"token_id:{i}" for i in ids], "token_logprobs": [-0.5] * len(ids)}
    server.reply = lambda request: {"choices": [{"text": "go", "finish_reason": "stop", "logprobs": logprobs}]}
    [action] = generate(generator)
    assert action.tokens == tuple(ids)
    assert action.logprob == -0.5 * len(ids)
    path, _, request = server.requests[0]
    assert path == "/v1/completions"
    assert request["prompt"] == chat.prompt(ASKED).tokens.tolist()
    assert request["stop_token_ids"] == [chat.end_id]
    assert not generator.fits(np.zeros(495, np.int32), 9)
    with pytest.raises(TooLong):
        generate(generator, prompt=np.zeros(495, np.int32))
    assert len(server.requests) == 1
    assert json.dumps(request)
