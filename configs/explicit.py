"""Explicit reward model: a value head learns the step values of search trees (paper 3.2.1, eq. 2).

    python train.py --config=configs/explicit.py

Starts from the policy in `runs/nano/sft` and the trees in `runs/nano/mcts`; what is missing there is made first.
"""

import common


def get_config(size: str = "nano"):
    common.check_size(size)
    return common.config_dict(
        size=size,
        kind="explicit",
        init=f"runs/{size}/sft",
        trees=f"runs/{size}/mcts",
        min_visits=1,  # lambda; 3 in the paper, whose trees have 40 iterations
        target="mean",
        outcome="reward",
        loss="regression",
        seed=0,
        cpu_devices=2,
        mesh=common.config_dict(data=-1, fsdp=1, tensor=1),
        dtype="float32",
        row_length=768,
        batch_rows=10,
        total_steps=120,
        learning_rate=3e-4,
        warmup=0.03,
        weight_decay=0.0,
        clip=1.0,
        log_steps=10,
        checkpoint_steps=50,
    )
