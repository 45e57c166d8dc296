"""One real server with a tiny reward model and a tiny policy, as a process on a free port, for all tests that do not end it."""

import json
from pathlib import Path
from typing import Any

import pytest

from agentrm_jax.testing.server_process import ServerProcess, write_models


@pytest.fixture(scope="session")
def models(chat, tmp_path_factory) -> tuple[Path, Path]:
    """Folders of a reward model and of a policy, which read 512 tokens."""
    return write_models(tmp_path_factory.mktemp("models"), chat, max_length=512)


@pytest.fixture(scope="session")
def server(models):
    rm, policy = models
    with ServerProcess([rm, "--policy", policy, "--name=rm", "--policy-name=policy"]) as found:
        yield found
        assert found.alive
        assert "Traceback" not in found.errors


@pytest.fixture(scope="session")
def client(server):
    import httpx2

    with httpx2.Client(base_url=server.url, timeout=120, trust_env=False) as found:
        yield found


def talk(turns: int, *, seed: int = 0) -> dict[str, Any]:
    """A conversation with that many assistant turns."""
    messages = []
    for i in range(turns):
        messages.append({"role": "user", "content": "A door. " * (1 + (seed + i) % 5)})
        messages.append({"role": "assistant", "content": f"Thought: {seed * 7 + i}\nAction: turn left"})
    return {"id": f"{seed}/{turns}", "messages": messages}


def counted(client, name: str, **labels: str) -> float:
    """A number at /metrics."""
    for line in client.get("/metrics").text.splitlines():
        head, _, number = line.rpartition(" ")
        if head.partition("{")[0] == name and all(f'{k}="{v}"' in head for k, v in labels.items()):
            return float(number)
    raise AssertionError(f"{name} {labels} is not at /metrics")


def events(response) -> list[Any]:
    """What a stream brings, without the mark of its end, which must be there."""
    lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]
