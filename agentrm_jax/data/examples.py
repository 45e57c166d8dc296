"""What a training config names as its data, as a dataset of token trees in the workdir (made once)."""

import asyncio
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentrm_jax import tree
from agentrm_jax.chat import Chat, load_chat
from agentrm_jax.data import datasets as pipeline
from agentrm_jax.data import formats, targets
from agentrm_jax.envs.catalogue import find
from agentrm_jax.envs.experts import ExpertCounts, stream_expert_trajectories
from agentrm_jax.envs.official_prompts import with_prompts
from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.prompts import Encoder, opening
from agentrm_jax.tokenizer import load_tokenizer, train_tokenizer
from agentrm_jax.types import Task, Trajectory, UserError


def env_options(env: Any, name: str) -> dict[str, Any]:
    """Options of one environment as its module takes them; its own `data` counts more than that of all.

    Raises:
      UserError: the environment does not exist or does not know one of its options.
    """
    options = ({"data": env.data} if env.data else {}) | dict(env.options.get(name, {}))
    find(name).check(options)
    return options


def tasks(env: Any, name: str) -> list[Task]:
    """The tasks a config names of one environment: `count` from `start` on, in an order that is the same for everyone.

    Raises:
      UserError: the environment does not exist or has no tasks in this split.
    """
    every = find(name).tasks(env.split, env_options(env, name))
    order = sorted(every, key=lambda t: hashlib.blake2b(t.key.encode(), digest_size=8).digest())
    chosen = order[env.start : env.start + env.count]
    if not chosen:
        raise UserError(f"{name} has {len(every)} tasks in split {env.split!r}, none from number {env.start} on")
    return chosen


def specs(env: Any) -> dict[str, EnvSpec]:
    """Environment name -> its spec, with the texts of the folder `env.prompts` if one is named."""
    return {name: with_prompts(find(name), env.get("prompts", ""), env_options(env, name)) for name in env.names}


def expert_trajectories(env: Any, folder: Path) -> list[Trajectory]:
    """Expert episodes of all tasks a config names, from `folder`/NAME.jsonl, where they are kept once made."""
    found: list[Trajectory] = []
    for name in env.names:
        wanted = tasks(env, name)
        path = folder / f"{name}.jsonl"
        known = {t.task.key: t for t in formats.read_trajectories(path)} if path.exists() else {}
        tried = {t.task.key for t in known.values()} | _failed(folder, name)
        missing = [t for t in wanted if t.key not in tried]
        if missing:
            made = asyncio.run(_demonstrate(env, name, missing, folder))
            known |= {t.task.key: t for t in made}
        found += [known[t.key] for t in wanted if t.key in known]
    return found


async def _demonstrate(env: Any, name: str, missing: list[Task], folder: Path) -> list[Trajectory]:
    """Runs the expert on tasks and keeps what it solved, a hundred at a time, so that a killed run loses little."""
    path, made = folder / f"{name}.jsonl", []

    def progress(counts: ExpertCounts) -> None:
        if counts.finished % 100 == 0 or counts.finished == counts.total:
            print(f"expert of {name}: {counts.solved} solved of {counts.finished}/{counts.total}", file=sys.stderr)

    batch: list[Trajectory] = []
    async for trajectory in stream_expert_trajectories(
        find(name), missing, env_options(env, name), time_limit=20.0, workers=env.workers, progress=progress
    ):
        batch.append(trajectory)
        made.append(trajectory)
        if len(batch) == 100:
            formats.append_jsonl(path, map(formats.trajectory_to_json, batch))
            batch = []
    formats.append_jsonl(path, map(formats.trajectory_to_json, batch))
    solved = {t.task.key for t in made}
    formats.append_jsonl(folder / f"{name}.failed.jsonl", [{"task": t.key} for t in missing if t.key not in solved])
    return made


def _failed(folder: Path, name: str) -> set[str]:
    """Tasks the expert was tried on in vain."""
    path = folder / f"{name}.failed.jsonl"
    return {row["task"] for row in formats.read_jsonl(path)} if path.exists() else set()


