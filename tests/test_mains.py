"""The mains as a user runs them, at toy size: the loop end to end, a run that is killed, a run that is repeated, bad input."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
TINY = (
    "--config.env.names=maze",
    "--config.env.count=12",
    "--config.env.workers=1",
    "--config.env.options.maze.sizes=3,",
)
MODEL = tuple(
    f"--config.model.{k}={v}"
    for k, v in {"num_layers": 1, "d_model": 32, "d_ff": 64, "head_dim": 16, "num_heads": 2, "num_kv_heads": 1}.items()
)
TRAIN = (
    "--config.total_steps=6",
    "--config.batch_rows=2",
    "--config.log_steps=2",
    "--config.checkpoint_steps=2",
    "--config.cpu_devices=1",
)
ENGINE = (
    "--config.engine.rows=4,",
    "--config.engine.batch_tokens=512,",
    "--config.engine.new_tokens=512,",
    "--config.engine.context=768,",
    "--config.engine.samples=2",
    "--config.engine.max_new=8",
    "--config.engine.cache_tokens=8192",
)


def start(script: str, config: str, workdir: Path, *options: str, **env: str) -> subprocess.Popen:
    command = [sys.executable, script, f"--config=configs/{config}.py", f"--workdir={workdir}", *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | env, stdout=pipe, stderr=pipe, text=True)


def run(*arguments, **_) -> str:
    process = start(*arguments)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return out


@pytest.fixture(scope="module")
def sft(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    options = (f"--config.experts={folder}/experts", *TINY, *MODEL, *TRAIN)
    run("train.py", "sft", folder / "sft", *options)
    return folder / "sft"


def losses(workdir: Path) -> list[tuple[int, float]]:
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(r["step"], r["loss"]) for r in rows]


def test_a_workdir_holds_what_the_contract_says(sft):
    names = {p.name for p in sft.iterdir()}
    assert {"config.json", "metrics.jsonl", "checkpoints", "tokenizer", "model.json"} <= names
    assert any(n.startswith("events.out.tfevents") for n in names)
    assert [step for step, _ in losses(sft)] == [2, 4, 6]


def test_a_finished_run_says_so(sft):
    out = run("train.py", "sft", sft, f"--config.experts={sft.parent}/experts", *TINY, *MODEL, *TRAIN)
    assert "finished" in out


def test_a_killed_run_continues_and_ends_like_an_uninterrupted_one(sft, tmp_path):
    options = (f"--config.experts={sft.parent}/experts", *TINY, *MODEL, *TRAIN)
    process = start("train.py", "sft", tmp_path / "sft", *options)
    deadline = time.monotonic() + 200
    while not (tmp_path / "sft/checkpoints/2").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    out = run("train.py", "sft", tmp_path / "sft", *options)
    assert "continuing" in out or "finished" in out
    assert dict(losses(tmp_path / "sft")) == pytest.approx(dict(losses(sft)), rel=1e-6)


def test_a_run_may_go_on_for_more_steps_and_with_another_log(sft, tmp_path):
    shutil.copytree(sft, tmp_path / "sft")
    options = (f"--config.experts={sft.parent}/experts", *TINY, *MODEL, *TRAIN)
    more = ("--config.total_steps=8", "--config.checkpoint_steps=3", "--config.log_steps=1")
    out = run("train.py", "sft", tmp_path / "sft", *options, *more)
    found = re.search(
        r"continuing .* at step 6; the learning rate goes on at (\S+) \(it was 0\) and falls to 0 at step 8", out
    )
    assert found is not None, out
    assert float(found.group(1)) > 0
    assert "trained 8 steps" in out
    assert [step for step, _ in losses(tmp_path / "sft")] == [2, 4, 6, 7, 8]
    assert json.loads((tmp_path / "sft/done.json").read_text())["steps"] == 8
    changed = [json.loads(line)["key"] for line in (tmp_path / "sft/config_changes.jsonl").read_text().splitlines()]
    assert changed == ["checkpoint_steps", "log_steps", "total_steps"]


def stop(process: subprocess.Popen, second: subprocess.Popen, ready: Callable[[], bool]) -> str:
    """Lets a second run fail beside a first one, then ends that with SIGTERM; what the first one said last."""
    while not ready():
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.02)
    _, err = second.communicate(timeout=120)
    (line,) = err.strip().splitlines()
    assert second.returncode == 2
    assert f"is in use by process {process.pid} on " in line
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err[-3000:]
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


def test_a_terminated_training_has_saved_its_last_step_and_had_its_workdir_alone(sft, tmp_path):
    workdir = tmp_path / "sft"
    long = ("--config.total_steps=5000", "--config.checkpoint_steps=5000", "--config.log_steps=3")
    command = ("train.py", "sft", workdir, f"--config.experts={sft.parent}/experts", *TINY, *MODEL, *TRAIN, *long)
    process = start(*command)
    while not (workdir / "lock.json").exists():
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.02)
    last = stop(process, start(*command), lambda: (workdir / "metrics.jsonl").exists() and bool(losses(workdir)))
    found = re.fullmatch(r"stopped at step (\d+); checkpoint saved; the same command continues", last)
    assert found is not None, last
    assert [p.name for p in (workdir / "checkpoints").iterdir()] == [found.group(1)]
    assert not (workdir / "lock.json").exists()


def test_of_two_processes_that_train_one_is_terminated_and_both_stop_after_the_same_step(sft, tmp_path):
    workdir = tmp_path / "sft"
    long = ("--config.total_steps=5000", "--config.checkpoint_steps=5000", "--config.log_steps=3")
    both = start_two("train.py", "sft", workdir, f"--config.experts={sft.parent}/experts", *TINY, *MODEL, *TRAIN, *long)
    while not ((workdir / "metrics.jsonl").exists() and losses(workdir)):
        assert [process.poll() for process in both] == [None, None], [p.communicate()[1][-2000:] for p in both]
        time.sleep(0.02)
    both[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [130, 143], said
    (step,) = {re.findall(r"stopped at step (\d+); checkpoint saved", err)[0] for err in said}
    assert [p.name for p in (workdir / "checkpoints").iterdir()] == [step]


def test_a_terminated_search_keeps_its_finished_tasks_and_had_its_workdir_alone(sft, tmp_path):
    workdir = tmp_path / "greedy"
    many = ("--config.env.count=900", "--config.env.split=train", "--config.concurrency=2")
    command = ("search.py", "greedy", workdir, f"--config.policy={sft}", *TINY, *ENGINE, *many)
    process = start(*command)
    while not (workdir / "lock.json").exists():
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.02)
    tasks = workdir / "tasks.jsonl"
    last = stop(process, start(*command), lambda: tasks.exists() and tasks.read_text().count("\n") > 2)
    assert last == "stopped; finished tasks are kept; the same command continues"
    assert all(json.loads(line)["task"] for line in tasks.read_text().splitlines())
    assert not (workdir / "lock.json").exists()


def test_what_a_typo_leaves_behind_does_not_bind(sft, tmp_path):
    """Refused late, when the data has been read: the corrected command is not taken for another experiment."""
    trees = tmp_path / "trees"
    (trees / "trees").mkdir(parents=True)
    (trees / "done.json").write_text("{}")
    process = start("train.py", "explicit", tmp_path / "x", f"--config.init={sft}", f"--config.trees={trees}", *TRAIN)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "no search trees" in err
    assert not (tmp_path / "x").exists()


def start_two(script: str, config: str, workdir: Path, *options: str) -> list[subprocess.Popen]:
    """Two processes of one run."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    env = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_NUM_CPU_DEVICES": "1"}
    return [start(script, config, workdir, *options, **env, JAX_PROCESS_ID=str(i)) for i in range(2)]


