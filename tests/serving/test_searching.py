"""Search over messages: the answers are the policy's, the scores the reward model's, and the best comes first."""

import math

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")


ASK = [
    {"role": "user", "content": "Your task: go to the red ball."},
    {"role": "assistant", "content": "Action: turn left"},
    {"role": "user", "content": "A door."},
]


def search(client, **asked):
    answer = client.post("/v1/search", json={"messages": ASK, "seed": 1, "max_tokens": 24} | asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


def value(client, text: str) -> float:
    messages = [*ASK, {"role": "assistant", "content": text}]
    return client.post("/pooling", json={"messages": messages, "use_activation": False}).json()["data"][0]["data"][0]


def test_best_of_n_orders_the_samples_of_the_policy_by_their_values(client):
    found = search(client, n=6, temperature=1.0)
    drawn = {"messages": ASK, "n": 6, "temperature": 1.0, "seed": 1, "max_tokens": 24}
    samples = client.post("/v1/chat/completions", json=drawn).json()
    texts = [choice["message"]["content"] for choice in samples["choices"]]
    assert [texts[row["sample"]] for row in found["choices"]] == [row["message"]["content"] for row in found["choices"]]
    assert sorted(row["sample"] for row in found["choices"]) == list(range(6))
    assert [row["index"] for row in found["choices"]] == list(range(6))
    scores = [row["score"] for row in found["choices"]]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) > 1
    for row in found["choices"]:
        assert row["score"] == pytest.approx(value(client, row["message"]["content"]), abs=1e-5)
    assert found["usage"]["completion_tokens"] == samples["usage"]["completion_tokens"]
    assert found["usage"]["reward_tokens"] > 0


def test_a_beam_keeps_the_best_beginnings(client):
    """Its answers are as good as best-of-n's from as many samples, or better, since it may go on with the best pieces only."""
    asked = {"method": "beam", "width": 3, "branch": 4, "delimiter": "e", "temperature": 1.0}
    found = search(client, **asked)
    rows = found["choices"]
    assert 1 <= len(rows) <= 3
    assert len({row["message"]["content"] for row in rows}) == len(rows)
    for row in rows:
        assert row["score"] == pytest.approx(value(client, row["message"]["content"]), abs=1e-5)
        assert row["finish_reason"] in ("stop", "length")
    assert found == search(client, **asked) | {"id": found["id"], "created": found["created"]}
    assert any("e" in row["message"]["content"][:-1] for row in rows), "more than one round was needed"


def test_a_beam_of_one_round_is_best_of_its_proposals(client):
    beam = search(client, method="beam", width=2, branch=3, max_rounds=1, delimiter="\x7f never", temperature=1.0)
    best = search(client, n=6, temperature=1.0)
    assert [row["score"] for row in beam["choices"]] == [row["score"] for row in best["choices"]][:2]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"method": "mcts"}, 'method is "mcts"; expected best_of_n or beam'),
        ({"n": 0}, "n is 0"),
        ({"method": "beam", "width": 100, "branch": 100}, "10000 answers"),
        ({"aggregate": "median"}, "no aggregator named 'median'"),
        ({"messages": []}, "at least one message"),
        ({"max_tokens": 10_000}, "maximum context length"),
        ({"depth": 2}, "there is no field"),
    ],
)
def test_what_is_wrong_is_named(client, asked, says):
    answer = client.post("/v1/search", json={"messages": ASK} | asked)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


def test_scores_are_numbers(client):
    assert all(math.isfinite(row["score"]) for row in search(client, n=2)["choices"])
