"""Imitation: the policy learns the actions of expert trajectories (paper 3.1).

    python train.py --config=configs/sft.py

Nano takes about 5 minutes on 2 cores: it makes its own data (experts of the environments, once, in `runs/nano/experts`) and
tokenizer, and trains 3.4 M parameters from nothing. Alone (`configs/greedy.py`) that policy scores about 58 of 100 on held-out tasks, 47 on
BabyAI and 69 in mazes. Other sizes start from a pretrained model (`--config=configs/sft.py:smollm2`).
"""

from configs import common

MAIN = "train.py"


def get_config(size: str = "nano"):
    common.check_size(size)
    nano = size == "nano"
    config = common.config_dict(
        size=size,
        model=common.model(),  # nano's; a model named by `init` brings its own
        token_span="phrases",  # what a token of nano's tokenizer may span; words: where words are to be copied (a search, a click)
        init=common.SIZES[size],  # a training workdir, a Hugging Face folder, a GGUF file, or smollm2
        chat_template="",  # instead of the tokenizer's own: chatml, or a file
        date="",  # told to a template that reads the clock, ISO format; empty: the day the run began
        env=common.env(split="train", count=1500),
        experts=f"runs/{size}/experts",
        data="",  # your own rows instead: files and folders with commas between them, or hf:NAME (docs/data.md)
        on_bad_row="stop",  # or skip
        min_reward=0.0,  # of data: what is rated lower is not imitated
        show_batch=False,
        loss="imitation",
        context_weight=0.3 if nano else 0.0,  # nano starts from nothing and learns to read on the way
        lora=common.lora(),
        seed=0,
        seeds=1,  # 3: seeds 0, 1 and 2, each in a folder of the workdir
        mesh=common.config_dict(data=-1, fsdp=1, tensor=1) if nano else common.config_dict(data=1, fsdp=-1, tensor=1),
        accumulate=1,  # parts in which the rows of an update are read
        total_steps=160 if nano else 300,
        learning_rate=2e-3 if nano else 2e-5,
        warmup=0.05 if nano else 0.1,
        weight_decay=0.0,
        clip=1.0,
        log_steps=10 if nano else 1,
        checkpoint_steps=40,
    )
    config.update(common.training(size))
    return config