def run_two(*arguments) -> list[str]:
    """What each of two processes of one run prints."""
    both = start_two(*arguments)
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said[0][1][-2000:] + said[1][1][-2000:]
    return [out for out, _ in said]


def test_two_processes_begin_from_nothing_and_train_one_model(sft, tmp_path):
    """The first makes experts, tokenizer and dataset, the other waits for it and finds them."""
    options = (f"--config.experts={tmp_path}/experts", *TINY, *MODEL, *TRAIN)
    said = run_two("train.py", "sft", tmp_path / "sft", *options)
    assert [step for step, _ in losses(tmp_path / "sft")] == [2, 4, 6]
    assert "trained 6 steps" in said[0]
    assert "trained" not in said[1]
    made = [p.read_text() for folder in (sft.parent, tmp_path) for p in sorted(folder.glob("experts/*.jsonl"))]
    assert len(made) >= 2
    assert made[: len(made) // 2] == made[len(made) // 2 :]  # once, not twice


@pytest.fixture(scope="module")
def explored(sft) -> Path:
    """Search trees of three tasks."""
    exploring = ("--config.env.count=3", "--config.env.start=12", "--config.search.iterations=2", "--config.search.k=2")
    run("search.py", "mcts", sft.parent / "mcts", f"--config.policy={sft}", *TINY, *ENGINE, *exploring)
    return sft.parent / "mcts"


def test_trees_reward_model_and_search_follow(sft, explored, tmp_path):
    options = (f"--config.policy={sft}", *TINY, *ENGINE, "--config.env.count=3")
    trees = [json.loads(line) for line in (explored / "trees/trees.jsonl").read_text().splitlines()]
    assert len(trees) == 3
    assert all(t["nodes"][0]["N"] > 0 for t in trees)

    run(
        "train.py",
        "explicit",
        tmp_path / "explicit",
        f"--config.init={sft}",
        f"--config.trees={explored}",
        "--config.heldout=0.4",
        "--config.eval_steps=3",
        *TRAIN,
    )
    evaluation = json.loads((tmp_path / "explicit/evaluation.json").read_text())
    assert evaluation["step"] == 6
    assert evaluation["metrics"]["tasks"] == 1
    assert sum(b["count"] for b in evaluation["calibration"]) == evaluation["metrics"]["states"] > 0
    rows = [json.loads(line) for line in (tmp_path / "explicit/metrics.jsonl").read_text().splitlines()]
    measured = {r["step"]: r["eval/mse"] for r in rows if "eval/mse" in r}
    assert list(measured) == [3, 6]
    assert measured[6] == evaluation["metrics"]["mse"]
    assert [r["step"] for r in rows if "loss" in r] == [2, 4, 6]
    greedy = run("search.py", "greedy", tmp_path / "greedy", *options)
    assert "greedy" in greedy
    chosen = ("--config.search.n=3", f"--config.reward_model={tmp_path}/explicit", f"--config.greedy={tmp_path}/greedy")
    run("search.py", "best_of_n", tmp_path / "best_of_n", *options, *chosen)
    results = json.loads((tmp_path / "best_of_n/results.json").read_text())
    assert set(results["rows"]) == {"greedy", "random", "shortest", "longest", "ended", "oracle"}
    assert results["overall"]["n"] == 3
    assert results["rows"]["random"]["overall"]["score"] <= results["rows"]["oracle"]["overall"]["score"]
    assert all(results["budget"][k] > 0 for k in ("policy_tokens", "reward_tokens", "env_steps", "seconds"))
    page = (tmp_path / "best_of_n/report/index.html").read_text()
    assert "best_of_n" in page

    # two processes share the tasks, and find what one finds
    said = run_two("search.py", "greedy", tmp_path / "shared", *options)
    assert "3 tasks, 2 of them here" in said[0]
    assert "3 tasks, 1 of them here" in said[1]
    alone, shared = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("greedy", "shared"))
    assert shared["tasks"] == alone["tasks"]
    assert shared["budget"]["policy_tokens"] == alone["budget"]["policy_tokens"]
    assert "results:" not in said[1]

    # a search that lost its last task and its end continues with that task alone
    tasks = (tmp_path / "best_of_n/tasks.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "best_of_n/tasks.jsonl").write_text("".join(tasks[:-1]))
    os.unlink(tmp_path / "best_of_n/done.json")
    out = run("search.py", "best_of_n", tmp_path / "best_of_n", *options, *chosen)
    assert "2 done before" in out
    again = json.loads((tmp_path / "best_of_n/results.json").read_text())
    assert again["tasks"] == results["tasks"]


def test_an_ensemble_of_seeds_and_heads_is_trained_in_one_command_and_guides_a_search(sft, explored, tmp_path):
    """The best checkpoints by a metric are the models; training stops early; what is read of a state is on their cards."""
    build = (f"--config.init={sft}", f"--config.trees={explored}", "--config.heldout=0.4", *TRAIN)
    several = ("--config.seeds=2", "--config.heads=2", "--config.state=no_thoughts", "--config.freeze=trunk")
    chosen = ("--config.eval_metric=mse", "--config.eval_steps=2", "--config.patience=1", "--config.total_steps=40")
    # No episode of this policy succeeds: far to one side all is predicted, and the second measurement is no better.
    far = ("--config.loss=cross_entropy", "--config.learning_rate=1000", "--config.accumulate=2")
    out = run("train.py", "explicit", tmp_path / "rm", *build, *several, *chosen, *far)
    assert "no better since: stopped early, 3" in out
    assert re.search(r"2 seeds: loss \S+ ± \S+, mse \S+ ± \S+", out)
    together = json.loads((tmp_path / "rm/seeds.json").read_text())["metrics"]
    for seed in (0, 1):
        of = tmp_path / f"rm/seed-{seed}"
        card, evaluation = (json.loads((of / name).read_text()) for name in ("model.json", "evaluation.json"))
        assert (card["heads"], card["state"]) == (2, "no_thoughts")
        steps = json.loads((of / "done.json").read_text())["steps"]
        assert steps == evaluation["step"] + 2 < 40
        assert [p.name for p in (of / "best").iterdir() if p.name.isdigit()] == [str(evaluation["step"])]
        assert together["mse"]["values"][seed] == evaluation["metrics"]["mse"]
    again = run("train.py", "explicit", tmp_path / "rm", *build, *several, *chosen, *far)
    assert again.count("is finished") == 2

    search = ("search.py", "best_of_n", tmp_path / "chosen", f"--config.policy={sft}", *TINY, *ENGINE)
    few = ("--config.env.count=2", "--config.search.n=2", f"--config.greedy={tmp_path}/none")
    process = start(*search, *few, f"--config.reward_model={tmp_path}/rm")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    members = f"{tmp_path}/rm/seed-0,{tmp_path}/rm/seed-1"
    assert f"holds runs of several seeds; name one, {tmp_path}/rm/seed-0, or all: {members}" in err
    run(*search, *few, f"--config.reward_model={members}", "--config.pessimism=1.5")
    results = json.loads((tmp_path / "chosen/results.json").read_text())
    assert results["disagreement"]["states"] > 0
    assert results["disagreement"]["mean_deviation"] > 0


def test_a_loss_that_is_not_finite_stops_training_with_its_batch_saved(sft, tmp_path):
    options = (f"--config.experts={sft.parent}/experts", *TINY, *MODEL, *TRAIN, "--config.learning_rate=1e30")
    process = start("train.py", "sft", tmp_path / "sft", *options)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err[-2000:]
    (kept,) = (tmp_path / "sft").glob("not-finite-step-*.npz")
    assert f"no update was made of its batch, which lies in {kept}" in err
    row_length = json.loads((tmp_path / "sft/config.json").read_text())["row_length"]
    with np.load(kept) as batch:
        assert batch["tokens"].shape == batch["loss_weight"].shape == (2, row_length)


def test_a_policy_judges_its_own_trajectories(sft, tmp_path):
    """On our engine; the question is longer than the model reads, so turns are left out and counted."""
    judge = ("--config.search.n=3", f"--config.policy={sft}", f"--config.reward_model=judge:{sft}")
    run("search.py", "judge", tmp_path / "judge", *TINY, *ENGINE, "--config.env.count=2", *judge)
    results = json.loads((tmp_path / "judge/results.json").read_text())
    judged = results["judge"]
    assert judged["questions"] == 2
    assert judged["readings"] == sum(judged["how"].values()) == sum(p["chosen"] for p in judged["positions"]) > 0
    assert results["budget"]["reward_tokens"] > 0
    assert judged["cut_turns"] == results["dropped_turns"]["reward_model"] > 0
    rows = [json.loads(line) for line in (tmp_path / "judge/tasks.jsonl").read_text().splitlines()]
    assert all(sum(s[0] for s in row["samples"]) > 0 for row in rows)


def test_a_reward_model_without_its_parts_is_refused_in_one_line(tmp_path):
    process = start("train.py", "explicit", tmp_path / "x", f"--config.init={tmp_path}/nowhere")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Traceback" not in err
    assert "nowhere" in err
    assert len(err.strip().splitlines()) == 1
