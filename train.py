"""Trains a policy by imitation, or a reward model on step values. Read it top to bottom; it runs in that order.

    python train.py --config=configs/sft.py            the policy
    python train.py --config=configs/explicit.py       the reward model

Every array lives where the table in `agentrm_jax/parallel.py` puts it; the same file trains on a laptop and on a pod. Run the
same command again to continue a run that was stopped.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import nnx

from agentrm_jax import parallel
from agentrm_jax.chat import Chat, load_chat
from agentrm_jax.data import datasets, examples, formats
from agentrm_jax.data.demonstrations import expert_trajectories
from agentrm_jax.envs import catalogue
from agentrm_jax.models import opening
from agentrm_jax.models.card import Card, Texts, read_card, texts_of
from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.lora import LoRA
from agentrm_jax.models.opening import OpenedModel
from agentrm_jax.prompts import Encoder
from agentrm_jax.run import config as cli
from agentrm_jax.run import stages
from agentrm_jax.run.logs import MetricWriter, Progress
from agentrm_jax.tokenizer import load_tokenizer, train_tokenizer
from agentrm_jax.training import checkpoint
from agentrm_jax.training import step as training
from agentrm_jax.types import UserError


def main(config: ml_collections.ConfigDict, workdir: Path) -> None:
    # --- Where we are --------------------------------------------------------------------------------------------------
    stages.accelerator(config.cpu_devices)
    first = jax.process_index() == 0

    # --- Mesh: all devices, named axes (before anything is written: a wrong size leaves nothing behind) ----------------
    mesh = parallel.make_mesh(**config.mesh)
    rows = parallel.batch_rows(config.batch_rows, mesh)
    dtype = jax.numpy.dtype(config.dtype)
    lora = LoRA.requested(config.init, **config.lora)

    # --- What has been done before -------------------------------------------------------------------------------------
    with parallel.first_process_first("workdir"):
        cli.begin(config, workdir)
    if stages.is_finished(workdir):
        if first:
            print(f"{workdir} is finished ({config.total_steps} steps); nothing to do")
        return

    # --- Data: records -> token trees on disk -> packed batches --------------------------------------------------------
    with parallel.first_process_first("data"):
        base = None
        if config.init:
            stages.require(config.init, "sft", config.size)
            # Only opened: its weights stay on disk until they have a place.
            base = opening.open_model(config.init, template=config.chat_template)
        make = imitation_data if config.kind == "policy" else step_value_data
        trees, chat, texts = make(config, workdir, base)
        if first:
            chat.tokenizer.save_pretrained(workdir / "tokenizer")
    data = iter(
        datasets.batches(
            trees,
            rows=rows,
            row_length=config.row_length,
            seed=config.seed,
            shard=jax.process_index(),
            shards=jax.process_count(),
        )
    )

    # --- Model and optimizer -------------------------------------------------------------------------------------------
    if base:
        model_config = base.config
    else:
        model_config = dataclasses.replace(ModelConfig(**config.model), vocab_size=len(chat.tokenizer))
    card = Card(
        kind=config.kind,
        loss=config.loss,
        config=model_config,
        lm_head=config.kind == "policy",
        value_head=config.kind == "explicit",
        lora=lora,
        base=config.init,
        template=config.chat_template,
        texts=texts,
    )
    if lora and base:  # adapters and the value head are trained and saved; the base is held in the type it is used in
        card = dataclasses.replace(card, base=opening.adapter_base(config.init, base, lm_head=card.lm_head))
    held = dtype if lora else jax.numpy.float32
    if first:
        (workdir / "model.json").write_text(json.dumps(card.to_json(), indent=2) + "\n")
    tx = training.optimizer_of(config)

    # --- State: what it will be, and where -----------------------------------------------------------------------------
    def make_model(rngs: nnx.Rngs):
        return opening.build_model(card, rngs, scan=config.scan, remat=config.remat, dtype=held)

    graphdef, shape, placed = training.abstract_state(make_model, tx, mesh)

    # --- One update ----------------------------------------------------------------------------------------------------
    loss = training.make_loss(config.loss, dtype)
    train_step = training.make_train_step(graphdef, tx, loss, placed, mesh)

    # --- Go on where a former run stopped, or begin --------------------------------------------------------------------
    with checkpoint.Checkpoints(workdir / "checkpoints") as checkpoints:
        state, meta = checkpoints.restore(shape, placed, data)
        if state is shape:  # nothing to go on from: weights go from disk or the random key straight into their shards
            _, state, _ = training.init_state(make_model, tx, mesh, config.seed, base.read if base else None)
        elif lora and base:
            state = training.read_frozen(state, base.read)
        done = int(state.step)
        if done and first:
            print(f"continuing {workdir} at step {done}")
        trained, frozen = (sum(x.size for x in jax.tree.leaves(p)) / 1e6 for p in (state.params, state.frozen))
        parameters = f"{trained + frozen:.2f} M parameters" + (f" ({trained:.2f} M trained)" if lora else "")
        if first:
            print(f"{config.kind}: {parameters}, {len(trees)} token trees, mesh {dict(mesh.shape)}")

        # --- The loop ------------------------------------------------------------------------------------------------------
        writer = MetricWriter(workdir, done=done, enabled=first)
        progress = Progress(config.total_steps, done=done, enabled=first)
        tokens_seen, window = meta.get("tokens", 0), []
        clock, compile_seconds = time.monotonic(), 0.0
        for step in range(done + 1, config.total_steps + 1):
            batch = parallel.put_batch(next(data), mesh)
            state, metrics = train_step(state, batch)
            window.append(metrics)
            if step == done + 1:
                jax.block_until_ready(metrics)
                compile_seconds, clock = time.monotonic() - clock, time.monotonic()
            last = step == config.total_steps
            if step % config.log_steps == 0 or last:
                read = jax.device_get(window)
                row = {k: float(np.mean([m[k] for m in read])) for k in read[0]}
                if not np.isfinite(row["loss"]):
                    raise UserError(f"the loss is not finite at step {step}; lower --config.learning_rate")
                counted = sum(int(m["tokens"]) for m in read)
                timed = counted - (int(read[0]["tokens"]) if step - len(read) == done else 0)
                speed = timed / max(time.monotonic() - clock, 1e-9)
                tokens_seen += counted
                row |= {"tokens_seen": tokens_seen, "tokens_per_second": speed, "compile_seconds": compile_seconds}
                writer.write(step, row)
                progress.show(step, f"loss {row['loss']:.4f}", f"{speed:,.0f} tokens/s", final=last)
                window, clock = [], time.monotonic()
            if step % config.checkpoint_steps == 0 or last:
                checkpoints.save(state, data, {"tokens": tokens_seen, "kind": config.kind})
        writer.close()
    if first:
        stages.finish(workdir, steps=config.total_steps, tokens=tokens_seen)
        print(f"trained {config.total_steps} steps; checkpoints in {workdir / 'checkpoints'}")


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
    chat = (
        base.chat if base else load_chat(train_tokenizer(examples.texts(trajectories, specs), config.model.vocab_size))
    )
    told = texts_of(specs, [t.task for t in trajectories], config.env.prompts, reader="policy")
    sizes = {"row_length": config.row_length, "context_weight": config.context_weight}
    return examples.imitation(trajectories, Encoder(chat, specs), folder, **sizes), chat, told


def step_value_data(
    config: ml_collections.ConfigDict, workdir: Path, base: OpenedModel | None
) -> tuple[Any, Chat, dict[str, Texts]]:
    """Search trees as a dataset, the tokenizer of the base, and what the reward model is told: the texts of the run that made them."""
    if base is None:
        raise UserError("a reward model starts from a model: set --config.init to its workdir")
    folder, card = workdir / "data", read_card(workdir)
    if card and (found := datasets.read_dataset(folder)) is not None:
        return found, base.chat, dict(card.texts)
    stages.require(config.trees, "mcts", config.size)
    trees = formats.read_trees(Path(config.trees) / "trees")
    env = cli.read(Path(config.trees)).get("env") or ml_collections.ConfigDict({"names": {t.task.env for t in trees}})
    environments = catalogue.resolve(env)
    told = texts_of(environments.specs, [t.task for t in trees], env.get("prompts", ""), reader="reward")
    how = {name: config[name] for name in ("row_length", "min_visits", "target", "outcome")}
    return examples.step_values(trees, Encoder(base.chat, environments.specs, "reward"), folder, **how), base.chat, told


if __name__ == "__main__":
    cli.run(main)
