"""What several experiments share: model sizes, environments, engine shapes. A file here is not an experiment of its own."""

import ml_collections

from agentrm_jax.types import UserError

SIZES = ("nano",)


def config_dict(**fields) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(fields)


def check_size(size: str) -> None:
    if size not in SIZES:
        raise UserError(f"no size {size!r} for this config; known: {', '.join(SIZES)}")


def model(size: str) -> ml_collections.ConfigDict:
    """The transformer; `nano` has 3.4 M parameters and its own tokenizer."""
    return config_dict(
        vocab_size=1024, num_layers=4, d_model=256, num_heads=4, num_kv_heads=2, head_dim=64, d_ff=768, max_length=768
    )


def env(*, split: str, start: int = 0, count: int = 64) -> ml_collections.ConfigDict:
    """Which tasks: `count` per environment of a split, from `start` on, in an order shuffled once and for all."""
    return config_dict(
        names=("babyai", "maze"),
        split=split,
        start=start,
        count=count,
        data="",  # folder of official data files, if any
        workers=2,
        step_timeout=30.0,
        options=config_dict(
            babyai=config_dict(
                levels=("GoToRedBall", "GoToRedBallGrey", "GoToRedBlueBall", "OpenRedDoor"),
                seeds_per_level=600,
                max_steps=8,
            ),
            maze=config_dict(sizes=(3,), seeds=2400, max_steps=14),
        ),
    )


def engine(size: str) -> ml_collections.ConfigDict:
    """Batch shapes the engine compiles for, and the size of its cache."""
    return config_dict(
        cache_tokens=65536,
        rows=(16, 64),
        new_tokens=(64, 128),
        context=(256, 768),
        samples=5,
        max_new=24,
        dtype="float32",
    )


def search(size: str, *, method: str, reward_model: str = "") -> ml_collections.ConfigDict:
    """What all of search.py's experiments have in common: policy, reward model, test tasks, engine."""
    return config_dict(
        size=size,
        method=method,
        policy=f"runs/{size}/sft",
        reward_model=reward_model,
        greedy=f"runs/{size}/greedy",  # workdir of a finished greedy run; its row is reported beside ours if it is there
        env=env(split="test", count=64),
        engine=engine(size),
        search=config_dict(),
        concurrency=64,
        examples=0,
        seed=0,
        log_seconds=10.0,
    )
