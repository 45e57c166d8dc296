"""Imitation: the policy learns the actions of expert trajectories (paper 3.1).

    python train.py --config=configs/sft.py

The nano size makes its own data (experts of the environments, once, in `runs/nano/experts`) and tokenizer.
"""

import common


def get_config(size: str = "nano"):
    common.check_size(size)
    return common.config_dict(
        size=size,
        kind="policy",
        model=common.model(size),
        env=common.env(split="train", count=1500),
        experts=f"runs/{size}/experts",
        init="",  # workdir of a model to start from
        loss="imitation",
        context_weight=0.3,  # nano starts from nothing and learns to read on the way; 0 for pretrained models
        seed=0,
        cpu_devices=2,
        mesh=common.config_dict(data=-1, fsdp=1, tensor=1),
        dtype="float32",
        row_length=768,
        batch_rows=10,
        total_steps=160,
        learning_rate=2e-3,
        warmup=0.05,
        weight_decay=0.0,
        clip=1.0,
        log_steps=10,
        checkpoint_steps=40,
    )
