"""A few seconds of what the benchmarks of the server do for longer."""

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("httpx2", reason="the extra openai is not installed")

from benchmarks import malformed_requests, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with malformed_requests.start(tmp_path_factory.mktemp("models")) as found:
        yield found


def test_malformed_requests_are_answered_by_name_and_leave_the_server_as_it_was(server):
    counts, wrong = malformed_requests.run(server, 300, seed=1)
    assert wrong == []
    refused = {kind: count["refused"] for kind, count in counts.items()}
    assert all(refused.values()), refused
    assert sum(refused.values()) > 100


def test_the_check_of_answers_refuses_what_is_wrong():
    good = b'HTTP/1.1 400 Bad Request\r\nx: y\r\n\r\n{"error": {"message": "one line"}}'
    assert malformed_requests.verdict(good) == ("refused", "")
    for bad in (
        good.replace(b"400 Bad Request", b"500 Internal Server Error"),
        good.replace(b"one line", b"Traceback (most recent call last)"),
        good.replace(b"one line", rb"two\nlines"),
        good.replace(b"one line", b""),
        b"HTTP/1.1 400 Bad Request\r\n\r\nno JSON",
        b"HTTP/1.1 000 the connection stays open",
    ):
        assert malformed_requests.verdict(bad)[0] == "wrong"


def test_a_short_soak_loses_nothing(server):
    found = serving.run(server, 6, clients=4)
    assert found["wrong"] == []
    assert found["requests"] >= 8
    assert found["statuses"]["200"] >= 4
    assert set(found["latency"]) <= set(serving.LATENCIES)


def test_a_score_that_changes_is_noticed():
    seen = serving.Seen()
    seen.compare("1/2", 0.5)
    seen.compare("1/2", 0.50001)
    assert seen.wrong == []
    seen.compare("1/2", 0.6)
    seen.compare("1/3", float("nan"))
    seen.compare("1/3", 0.5)
    assert len(seen.wrong) >= 2
