"""A newcomer's own environment, the whole example of docs/environments.md, through every command from an empty folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_mains import ENGINE, MODEL, ROOT, TRAIN

ENV = ("--config.env.names=guess,", "--config.env.workers=1", "--config.env.options.guess.hint=false")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An empty folder with the example as guess.py, which also takes an option."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/environments.md").read_text(), re.DOTALL)
    hinted = code.replace("self.number = 0", 'self.number = 0\n        assert options["hint"] is False', 1)
    folder = tmp_path_factory.mktemp("newcomer")
    (folder / "guess.py").write_text(hinted)
    return folder


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def main(folder: Path, name: str, config: str, *options: str) -> Path:
    workdir = folder / config
    run(folder, str(ROOT / name), f"--config={ROOT}/configs/{config}.py", f"--workdir={workdir}", *options)
    return workdir


def test_it_is_checked_played_and_served(folder):
    option = ("--option", "hint=False")
    checked = run(folder, "-m", "agentrm_jax.envs", "check", "guess", "--n", "3", *option)
    assert checked.splitlines()[-1].startswith("3 tasks: 3 solved, 0 not solved")
    again = (folder / "guess.py").read_text()
    (folder / "games.py").write_text(
        again + "\n\ndef easy():\n    return __import__('dataclasses').replace(SPEC, name='guess')\n"
    )
    for place in ("guess", "games:easy"):
        played = run(folder, "-m", "agentrm_jax.envs", "play", place, *option)
        assert played.startswith("guess/n3, at most 10 steps.")
    process = subprocess.Popen(
        [sys.executable, "-m", "agentrm_jax.envs", "serve", "guess", "--workers=1", *option],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": ""},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline().startswith("serving guess (34 train, 33 dev, 33 test tasks")
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_it_is_imitated_explored_learned_searched_and_scored(folder):
    sft = main(folder, "train.py", "sft", *ENV, "--config.env.count=12", "--config.experts=experts", *MODEL, *TRAIN)
    card = json.loads((sft / "model.json").read_text())
    assert "Guess a number." in card["texts"]["guess"]["instructions"][0]
    searching = (*ENV, *ENGINE, "--config.env.count=2", f"--config.policy={sft}")
    few = ("--config.env.start=12", "--config.search.iterations=2", "--config.search.k=2")
    mcts = main(folder, "search.py", "mcts", *searching, *few)
    learning = (f"--config.init={sft}", f"--config.trees={mcts}", *TRAIN)
    explicit = main(folder, "train.py", "explicit", *learning)
    assert (
        "Somebody guesses a number."
        in json.loads((explicit / "model.json").read_text())["texts"]["guess"]["instructions"][0]
    )
    best = main(
        folder, "search.py", "best_of_n", *searching, "--config.search.n=2", f"--config.reward_model={explicit}"
    )
    assert json.loads((best / "results.json").read_text())["tasks"]["guess"]["n"] == 2
    sampled = main(folder, "search.py", "sample", *searching, few[0], "--config.search.n=3")
    assert len((sampled / "trajectories.jsonl").read_text().splitlines()) == 6
    assert {"random", "shortest", "ended", "oracle"} <= json.loads((sampled / "results.json").read_text())[
        "rows"
    ].keys()
    outcomes = (f"--config.init={sft}", f"--config.samples={sampled}", f"--config.trees={mcts}", *TRAIN)
    implicit = main(folder, "train.py", "implicit", *outcomes, "--config.heldout=0.5", "--config.eval_steps=3")
    card = json.loads((implicit / "model.json").read_text())
    assert (card["kind"], card["beta"], card["reference"]) == ("implicit", 0.05, str(sft))
    assert json.loads((implicit / "evaluation.json").read_text())["metrics"]["states"] > 0
    named = (f"--config.reward_model={implicit}", f"--workdir={folder}/ratios", "--config.search.n=2")
    run(folder, f"{ROOT}/search.py", f"--config={ROOT}/configs/best_of_n.py", *searching, *named)
    check_scores(folder, implicit, folder / "ratios")
    check_scores(folder, explicit, best)


def check_scores(folder: Path, reward_model: Path, best: Path) -> None:
    """The command gives the trajectories of a search the scores that the search gave them."""
    scored = run(folder, "-m", "agentrm_jax.score", str(reward_model), str(best))
    assert len(scored.splitlines()) == 4
    searched = {(r["meta"]["score"]) for r in map(json.loads, (best / "trajectories.jsonl").read_text().splitlines())}
    ours = {json.loads(line)["score"] for line in scored.splitlines()}
    assert sorted(ours) == pytest.approx(sorted(searched), abs=1e-5)