def imitation(config: Any, workdir: Path, chat: Chat | None) -> tuple[Any, Chat]:
    """Expert trajectories as token trees, with the tokenizer they were cut with (trained on them if there is none yet)."""
    source = pipeline.read_dataset(workdir / "data")
    if source is not None:
        return source, chat or load_chat(load_tokenizer(workdir / "tokenizer"))
    trajectories = expert_trajectories(config.env, Path(config.experts))
    if not trajectories:
        raise UserError(f"the experts of {', '.join(config.env.names)} solved none of the chosen tasks")
    known = specs(config.env)
    if chat is None:
        chat = load_chat(train_tokenizer(_texts(trajectories, known), config.model.vocab_size))
        chat.tokenizer.save_pretrained(workdir / "tokenizer")
    encoder = Encoder(chat, known)
    flat = []
    skipped = 0
    for trajectory in trajectories:
        one = tree.flatten(targets.imitation_tree(encoder, trajectory, context_weight=config.context_weight))
        if len(one) <= config.row_length:
            flat.append(one)
        else:
            skipped += 1
    _report(flat, skipped, config.row_length)
    pipeline.write_dataset(workdir / "data", flat, meta={"kind": "imitation", "trajectories": len(flat)})
    return pipeline.read_dataset(workdir / "data"), chat


def step_values(config: Any, workdir: Path, chat: Chat) -> Any:
    """Search trees as token trees with a value target at every state that has earned one."""
    source = pipeline.read_dataset(workdir / "data")
    if source is not None:
        return source
    trees = formats.read_trees(Path(config.trees) / "trees")
    known = _told_before(Path(config.trees), {t.task.env for t in trees})
    encoder = Encoder(chat, known, reader="reward")
    flat, histogram, wanted = [], [0] * 10, 0
    for one in trees:
        nodes = targets.value_tree(
            encoder, one, min_visits=config.min_visits, target=config.target, outcome=config.outcome
        )
        wanted += sum(targets.target_histogram([nodes]))
        for part in tree.split(nodes, config.row_length):
            counts = targets.target_histogram([part])
            if sum(counts):
                flat.append(tree.flatten(part))
                histogram = [a + b for a, b in zip(histogram, counts, strict=True)]
    print(f"{len(trees)} trees, {sum(histogram)} target states; by value in tenths: {histogram}")
    if lost := wanted - sum(histogram):
        print(
            f"{lost} states lie deeper than {config.row_length} tokens and are left out; --config.row_length raises it"
        )
    _report(flat, 0, config.row_length)
    pipeline.write_dataset(workdir / "data", flat, meta={"kind": "step_values", "states": sum(histogram)})
    return pipeline.read_dataset(workdir / "data")


def _told_before(workdir: Path, names: set[str]) -> dict[str, EnvSpec]:
    """The specs with the prompts of the search that made the trees, so that the reward model reads what it will read in search."""
    path = workdir / "config.json"
    env = json.loads(path.read_text()).get("env", {}) if path.exists() else {}
    prompts, options = env.get("prompts", ""), env.get("options", {})
    return {name: with_prompts(find(name), prompts, options.get(name, {})) for name in names}


def _texts(trajectories: list[Trajectory], known: Mapping[str, EnvSpec]) -> list[str]:
    """All texts a policy or a reward model will read, for the tokenizer."""
    texts = []
    for t in trajectories:
        for reader in ("policy", "reward"):
            texts += [m.content for m in opening(known[t.task.env].texts(t.task), t.goal, t.observation, reader=reader)]
        texts += [s.action.text for s in t.steps] + [s.outcome.observation for s in t.steps]
    return texts


def _report(flat: list[tree.FlatTree], skipped: int, row_length: int) -> None:
    if not flat:
        raise UserError(f"none of the data fits rows of {row_length} tokens; raise --config.row_length")
    sizes = sorted(len(f) for f in flat)
    print(
        f"{len(flat)} token trees, {sum(sizes)} tokens, median {sizes[len(sizes) // 2]}, longest {sizes[-1]}"
        + (f"; {skipped} longer than a row were left out" if skipped else "")
    )
