"""Policies and reward models from elsewhere, through search.py from an empty folder: a user's classes, and models behind a server."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agentrm_jax.testing.model_server import ModelServer, answer, first_token, status
from tests.test_mains import ROOT

KEY = "sk-only-in-the-environment"
GUESS = ("--config.env.names=guess,", "--config.env.workers=1", "--config.env.count=3", "--config.search.n=3")
SERVER = ("--config.server.retries=0", "--config.server.timeout=20")


def example(page: str, name: str) -> str:
    """The Python example of a page that is called `name`.py there."""
    return next(
        code
        for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
        if name in code.splitlines()[0]
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "guess.py").write_text(example("environments.md", "Guess a number"))
    (tmp_path / "mine.py").write_text(example("guide.md", "guesses in the middle"))
    return tmp_path


def search(folder: Path, config: str, *options: str, **env: str) -> subprocess.CompletedProcess:
    command = [
        str(ROOT / "search.py"),
        f"--config={ROOT}/configs/{config}.py",
        f"--workdir={folder / config}",
        *options,
    ]
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": ""} | env,
        capture_output=True,
        text=True,
        timeout=300,
    )


def results(folder: Path, config: str) -> dict:
    return json.loads((folder / config / "results.json").read_text())


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_guides_own_policy_and_reward_model_search(folder):
    done = search(
        folder, "best_of_n", *GUESS, "--config.policy=mine:make_policy", "--config.reward_model=mine:make_reward_model"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = results(folder, "best_of_n")
    assert found["overall"]["success"] == 1
    assert (found["policy"], found["reward_model"]) == ("mine:make_policy", "mine:make_reward_model")
    for task in lines(folder / "best_of_n" / "tasks.jsonl"):
        scores = [sample[0] for sample in task["samples"]]
        assert scores == [-float(sample[4]) for sample in task["samples"]]
        assert task["steps"] == -max(scores)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--config.policy=nowhere:make", r"--config\.policy: nowhere:make cannot be imported: ModuleNotFoundError"),
        ("--config.policy=mine:make_polizy", r"--config\.policy: mine:make_polizy cannot be imported: AttributeError"),
        ("--config.policy=openai:gpt@127.0.0.1", r"--config\.policy: write openai:MODEL@URL"),
        (
            "--config.policy=openai:gpt@http://127.0.0.1:9/v1",
            r"http://127\.0\.0\.1:9/v1/.* nothing accepts a connection",
        ),
        ("--config.policy=mine:make_reward_model", "made a Short, which has no method propose"),
        ("--config.reward_model=judge:mine:make_policy", "write judge:PLACE"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line_and_leaves_nothing(option, said, folder):
    given = {"--config.policy": "mine:make_policy", "--config.reward_model": "mine:make_reward_model"}
    name, _, value = option.partition("=")
    options = [f"{key}={v}" for key, v in (given | {name: value}).items()]
    done = search(folder, "best_of_n", *GUESS, *SERVER, *options)
    assert done.returncode == 2
    assert re.search(said, done.stderr), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (folder / "best_of_n").exists()


def playing(request):
    """The best guess, from what was said; and, asked as a judge, an attempt of the fewest turns."""
    said = request["messages"][-1]["content"]
    if "=== Answer" in said:
        attempts = re.findall(r"=== Attempt (\d+)\n(.*?)(?=\n\n===)", said, re.DOTALL)
        best = min(attempts, key=lambda attempt: (attempt[1].count("Agent:"), attempt[1]))[0]
        return answer(
            best, logprobs=first_token(**{f"_{n}": -0.1 if n == best else -4.0 for n, _ in attempts}), usage=(99, 1)
        )
    low, high, guess = 1, 100, 0
    for message in request["messages"]:
        if message["role"] == "assistant":
            guess = int(message["content"].rpartition(" ")[2])
        elif "Higher" in message["content"]:
            low = guess + 1
        elif "Lower" in message["content"]:
            high = guess - 1
    middle = (low + high) // 2
    return answer(
        *(f"Thought: between\nAction: {min(high, middle + request.get('seed', 0) % 3)}",) * request.get("n", 1),
        usage=(50, 6),
    )


def test_a_model_behind_a_server_acts_and_judges_and_its_key_is_written_nowhere(folder):
    with ModelServer(playing) as server:
        server.key = KEY
        options = (f"--config.policy={server.place}", f"--config.reward_model=judge:{server.place}", *SERVER)
        done = search(folder, "judge", *GUESS, *options, OPENAI_API_KEY=KEY)
        asked = len(server.requests)
    assert done.returncode == 0, done.stderr[-3000:]
    found = results(folder, "judge")
    assert found["overall"]["success"] == 1
    assert {"greedy", "random", "shortest", "oracle"} - {"greedy"} <= found["rows"].keys()
    budget = found["budget"]
    turns = sum(task["cost"]["policy_turns"] for task in lines(folder / "judge" / "tasks.jsonl"))
    assert (budget["policy_tokens"], budget["policy_prompt_tokens"]) == (6 * turns, 50 * turns)
    judged = found["judge"]
    assert judged["readings"] == asked - turns > 0
    assert budget["reward_tokens"] == 100 * judged["readings"]
    assert judged["how"] == {"logprobs": judged["readings"]}
    assert (judged["missing"], judged["agreement"]) == (0, 1)
    chosen = [task["steps"] for task in lines(folder / "judge" / "tasks.jsonl")]
    assert chosen == [min(s[4] for s in task["samples"]) for task in lines(folder / "judge" / "tasks.jsonl")]
    written = [path for path in (folder / "judge").rglob("*") if path.is_file()]
    assert len(written) > 4
    assert not [path for path in written if KEY.encode() in path.read_bytes()]
    assert KEY not in done.stdout + done.stderr
    assert KEY not in json.dumps(found)


def test_a_failing_server_costs_tasks_and_a_revoked_key_the_run_which_then_goes_on(folder):
    options = (*GUESS[:3], *SERVER, "--config.concurrency=1")
    with ModelServer(playing) as server:
        server.script = [status(500, {"error": {"message": "out of memory"}})]
        revoked = [status(401, {"error": {"message": "revoked"}})]

        def reply(request):
            if len(server.requests) == 4 and revoked:
                server.script.append(revoked.pop())
            return playing(request)

        server.reply = reply
        place = f"--config.policy={server.place}"
        stopped = search(folder, "greedy", *options, place)
        done = lines(folder / "greedy" / "tasks.jsonl")
        again = search(folder, "greedy", *options, place)
    assert (done[0]["failed"], "out of memory" in done[0]["fault"]) == (True, True)
    assert stopped.returncode == 2
    assert "wants a key: set the environment variable OPENAI_API_KEY" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert len(done) < 3
    assert again.returncode == 0, again.stderr[-3000:]
    assert len(lines(folder / "greedy" / "tasks.jsonl")) == 3
