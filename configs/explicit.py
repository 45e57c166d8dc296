"""Explicit reward model: a value head learns the step values of search trees (paper 3.2.1, eq. 2).

    python train.py --config=configs/explicit.py

Nano takes about 4 minutes on 2 cores, after its policy and trees; it lifts the policy from about 58 to 72 of 100 in
`configs/best_of_n.py`; taking the shortest sample gives 75. It starts from its policy in `runs/nano/sft`, other sizes from the pretrained
model; trees come from `runs/SIZE/mcts`. What is missing there is made first.
"""

from configs import common

MAIN = "train.py"


def get_config(size: str = "nano"):
    common.check_size(size)
    nano = size == "nano"
    config = common.config_dict(
        size=size,
        init=common.SIZES[size] or f"runs/{size}/sft",
        chat_template="",  # instead of the tokenizer's own: chatml, or a file
        date="",  # told to a template that reads the clock, ISO format; empty: the day the run began
        trees=f"runs/{size}/mcts",
        min_visits=1 if nano else 3,  # lambda; the paper's 3 goes with its 40 iterations a tree
        target="mean",
        outcome="reward",
        heldout=0.05 if nano else 0.1,  # of the tasks: not trained on, but measured on (evaluation.json)
        loss="regression",
        lora=common.lora(),
        seed=0,
        mesh=common.config_dict(data=-1, fsdp=1, tensor=1) if nano else common.config_dict(data=1, fsdp=-1, tensor=1),
        total_steps=110 if nano else 300,
        learning_rate=3e-4 if nano else 1e-5,
        warmup=0.03,
        weight_decay=0.0,
        clip=1.0,
        log_steps=10 if nano else 1,
        checkpoint_steps=20,
        eval_steps=30 if nano else 50,
    )
    config.update(common.training(size))
    return config
