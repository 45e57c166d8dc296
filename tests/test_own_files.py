"""A user's own rows, from an empty folder: ten lines become a reward model that scores, with one command each and no environment."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_mains import MODEL, ROOT

FEW = (
    "--config.total_steps=20",
    "--config.batch_rows=2",
    "--config.row_length=128",
    "--config.log_steps=5",
    "--config.cpu_devices=1",
    "--config.learning_rate=0.01",
)


def run(folder: Path, *command: str, fails: bool = False) -> str:
    """What a command prints, run in the folder; of one that fails, its line on standard error."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == (2 if fails else 0), done.stderr[-3000:]
    return done.stderr if fails else done.stdout


def train(folder: Path, config: str, workdir: str, *options: str, **how: bool) -> str:
    return run(
        folder,
        str(ROOT / "train.py"),
        f"--config={ROOT}/configs/{config}.py",
        f"--workdir={workdir}",
        *options,
        *FEW,
        **how,
    )


def losses(workdir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the ten lines of docs/data.md."""
    folder = tmp_path_factory.mktemp("mine")
    (code, *_) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL)
    run(folder, "-c", code)
    assert len((folder / "boxes.jsonl").read_text().splitlines()) == 10
    return folder


@pytest.fixture(scope="module")
def explicit(folder) -> str:
    """What training a reward model on them prints; it is in `boxes`."""
    return train(folder, "explicit", "boxes", "--config.data=boxes.jsonl", "--config.show_batch=true", *MODEL)


def test_ten_lines_become_a_reward_model_that_tells_good_from_bad(folder, explicit):
    assert "10 rows of 5 tasks: 10 messages" in explicit
    assert "5 token trees of" in explicit
    assert "Action: wait<|im_end|><value 0>" in explicit
    assert re.search(r"branch after token \d+: Action: use key<\|im_end\|><value 1>", explicit)
    found = losses(folder / "boxes")
    assert found[-1] < 0.5 * found[0]
    scored = run(folder, "-m", "agentrm_jax.score", "boxes", "boxes.jsonl").splitlines()
    scores = [json.loads(line)["score"] for line in scored]
    assert min(scores[1::2]) > max(scores[0::2])
    again = train(folder, "explicit", "boxes", "--config.data=boxes.jsonl", "--config.show_batch=true", *MODEL)
    assert "is finished" in again


def test_the_same_lines_train_a_policy_and_an_implicit_reward_model_of_it(folder):
    out = train(
        folder,
        "sft",
        "policy",
        "--config.data=boxes.jsonl",
        "--config.min_reward=0.5",
        "--config.show_batch=true",
        *MODEL,
    )
    assert "«" in out
    assert "Action: wait" not in out.partition("first batch")[2]
    assert not (folder / "runs").exists()  # no expert was asked
    found = losses(folder / "policy")
    assert found[-1] < 0.7 * found[0]
    init = ("--config.init=policy", "--config.data=boxes.jsonl", "--config.learning_rate=0.003")
    train(folder, "implicit", "implicit", *init)
    found = losses(folder / "implicit")
    assert found[-1] < 0.9 * found[0]
    assert len(run(folder, "-m", "agentrm_jax.score", "implicit", "boxes.jsonl").splitlines()) == 10


def test_a_bad_row_is_named_before_anything_is_written_or_counted(folder, tmp_path):
    lines = (folder / "boxes.jsonl").read_text().splitlines()
    lines[4] = '{"messages": [{"role": "user", "content": "hi"}], "reward": 1}'
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join(lines))
    err = train(folder, "explicit", "never", f"--config.data={bad}", *MODEL, fails=True)
    assert err.strip().splitlines() == [
        f"error: {bad}, line 5: it has no assistant turn that is trained; --config.on_bad_row=skip leaves such rows out; "
        "docs/data.md says what a row must hold"
    ]
    assert not (folder / "never").exists()
    out = train(
        folder,
        "explicit",
        "skipped",
        f"--config.data={bad}",
        "--config.on_bad_row=skip",
        "--config.total_steps=1",
        *MODEL,
    )
    assert f"1 bad rows are left out; the first: {bad}, line 5: it has no assistant turn" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--config.data=none.jsonl",), "no trajectories at none.jsonl: no such file"),
        (
            ("--config.data=boxes.jsonl", "--config.loss=pairwise", "--config.on_bad_row=perhaps"),
            "must be stop or skip",
        ),
        (("--config.data=boxes.jsonl", "--config.state=last_observation"), "is no part of rows of your own"),
        (("--config.init=",), "--config.init is empty"),
    ],
)
def test_what_does_not_fit_is_one_line(folder, options, message):
    err = train(folder, "explicit", "wrong", *options, fails=True)
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (folder / "wrong").exists()
