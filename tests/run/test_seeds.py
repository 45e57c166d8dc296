"""Runs that differ in their seed: each in its folder, what is finished left alone, and a summary with intervals."""

import json

import ml_collections
import pytest

from agentrm_jax.run import seeds, workdirs
from agentrm_jax.types import UserError


def config(**changed) -> ml_collections.ConfigDict:
    fields = {"size": "nano", "trees": "x", "seed": 3, "seeds": 3, "total_steps": 5, "loss": "regression"}
    return ml_collections.ConfigDict(fields | changed).lock()


def pretend(loss: dict[int, float], trained: list[int], fails: int | None = None):
    """A training run whose last loss depends on its seed."""

    def train(config, workdir):
        if workdirs.is_finished(workdir):
            return
        if config.seed == fails:
            raise UserError("out of luck")
        with workdirs.begun(config, workdir):
            trained.append(config.seed)
            rows = [{"step": 1, "loss": 9.0}, {"step": 2, "loss": loss[config.seed]}, {"step": 2, "eval/mse": 1.0}]
            (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            report = {"metrics": {"mse": loss[config.seed] / 2, "success_auc": None, "states": 7}}
            (workdir / "evaluation.json").write_text(json.dumps(report))
        workdirs.finish(workdir, steps=2)

    return train


def test_each_seed_has_a_folder_and_the_summary_has_means_and_intervals(tmp_path, capsys):
    trained: list[int] = []
    loss = {3: 1.0, 4: 2.0, 5: 3.0}
    seeds.train(config(), tmp_path / "x", pretend(loss, trained))
    assert trained == [3, 4, 5]
    made = json.loads((tmp_path / "x/seed-4/config.json").read_text())
    assert (made["seed"], made["seeds"]) == (4, 1)
    found = json.loads((tmp_path / "x/seeds.json").read_text())["metrics"]
    assert found["loss"] == {
        "mean": 2.0,
        "lo": pytest.approx(2 - 2.484, abs=1e-3),
        "hi": pytest.approx(4.484, abs=1e-3),
        "values": [1, 2, 3],
    }
    assert found["mse"]["mean"] == 1.0
    assert "success_auc" not in found, "it is not defined on these states"
    assert "3 seeds: loss 2.000 ± 2.484, mse 1.000 ± 1.242" in capsys.readouterr().out
    assert workdirs.is_finished(tmp_path / "x")


def test_the_same_command_trains_what_is_left_and_more_seeds_may_be_asked_for(tmp_path):
    trained: list[int] = []
    loss = dict.fromkeys(range(3, 9), 1.0)
    with pytest.raises(UserError, match="out of luck"):
        seeds.train(config(), tmp_path / "x", pretend(loss, trained, fails=4))
    seeds.train(config(), tmp_path / "x", pretend(loss, trained))
    assert trained == [3, 4, 5]
    seeds.train(config(seeds=4), tmp_path / "x", pretend(loss, trained))
    assert trained == [3, 4, 5, 6]
    with pytest.raises(UserError, match="was made with another config"):
        seeds.train(config(seeds=4, loss="pairwise"), tmp_path / "x", pretend(loss, trained))


def test_one_value_has_no_interval():
    assert seeds.interval([0.5]) == {"mean": 0.5, "lo": None, "hi": None, "values": [0.5]}
