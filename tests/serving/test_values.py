"""Scores over HTTP: those of `python -m agentrm_jax.score`, whatever else is asked, and in vLLM's forms."""

import base64
import concurrent.futures
import json
import math
import random

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from agentrm_jax import score
from tests.serving.conftest import counted, talk

BOUND = 1e-5  # what scores may differ by from those of the command, in float32


def by_command(models, tmp_path, capsys, rows, *flags) -> dict[str, dict]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert score.main([str(models[0]), str(path), "--rows=1", "--row-length=512", *flags]) == 0
    return {line["id"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}


def same(found, wanted):
    assert found.keys() == wanted.keys()
    assert found["id"] == wanted["id"]
    np.testing.assert_allclose(found["step_scores"], wanted["step_scores"], rtol=0, atol=BOUND)
    np.testing.assert_allclose(found["score"], wanted["score"], rtol=0, atol=BOUND)


def test_scores_are_those_of_the_command_with_16_threads_and_mixed_lengths(client, models, tmp_path, capsys):
    rows = [talk(1 + seed % 7, seed=seed) for seed in range(48)]
    wanted = by_command(models, tmp_path, capsys, rows)
    order = random.Random(0).sample(rows * 3, 3 * len(rows))

    def ask(row):
        answer = client.post("/score", json=row)
        assert answer.status_code == 200, answer.text
        [found] = answer.json()["data"]
        return found

    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        for row, found in zip(order, threads.map(ask, order), strict=True):
            same(found, wanted[row["id"]])


def test_lines_are_answered_with_the_lines_of_the_command(client, models, tmp_path, capsys):
    rows = [talk(n, seed=n) for n in (1, 2, 5)]
    wanted = by_command(models, tmp_path, capsys, rows, "--aggregate=min")
    body = "".join(json.dumps(row) + "\n" for row in rows)
    answer = client.post("/score?aggregate=min", content=body)
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    for line, row in zip(answer.text.splitlines(), rows, strict=True):
        same(json.loads(line), wanted[row["id"]])
        assert json.loads(line)["score"] == min(json.loads(line)["step_scores"])


def test_a_trajectory_that_cannot_be_scored_says_why_and_the_others_are_scored(client):
    long = {"id": "long", "messages": [{"role": "user", "content": "x" * 3000}, {"role": "assistant", "content": "y"}]}
    none = {"id": "none", "messages": [{"role": "user", "content": "x"}]}
    answer = client.post("/score", json={"trajectories": [long, talk(1), none], "aggregate": "max"}).json()
    first, second, third = answer["data"]
    assert first["score"] is None
    assert "prompt and last turn alone take" in first["error"]
    assert math.isfinite(second["score"])
    assert third == {"id": "none", "step_scores": [], "score": None}
    assert (answer["aggregate"], answer["model"]) == ("max", "rm")


def test_a_row_in_no_known_format_is_named(client):
    answer = client.post("/score", json={"trajectories": [talk(1), {"text": "hello"}]})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("trajectories[1]: in none of the known formats")
    lines = json.dumps(talk(1)) + "\n" + '{"text": 1}\n'
    assert client.post("/score", content=lines).json()["error"]["message"].startswith("line 2: ")
    broken = client.post("/score", content=json.dumps(talk(1)) + "\n{\n").json()["error"]["message"]
    assert broken.startswith("line 2: not JSON")


def test_the_next_turn_of_a_conversation_costs_its_new_tokens(client, chat):
    """By what the engine has read: a step more is a step more, also when others asked in between."""

    def read() -> float:
        return counted(client, "agentrm_tokens_total", model="reward", kind="read")

    talks = [talk(n, seed=900) for n in range(1, 7)]
    client.post("/score", json=talks[0])
    lengths = [client.post("/score", json=one).json()["usage"]["prompt_tokens"] for one in talks[:1]]
    for one in talks[1:]:
        client.post("/score", json=talk(3, seed=random.Random(len(lengths)).randrange(10**6)))
        before = read()
        lengths.append(client.post("/score", json=one).json()["usage"]["prompt_tokens"])
        assert read() - before == lengths[-1] - lengths[-2] > 0
    before = read()
    client.post("/score", json=talks[-1])
    assert read() == before


# --- vLLM's contract --------------------------------------------------------------------------------------------------


def rendered(chat, row) -> str:
    """As a client writes it that has the model's tokenizer, such as verl's reward loop."""
    return chat.tokenizer.apply_chat_template(row["messages"], add_generation_prompt=False, tokenize=False)


def test_a_rendered_conversation_is_worth_what_score_says(client, chat):
    """The request that verl sends, and where it looks for the reward."""
    for row in (talk(1), talk(4, seed=3)):
        payload = {"model": "rm", "input": rendered(chat, row), "use_activation": False}
        answer = client.post("/classify", json=payload).json()
        reward = answer["data"][-1]["probs"][-1]
        [scored] = client.post("/score", json=row).json()["data"]
        assert reward == pytest.approx(scored["score"], abs=BOUND)
        messages = client.post("/classify", json={"messages": row["messages"], "activation": False}).json()
        assert messages["data"][0]["probs"] == pytest.approx([scored["score"]], abs=BOUND)
        assert messages["usage"] == answer["usage"]


def test_token_ids_are_read_at_the_last_of_them_and_texts_as_their_ids(client, chat):
    text = rendered(chat, talk(2))
    ids = chat.encode(text).tolist()
    batch = client.post("/pooling", json={"input": [ids, ids[:-1], ids[:7]]}).json()
    alone = [client.post("/pooling", json={"input": one}).json()["data"][0]["data"] for one in (ids, ids[:-1], ids[:7])]
    assert [row["data"] for row in batch["data"]] == [pytest.approx(one, abs=BOUND) for one in alone]
    assert [row["index"] for row in batch["data"]] == [0, 1, 2]
    by_text = client.post("/pooling", json={"input": text}).json()["data"][0]["data"]
    assert by_text == pytest.approx(alone[1], abs=BOUND)  # at the end of turn, before the line break
    assert alone[0] != pytest.approx(alone[1], abs=1e-3)


def test_values_go_through_a_sigmoid_unless_told_otherwise(client):
    asked = {"input": [5, 6, 7]}
    [raw] = client.post("/classify", json=asked | {"use_activation": False}).json()["data"][0]["probs"]
    [given] = client.post("/classify", json=asked).json()["data"][0]["probs"]
    assert given == pytest.approx(1 / (1 + math.exp(-raw)), abs=1e-6)


@pytest.mark.parametrize(("endianness", "kind"), [("little", "<f4"), ("big", ">f4"), ("native", "=f4")])
def test_numbers_can_be_asked_for_in_base64(client, endianness, kind):
    asked = {"input": [[5, 6, 7], [8]], "use_activation": False, "task": "classify"}
    plain = client.post("/pooling", json=asked).json()["data"]
    packed = client.post("/pooling", json=asked | {"encoding_format": "base64", "endianness": endianness}).json()[
        "data"
    ]
    for one, other in zip(plain, packed, strict=True):
        np.testing.assert_allclose(np.frombuffer(base64.b64decode(other["data"]), kind), one["data"], atol=BOUND)


def test_what_is_too_long_is_refused_or_cut_as_it_is_asked(client):
    ids = [5 + i % 200 for i in range(600)]
    answer = client.post("/classify", json={"input": ids})
    assert answer.status_code == 400
    assert "600 tokens is longer" in answer.json()["error"]["message"]

    def value(ids, **more):
        return client.post("/pooling", json={"input": ids, "use_activation": False} | more).json()["data"][0]["data"]

    assert value(ids, truncate_prompt_tokens=-1) == pytest.approx(value(ids[:512]), abs=BOUND)
    left = value(ids, truncate_prompt_tokens=9, truncation_side="left")
    assert left == pytest.approx(value(ids[-9:]), abs=BOUND)


@pytest.mark.parametrize(
    ("payload", "status", "says"),
    [
        ({}, 400, "needs one of input and messages"),
        ({"input": "a", "messages": []}, 400, "needs one of input and messages"),
        ({"input": []}, 400, "input is a list of 0; expected a text"),
        ({"input": [1, -2]}, 400, "input[1] is -2; expected a token id"),
        ({"input": [[1], ["a"]]}, 400, "input[1][0]"),
        ({"input": [99999]}, 400, "token id 99999 has no embedding"),
        ({"input": "a", "use_activatio": False}, 400, "did you mean use_activation?"),
        ({"input": "a", "model": "other"}, 404, "it has rm"),
        ({"input": "a", "dimensions": 3}, 400, "dimensions is 3, which this server does not offer"),
        ({"input": "a", "task": "embed"}, 400, "task is"),
        ({"messages": [{"role": "user", "content": "x"}]}, 400, "the last message must be its"),
        ({"messages": "x"}, 400, "'messages' is a str"),
        ({"input": ["a"] * 300}, 413, "at most 256"),
    ],
)
def test_what_is_wrong_is_named(client, payload, status, says):
    answer = client.post("/pooling", json=payload)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert says in error["message"]
    assert error["code"] == status
