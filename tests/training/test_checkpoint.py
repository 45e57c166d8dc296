"""Checkpoints: a run that was stopped ends as if it had not been, and a damaged file costs some steps, not the run."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from orbax.checkpoint import v1 as ocp

from agentrm_jax import parallel, tree
from agentrm_jax.data import datasets as pipeline
from agentrm_jax.models import checksums
from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.opening import load_model
from agentrm_jax.models.transformer import Transformer
from agentrm_jax.training import checkpoint, objectives
from agentrm_jax.training.checkpoint import Checkpoints
from agentrm_jax.training.optimizer import make_optimizer
from agentrm_jax.training.step import TrainState, abstract_state, init_state, make_train_step
from agentrm_jax.tree import Node, Segment
from agentrm_jax.types import UserError

FIELDS = ("tokens", "positions", "subtree_end", "previous", "loss_weight", "value", "value_weight")


def trees() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    segments = [Segment(rng.integers(1, 64, rng.integers(5, 20)).astype(np.int32), "action", True) for _ in range(40)]
    flats = [tree.flatten([Node(s, -1)]) for s in segments]
    return [{f: getattr(t, f) for f in FIELDS} for t in flats]


class Run:
    """A toy training run: a policy, its data, and one compiled step shared by all that start from it."""

    def __init__(self, config):
        self.config, self.mesh = config, parallel.make_mesh(devices=jax.devices()[:1])
        self.tx = make_optimizer(learning_rate=1e-2, warmup=0.1, total_steps=8, weight_decay=0.0, clip=1.0)
        graphdef, self.shape, self.placed = abstract_state(self.make_model, self.tx, self.mesh)
        loss = objectives.find("imitation").loss(jnp.float32)
        self.step = make_train_step(graphdef, self.tx, loss, self.placed, self.mesh)

    def fresh(self, seed: int = 0):
        return init_state(self.make_model, self.tx, self.mesh, seed)

    def make_model(self, rngs: nnx.Rngs) -> Transformer:
        return Transformer(self.config, rngs=rngs)

    def data(self):
        return iter(pipeline.batches(trees(), rows=2, row_length=48, seed=1))

    def go(self, folder: Path, until: int, save: tuple[int, ...], seed: int = 0):
        """What train.py does: restore, then step to `until`. Returns the state, the data, and where it went on from."""
        data = self.data()
        with Checkpoints(folder) as checkpoints:
            state, meta = checkpoints.restore(self.shape, self.placed, data)
            if state is self.shape:
                _, state, _ = self.fresh(seed)
            begin = int(state.step)
            assert meta == ({"tokens": begin} if begin else {})
            for step in range(begin + 1, until + 1):
                state, _ = self.step(state, parallel.put_batch(next(data), self.mesh))
                if step in save:
                    checkpoints.save(state, data, {"tokens": step})
        return state, data, begin


@pytest.fixture(scope="module")
def run(tiny) -> Run:
    return Run(tiny)


@pytest.fixture(scope="module")
def uninterrupted(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "checkpoints"
    state, data, _ = run.go(folder, 6, (2, 4, 6))
    return folder, state, data


def copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def damage(folder: Path, step: int) -> None:
    """Cuts every file of a checkpoint's parameters in half."""
    files = [f for f in (folder / str(step) / "params").rglob("*") if f.is_file()]
    assert files
    for f in files:
        f.write_bytes(f.read_bytes()[: f.stat().st_size // 2])


def flip(path: Path) -> None:
    """Changes one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def assert_equal(a: TrainState, b: TrainState) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_run_that_was_stopped_and_continued_ends_exactly_like_one_that_was_not(run, uninterrupted, tmp_path):
    _, expected, data = uninterrupted
    run.go(tmp_path / "c", 3, (2,))  # killed after step 3, saved at 2
    state, resumed, begin = run.go(tmp_path / "c", 6, (4, 6), seed=9)  # the seed of a fresh state must not matter
    assert begin == 2
    assert_equal(state, expected)
    assert resumed.get_state() == data.get_state()
    np.testing.assert_array_equal(next(resumed)["tokens"], next(run_again(run, 7))["tokens"])
    assert run.step.compilations() == 1, "a restored state is placed like a fresh one"


def run_again(run: Run, batch: int):
    data = run.data()
    for _ in range(batch - 1):
        next(data)
    return data


def test_old_checkpoints_are_removed_and_a_finished_step_is_not_written_twice(run, uninterrupted, tmp_path):
    folder, expected, data = uninterrupted
    place = copy(folder, tmp_path / "c")
    assert sorted(p.name for p in place.iterdir()) == ["4", "6"]
    with Checkpoints(place) as checkpoints:
        checkpoints.save(expected, data, {})
    assert sorted(p.name for p in place.iterdir()) == ["4", "6"]


def test_a_damaged_checkpoint_is_passed_over_with_a_warning_and_its_steps_are_done_again(
    run, uninterrupted, tmp_path, caplog
):
    folder, expected, _ = uninterrupted
    place = copy(folder, tmp_path / "c")
    damage(place, 6)
    state, _, begin = run.go(place, 6, (5, 6))
    assert begin == 4
    assert "6 cannot be read" in caplog.text
    assert_equal(state, expected)
    _, _, begin = run.go(place, 6, ())
    assert begin == 6, "the step that was damaged has a good checkpoint now"


@pytest.mark.parametrize("item", ["params", "opt_state", "position", "meta"])
def test_one_bit_that_changed_is_noticed_and_the_checkpoint_before_is_used(run, uninterrupted, tmp_path, caplog, item):
    place = copy(uninterrupted[0], tmp_path / "c")
    flip(max((f for f in (place / "6" / item).rglob("*") if f.is_file()), key=lambda f: f.stat().st_size))
    assert run.go(place, 4, ())[2] == 4
    (line,) = [r.getMessage() for r in caplog.records if "cannot be read" in r.getMessage()]
    assert "\n" not in line
    assert line.startswith(f"checkpoint {place / '6'} cannot be read ({item}/")
    assert line.endswith("is not what was written); using step 4")
    assert sorted(p.name for p in place.iterdir()) == ["4"], "steps 5 and 6 can be written again"


def test_every_file_is_watched_and_nothing_good_is_suspected(uninterrupted, tmp_path):
    folder = copy(uninterrupted[0], tmp_path / "c") / "6"
    files = [f for f in folder.rglob("*") if f.is_file() and f.parent != folder]
    assert len(files) > 10
    assert checksums.find_damage(folder) == ""
    for f in files:
        content = f.read_bytes()
        flip(f)
        assert checksums.find_damage(folder) == f"{f.relative_to(folder)} is not what was written"
        f.unlink()
        assert checksums.find_damage(folder) == f"{f.relative_to(folder)}: No such file or directory"
        f.write_bytes(content)
    assert checksums.find_damage(folder) == ""


def test_processes_share_the_checksums_out(uninterrupted, tmp_path):
    folder = copy(uninterrupted[0], tmp_path / "c") / "6"
    whole = json.loads((folder / "checksums.0.json").read_text())
    for process in range(3):
        checksums.write(folder, process=process, processes=3)
    parts = [json.loads((folder / f"checksums.{process}.json").read_text()) for process in range(3)]
    assert sum(map(len, parts)) == len(whole)
    assert {name: row for part in parts for name, row in part.items()} == whole
    name = min(parts[1])
    flip(folder / name)
    assert checksums.find_damage(folder) != ""
    assert sum(checksums.find_damage(folder, process=p, processes=2) != "" for p in range(2)) == 1, (
        "one process finds it"
    )
    assert checksums.find_damage(folder, ("no such item",)) == ""


def test_checkpoints_of_before_have_no_checksums_and_a_random_key_and_are_read(run, uninterrupted, tmp_path, caplog):
    _, state, data = uninterrupted
    keep_all = ocp.training.preservation_policies.LatestN(3)
    with ocp.training.Checkpointer(tmp_path / "c", preservation_policy=keep_all) as old:
        for step in (4, 6):
            items = {"params": nnx.to_pure_dict(state.params), "opt_state": checkpoint._pure(state.opt_state)}
            items |= {"rng": {"key": jnp.zeros(2, jnp.uint32)}, "data": data, "meta": {"tokens": step}}
            old.save_checkpointables(step, items, force=True)
    assert run.go(tmp_path / "c", 6, ())[2] == 6
    damage(tmp_path / "c", 6)
    assert run.go(tmp_path / "c", 4, ())[2] == 4
    (line,) = [r.getMessage() for r in caplog.records if "cannot be read" in r.getMessage()]
    assert "\n" not in line
    assert line.endswith("); using step 4")


def test_an_empty_step_folder_is_no_checkpoint(run, uninterrupted, tmp_path):
    place = copy(uninterrupted[0], tmp_path / "c")
    (place / "9").mkdir()
    assert run.go(place, 6, ())[2] == 6


def test_when_no_checkpoint_can_be_read_nothing_is_removed_and_the_fix_is_named(run, uninterrupted, tmp_path):
    place = copy(uninterrupted[0], tmp_path / "c")
    for step in (4, 6):
        damage(place, step)
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read; move the folder away to start again"):
        run.go(place, 6, ())
    assert sorted(p.name for p in place.iterdir()) == ["4", "6"]


@pytest.fixture
def workdir(run, uninterrupted, tokenizer, tmp_path) -> Path:
    copy(uninterrupted[0], tmp_path / "run" / "checkpoints")
    about = {"kind": "policy", "config": run.config.to_json(), "lm_head": True, "value_head": False}
    (tmp_path / "run" / "model.json").write_text(json.dumps(about))
    tokenizer.save_pretrained(tmp_path / "run" / "tokenizer")
    return tmp_path / "run"


def test_a_trained_model_is_loaded_with_its_tokenizer(run, uninterrupted, chat, workdir, caplog):
    loaded = load_model(workdir)
    assert (loaded.step, loaded.meta, loaded.model.config) == (6, {"tokens": 6}, run.config)
    assert loaded.chat.end_id == chat.end_id
    params = nnx.to_pure_dict(nnx.state(loaded.model, nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, params, nnx.to_pure_dict(uninterrupted[1].params))
    assert load_model(workdir, step=4).step == 4
    bad = max((workdir / "checkpoints" / "6" / "params").rglob("*"), key=lambda f: f.stat().st_size * f.is_file())
    flip(bad)
    assert load_model(workdir).step == 4
    assert caplog.text.count("is not what was written); using step 4") == 1
    flip(bad)
    assert load_model(workdir).step == 6
    damage(workdir / "checkpoints", 6)
    assert load_model(workdir).step == 4
    assert "6 cannot be read" in caplog.text
    damage(workdir / "checkpoints", 4)
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read"):
        load_model(workdir)


def test_the_best_model_is_kept_alone_and_preferred_to_the_latest(run, uninterrupted, workdir, tmp_path):
    early, _, _ = run.go(tmp_path / "early", 2, ())
    early_params = jax.tree.map(np.asarray, nnx.to_pure_dict(early.params))
    checkpoint.keep_best(workdir / "best", early, {"step": 2, "mse": 0.5})
    loaded = load_model(workdir)
    assert (loaded.step, loaded.meta) == (2, {"step": 2, "mse": 0.5})
    params = nnx.to_pure_dict(nnx.state(loaded.model, nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, params, early_params)
    assert load_model(workdir, step=6).step == 6, "a step that is asked for is one of the training"
    later, _, _ = run.go(tmp_path / "later", 5, ())
    checkpoint.keep_best(workdir / "best", later, {"step": 5, "mse": 0.25})
    assert load_model(workdir).meta == {"step": 5, "mse": 0.25}
    # A run that was killed and repeats its steps replaces what is there of this step and later ones.
    again, _, _ = run.go(tmp_path / "again", 3, ())
    checkpoint.keep_best(workdir / "best", again, {"step": 3, "mse": 0.4})
    assert load_model(workdir).step == 3
    assert [p.name for p in (workdir / "best").iterdir() if p.name.isdigit()] == ["3"]
    damage(workdir / "best", 3)
    with pytest.raises(UserError, match=r"no checkpoint in .*best can be read"):
        load_model(workdir)


def test_a_model_is_read_in_the_type_its_engine_wants(uninterrupted, workdir):
    read = nnx.to_pure_dict(nnx.state(load_model(workdir, dtype=jnp.bfloat16).model, nnx.Param))
    kept = nnx.to_pure_dict(uninterrupted[1].params)
    assert read["final_norm_d"].dtype == jnp.float32
    matrices = {k: v for k, v in kept.items() if k != "final_norm_d"}
    for got, want in zip(jax.tree.leaves({k: read[k] for k in matrices}), jax.tree.leaves(matrices), strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_array_equal(got, want.astype(jnp.bfloat16))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path / "nowhere")):
        load_model(tmp_path / "nowhere")
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(UserError, match=r"model\.json is no card of a model"):
        load_model(tmp_path)
    about = {"config": ModelConfig(64, 1, 16, 2, 1, 8, 32).to_json(), "lm_head": True, "value_head": False}
    (tmp_path / "model.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="holds no checkpoints"):
        load_model(tmp_path)
