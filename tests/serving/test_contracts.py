"""Answers have the form of vLLM's published classes (recorded; and the classes themselves where vLLM is installed)."""

import copy
import json
import os
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from agentrm_jax.serving import contracts
from agentrm_jax.serving.faults import ServingError
from tests.serving.conftest import events, talk
from tests.serving.schema import fault

RECORDED = json.loads(Path(__file__).with_name("vllm_schema.json").read_text())
ASK = [{"role": "user", "content": "go"}]


@pytest.fixture(scope="module")
def answers(client):
    """Name of a class -> answers that should be such."""

    def post(path, **asked):
        return client.post(path, json=asked).json()

    def stream(path, **asked):
        with client.stream("POST", path, json=asked | {"stream": True}) as response:
            return events(response)

    more = {"max_tokens": 4, "n": 2}
    options = {"stream_options": {"include_usage": True}}
    return {
        "ClassificationResponse": [
            post("/classify", input=["a", "b"]),
            post("/classify", messages=talk(2)["messages"]),
        ],
        "PoolingResponse": [post("/pooling", input=[1, 2]), post("/pooling", input="a", encoding_format="base64")],
        "ErrorResponse": [post("/pooling"), post("/v1/completions", prompt=3), post("/nowhere"), post("/health")],
        "ModelList": [client.get("/v1/models").json()],
        "ChatCompletionResponse": [
            post("/v1/chat/completions", messages=ASK, **more),
            post("/v1/chat/completions", messages=ASK, logprobs=True, top_logprobs=2, return_token_ids=True, **more),
        ],
        "CompletionResponse": [
            post("/v1/completions", prompt="a", **more),
            post("/v1/completions", prompt=[1, 2], logprobs=2, **more),
        ],
        "ChatCompletionStreamResponse": stream("/v1/chat/completions", messages=ASK, logprobs=True, **more, **options),
        "CompletionStreamResponse": stream("/v1/completions", prompt="a", logprobs=1, **more, **options),
    }


@pytest.mark.parametrize("kind", RECORDED["answers"])
def test_answers_are_what_the_recorded_schema_says(answers, kind):
    schema = RECORDED["answers"][kind]
    assert answers[kind]
    for answer in answers[kind]:
        assert fault(answer, schema, schema) == ""


def test_the_check_refuses_what_is_wrong(answers):
    schema = RECORDED["answers"]["ClassificationResponse"]
    [good, _] = answers["ClassificationResponse"]
    for change in (
        lambda a: a.pop("model"),
        lambda a: a.update(created="now"),
        lambda a: a["data"][1].update(probs=0.5),
        lambda a: a["data"][0].pop("num_classes"),
        lambda a: a["usage"].update(prompt_tokens=True),
    ):
        bad = copy.deepcopy(good)
        change(bad)
        assert fault(bad, schema, schema)


@pytest.mark.parametrize(
    ("recorded", "ours"),
    [
        ("ClassificationCompletionRequest", contracts.Valued),
        ("ClassificationChatRequest", contracts.Valued),
        ("PoolingCompletionRequest", contracts.Pooled),
        ("PoolingChatRequest", contracts.Pooled),
        ("ChatCompletionRequest", contracts.ChatCompletion),
        ("CompletionRequest", contracts.TextCompletion),
    ],
)
def test_every_field_of_a_request_is_served_taken_or_refused_by_name(recorded, ours):
    known = {*ours.model_fields, *ours.WITHOUT_EFFECT, *ours.NEUTRAL}
    assert set(RECORDED["requests"][recorded]) - known == set()
    assert not set(ours.model_fields) & (ours.WITHOUT_EFFECT | set(ours.NEUTRAL))


def test_a_field_that_asks_for_nothing_is_taken_and_one_that_asks_for_more_is_refused():
    neutral = {name: values[0] for name, values in contracts.ChatCompletion.NEUTRAL.items()}
    asked = contracts.read(contracts.ChatCompletion, {"messages": ASK, "user": "me", "metadata": {"a": 1}} | neutral)
    assert asked.messages == ASK
    for name in contracts.ChatCompletion.NEUTRAL:
        with pytest.raises(ServingError, match=f"{name} is .*, which this server does not offer"):
            contracts.read(contracts.ChatCompletion, {"messages": ASK, name: "something else"})
    with pytest.raises(ServingError, match="echo is true"):
        contracts.read(contracts.TextCompletion, {"prompt": "a", "echo": True})
    with pytest.raises(ServingError, match="min_tokens is true"):
        contracts.read(contracts.TextCompletion, {"prompt": "a", "min_tokens": True})


@pytest.mark.skipif("AGENTRM_VLLM_PYTHON" not in os.environ, reason="AGENTRM_VLLM_PYTHON names no Python with vllm")
def test_vllms_own_classes_take_the_answers(answers):
    script = Path(__file__).with_name("validate_with_vllm.py")
    command = [os.environ["AGENTRM_VLLM_PYTHON"], str(script)]
    done = subprocess.run(command, input=json.dumps(answers), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == str(sum(map(len, answers.values())))
