"""Trains a policy by imitation, or a reward model on step values. Read it top to bottom; it runs in that order.

    python train.py --config=configs/sft.py            the policy
    python train.py --config=configs/explicit.py       the reward model
    python train.py --config=configs/implicit.py       another kind of reward model
    python train.py --config=... --config.data=FILE    any of them, from rows of your own (docs/data.md)

Every array lives where the table in `agentrm_jax/parallel.py` puts it; the same file trains on a laptop and on a pod. Run the
same command again to continue a run that was stopped.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import optax
from flax import nnx

from agentrm_jax import parallel
from agentrm_jax.chat import Chat, load_chat
from agentrm_jax.data import datasets, examples, files, formats, heldout, outcomes, own, preview
from agentrm_jax.data.conversations import segments
from agentrm_jax.data.demonstrations import expert_trajectories
from agentrm_jax.data.samples import read_samples
from agentrm_jax.envs import catalogue
from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.evaluation.selection import NONE, Selection
from agentrm_jax.files import new_folder, write_json
from agentrm_jax.models import opening
from agentrm_jax.models.card import Card, Texts, read_card, texts_of
from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.lora import LoRA
from agentrm_jax.models.opening import OpenedModel
from agentrm_jax.prompts import Encoder, Reader
from agentrm_jax.run import mains, seeds, stages, stopping, workdirs
from agentrm_jax.run.command import Stopped
from agentrm_jax.run.devices import accelerator
from agentrm_jax.run.logs import MetricWriter, ProgressLine, StepLog
from agentrm_jax.tokenizer import load_tokenizer, train_tokenizer
from agentrm_jax.training import checkpoint, evaluation, objectives, reference
from agentrm_jax.training.optimizer import optimizer_of, rate_change
from agentrm_jax.training.step import abstract_state, init_state, make_train_step, read_frozen
from agentrm_jax.types import SearchTree, UserError


@parallel.together()
def main(config: ml_collections.ConfigDict, workdir: Path) -> None:
    accelerator(config.cpu_devices)
    if config.seeds > 1:
        seeds.train(config, workdir, train)
    else:
        train(config, workdir)


def train(config: ml_collections.ConfigDict, workdir: Path) -> None:
    # --- Mesh: all devices, named axes (before anything is written: a wrong size leaves nothing behind) ----------------
    first = jax.process_index() == 0
    objective = objectives.of(config)
    mesh = parallel.make_mesh(**config.mesh)
    rows = parallel.batch_rows(config.batch_rows, mesh, parts=config.accumulate)
    dtype = jax.numpy.dtype(config.dtype)
    lora = LoRA.requested(config.init, **config.lora)

    # --- What has been done before -------------------------------------------------------------------------------------
    changes = workdirs.compare(config, workdir)
    if workdirs.is_finished(workdir) and not workdirs.is_extended(changes):
        if first:
            print(f"{workdir} is finished ({workdirs.facts(workdir)['steps']} steps); nothing to do")
        return

    # --- What it builds on (nothing is written before it is there) -----------------------------------------------------
    with parallel.first_process_first("models"):
        stages.require_named(config)
    # Only opened: its weights stay on disk until they have a place.
    base = opening.open_model(config.init, template=config.chat_template, date=config.date) if config.init else None

    # --- Data: records -> token trees on disk -> packed batches --------------------------------------------------------
    with parallel.first_process_first("data"), workdirs.begun(config, workdir, write=first):
        make = {"experts": imitation_data, "trees": step_value_data, "samples": outcome_data}
        trees, chat, texts = (own_data if config.data else make[objective.source])(config, workdir, base)
        if first and not (workdir / "tokenizer").exists():
            with new_folder(workdir / "tokenizer") as folder:
                chat.tokenizer.save_pretrained(folder)

    # --- Model and optimizer -------------------------------------------------------------------------------------------
    if base:
        model_config = base.config
    else:
        model_config = dataclasses.replace(ModelConfig(**config.model), vocab_size=len(chat.tokenizer))
    card = Card(
        kind=objective.kind,
        loss=config.loss,
        config=model_config,
        lm_head=objective.lm_head,
        value_head=objective.value_head,
        lora=lora,
        base=config.init,
        template=config.chat_template,
        date=chat.date or "",
        heads=config.get("heads", 1),
        state=config.get("state", "default"),
        texts=texts,
        beta=config.get("beta"),
        reference=opening.policy_place(config.init, base) if objective.reference and base else "",
    )
    if lora and base:  # adapters and the value head are trained and saved; the base is held in the type it is used in
        card = dataclasses.replace(card, base=opening.adapter_base(config.init, base, lm_head=card.lm_head))
    held = dtype if lora else jax.numpy.float32
    if first:
        write_json(workdir / "model.json", card.to_json())
    tx = optimizer_of(config)

    # --- State: what it will be, and where -----------------------------------------------------------------------------
    def make_model(rngs: nnx.Rngs):
        return opening.build_model(card, rngs, scan=config.scan, remat=config.remat, dtype=held)

    graphdef, shape, placed = abstract_state(make_model, tx, mesh)

    # --- One update ----------------------------------------------------------------------------------------------------
    loss = objective.loss(dtype, head_only=config.get("freeze") == "trunk")
    parts = {"accumulate": config.accumulate, "weight": objective.weight}
    train_step = make_train_step(graphdef, tx, loss, placed, mesh, **parts)
    unseen = heldout.read(workdir / "data") if objective.predict else None
    sizes = {"rows": rows, "row_length": config.row_length}
    if objective.reference and base:
        start = functools.partial(init_state, make_model, optax.set_to_zero(), mesh, config.seed, base.read)
        trees, unseen = reference.attach(trees, unseen, workdir / "data", start=start, mesh=mesh, dtype=dtype, **sizes)
    predict = evaluation.make_predict(graphdef, objective, dtype, mesh, unseen, rows) if unseen else None

    # --- Batches: this process's share of the trees, packed into rows ---------------------------------------------------
    shard = {"shard": jax.process_index(), "shards": jax.process_count()}
    stream = datasets.batches(trees, seed=config.seed, heads=config.get("heads", 1), **sizes, **shard)
    data = iter(stream)
    if config.show_batch and first:
        print(preview.shown(next(iter(stream)), chat.tokenizer.decode, objective.fields))

    # --- Go on where a former run stopped, or begin --------------------------------------------------------------------
    with checkpoint.Checkpoints(workdir / "checkpoints") as checkpoints, stopping.requests() as stop:
        state, meta = checkpoints.restore(shape, placed, data)
        if state is shape:  # nothing to go on from: weights go from disk or the random key straight into their shards
            _, state, _ = init_state(make_model, tx, mesh, config.seed, base.read if base else None)
        elif lora and base:
            state = read_frozen(state, base.read)
        done = int(state.step)
        best = Selection(config.get("eval_metric", NONE), config.get("patience", 0), meta.get("best", {}))
        extended = next((change.old for change in changes if change.name == "total_steps"), None)
        if done and first:
            print(f"continuing {workdir} at step {done}{rate_change(config, extended, done)}")
        trained, frozen = (sum(x.size for x in jax.tree.leaves(p)) / 1e6 for p in (state.params, state.frozen))
        parameters = f"{trained + frozen:.2f} M parameters" + (f" ({trained:.2f} M trained)" if lora else "")
        if first:
            print(f"{objective.kind}: {parameters}, {len(trees)} token trees, mesh {dict(mesh.shape)}")

        # --- The loop ------------------------------------------------------------------------------------------------------
        writer = MetricWriter(workdir, done=done, enabled=first)
        progress = ProgressLine(config.total_steps, done=done, enabled=first)
        log = StepLog(meta, done, faults=workdir)
        found: dict[str, Any] = {}  # of the held-out trees, by the model that is kept
        step = done
        while step < config.total_steps and not best.exhausted:
            step, batch = step + 1, next(data)
            state, metrics = train_step(state, parallel.put_batch(batch, mesh))
            log.add(metrics, batch)
            last = step == config.total_steps
            row: dict[str, Any] = {}
            if unseen and predict and (step % config.eval_steps == 0 or last):
                with log.paused():
                    measured = evaluation.measure(predict(state), unseen, ranks=objective.ranks)
                row = {f"eval/{name}": value for name, value in measured["metrics"].items()}
                if best.improved(step, measured["metrics"]):
                    found = measured
                    if best.metric != NONE:
                        checkpoint.keep_best(workdir / "best", state, {"step": step, best.metric: best.value})
                    if first:
                        evaluation.write(workdir, step, found)
                last |= best.exhausted
            logged = last or step % config.log_steps == 0
            if logged:
                row |= log.row()
                progress.show(step, f"loss {row['loss']:.4f}", f"{row['tokens_per_second']:,.0f} tokens/s", final=last)
            if row:
                writer.write(step, row)
            stopped = not last and stop.agreed(meeting=logged)
            if last or stopped or step % config.checkpoint_steps == 0:
                checkpoints.save(state, data, log.state() | {"best": best.state()})
            if stopped:
                raise Stopped(f"stopped at step {step}; checkpoint saved; the same command continues")
        writer.close()
    if first:
        workdirs.finish(workdir, steps=step, tokens=log.state()["tokens"])
        early = f", no better since: stopped early, {config.total_steps - step} steps before the end" * best.exhausted
        print(
            f"trained {step} steps; checkpoints in {workdir / 'checkpoints'}"
            + (f"; {best}{early}" if best.metric != NONE else "")
        )
        if found:
            print(evaluation.summary(found))


def imitation_data(
    config: ml_collections.ConfigDict, workdir: Path, base: OpenedModel | None
) -> tuple[Any, Chat, dict[str, Texts]]:
    """Expert trajectories as a dataset, the tokenizer they are cut with (trained on them if there is none yet), what was told."""
    environments = catalogue.resolve(config.env)
    folder, card = workdir / "data", read_card(workdir)
    if card and (found := datasets.read_dataset(folder)) is not None:
        return found, base.chat if base else load_chat(load_tokenizer(workdir / "tokenizer")), dict(card.texts)
    trajectories = expert_trajectories(config.env, environments, Path(config.experts))
    if not trajectories:
        raise UserError(f"the experts of {', '.join(environments)} solved none of the chosen tasks")
    specs = environments.specs
    if base:
        chat = base.chat
    else:
        texts, size = examples.texts(trajectories, specs), config.model.vocab_size
        chat = load_chat(train_tokenizer(texts, size, config.token_span))
    told = texts_of(specs, [t.task for t in trajectories], config.env.prompts, reader="policy")
    sizes = {"row_length": config.row_length, "context_weight": config.context_weight}
    return examples.imitation(trajectories, Encoder(chat, specs), folder, **sizes), chat, told


def step_value_data(
    config: ml_collections.ConfigDict, workdir: Path, base: OpenedModel | None
) -> tuple[Any, Chat, dict[str, Texts]]:
    """Search trees (or sampled trajectories) as a dataset, the tokenizer of the base, and what the reward model is told: the texts of
    the run that made them."""
    assert base is not None  # the table of keys wants it
    folder, card = workdir / "data", read_card(workdir)
    if card and (found := datasets.read_dataset(folder)) is not None:
        return found, base.chat, dict(card.texts)
    trees = examples.explored(Path(config.trees), config.outcome)
    specs, told = told_of(config.trees, trees)
    how = {name: config[name] for name in examples.HOW}
    how |= {"heldout_fraction": config.heldout, "compared": objectives.find(config.loss).ranks}
    return (
        examples.step_values(trees, Encoder(base.chat, specs, "reward", state=config.state), folder, **how),
        base.chat,
        told,
    )


def outcome_data(
    config: ml_collections.ConfigDict, workdir: Path, base: OpenedModel | None
) -> tuple[Any, Chat, dict[str, Texts]]:
    """Whole trajectories with their outcomes as a dataset (samples of a search, leaves of search trees, or both), and as above."""
    assert base is not None  # the table of keys wants it
    folder, card = workdir / "data", read_card(workdir)
    if card and (found := datasets.read_dataset(folder)) is not None:
        return found, base.chat, dict(card.texts)
    runs = {}
    if config.samples:
        runs[config.samples] = read_samples(Path(config.samples), outcome=config.outcome)
    if config.trees:
        runs[config.trees] = formats.read_trees(Path(config.trees) / "trees")
    specs: dict[str, EnvSpec] = {}
    told: dict[str, Texts] = {}
    for place, trees in runs.items():
        own, texts = told_of(place, trees)
        specs, told = {**specs, **own}, told | texts
    how = {name: config[name] for name in ("row_length", "min_visits", "outcome")}
    how["heldout_fraction"] = config.heldout
    every = [tree for trees in runs.values() for tree in trees]
    return outcomes.outcomes(every, Encoder(base.chat, specs, "reward"), folder, **how), base.chat, told


def own_data(
    config: ml_collections.ConfigDict, workdir: Path, base: OpenedModel | None
) -> tuple[Any, Chat, dict[str, Texts]]:
    """Rows of the user's own files as a dataset, the tokenizer they are cut with (trained on them if there is none yet), and what is
    told about the environments of our own records among them."""
    folder, card = workdir / "data", read_card(workdir)
    if card and (found := datasets.read_dataset(folder)) is not None:
        return found, base.chat if base else load_chat(load_tokenizer(workdir / "tokenizer")), dict(card.texts)
    objective = objectives.find(config.loss)
    specs = {name: catalogue.find(name) for name in catalogue.names()}
    runs = [env for place in files.listed(config.data) if (env := workdirs.read_config(Path(place)).get("env"))]
    for env in [config.env] if "env" in config else runs:  # of a search's workdir, the environments that it was made in
        specs |= catalogue.resolve(env).specs
    rows = own.read(config.data, specs, on_bad_row=config.on_bad_row)
    chat = base.chat if base else load_chat(train_tokenizer(rows.texts(), config.model.vocab_size))
    reader: Reader = "policy" if objective.kind == "policy" else "reward"
    encode = functools.partial(segments, chat=chat, state=config.get("state", "default"), reader=reader)
    names = ("outcome", "context_weight", "balance_values", "balance_tasks")  # those of them that the config has
    how = {name: config[name] for name in names if name in config} | {"row_length": config.row_length}
    how |= {"heldout_fraction": config.get("heldout", 0.0), "least": config.get("min_reward", 0.0)}
    how |= {"extra": outcomes.EXTRA if objective.reference else (), "bounded": config.loss in objectives.PROBABILITIES}
    trees = own.dataset(rows, objective.lesson, encode, folder, loss=config.loss, **how)
    return trees, chat, texts_of(specs, rows.tasks, "", reader=reader)


def told_of(place: str, trees: Sequence[SearchTree]) -> tuple[Mapping[str, EnvSpec], dict[str, Texts]]:
    """The environments of the run in which trees were made, and what a reward model is told about those of their tasks."""
    env = workdirs.read_config(Path(place)).get("env") or ml_collections.ConfigDict(
        {"names": {t.task.env for t in trees}}
    )
    specs = catalogue.resolve(env).specs
    return specs, texts_of(specs, [t.task for t in trees], env.get("prompts", ""), reader="reward")


if __name__ == "__main__":
    mains.run("train.py", main, kept="finished steps since the last checkpoint are lost; the same command continues")
