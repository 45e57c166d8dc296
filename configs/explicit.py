"""Explicit reward model: a value head learns the step values of search trees (paper 3.2.1, eq. 2).

    python train.py --config=configs/explicit.py

Nano takes about 2 minutes on 2 cores, after its policy and trees. With 110 steps it lifted the policy from 58 to 72 of 100 in
`configs/best_of_n.py`, where taking the shortest sample gave 75 (docs/results.md); 70 leave the demo time for three seeds. It starts
from its policy in `runs/nano/sft`, other sizes from the pretrained model; trees come from `runs/SIZE/mcts`. What is missing there is
made first.
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
        model=common.model(),  # of one that starts from nothing: init empty, as it is with data and size nano
        trees=f"runs/{size}/mcts",
        data="",  # your own rows instead: files and folders with commas between them, or hf:NAME (docs/data.md)
        on_bad_row="stop",  # or skip
        show_batch=False,
        min_visits=1 if nano else 3,  # lambda; the paper's 3 goes with its 40 iterations a tree
        target="mean",
        outcome="reward",
        state="default",  # what is read of a state; or last_observation, no_observations, no_thoughts, actions
        weight_visits=0.0,  # kappa of N / (N + kappa); 0: all states weigh the same
        balance_values=False,
        balance_tasks=False,
        heldout=0.05 if nano else 0.1,  # of the tasks: not trained on, but measured on (evaluation.json)
        loss="regression",  # or cross_entropy, pairwise, listwise, promise, temporal_difference
        center=0.0,  # of pairwise
        advantage_weight=1.0,  # of promise and temporal_difference
        td_lambda=0.95,  # of temporal_difference
        heads=1,  # several: an ensemble of value heads on one trunk
        freeze="nothing",  # or trunk
        lora=common.lora(),
        seed=0,
        seeds=1,  # 3: seeds 0, 1 and 2, each in a folder of the workdir
        mesh=common.config_dict(data=-1, fsdp=1, tensor=1) if nano else common.config_dict(data=1, fsdp=-1, tensor=1),
        accumulate=1,  # parts in which the rows of an update are read
        total_steps=70 if nano else 300,
        learning_rate=3e-4 if nano else 1e-5,
        head_learning_rate=1.0,  # times the learning rate
        warmup=0.03,
        weight_decay=0.0,
        clip=1.0,
        log_steps=10 if nano else 1,
        checkpoint_steps=20,
        eval_steps=30 if nano else 50,
        eval_metric="none",  # e.g. spearman_within_task: the best checkpoint by it is the model
        patience=0,  # measurements without a better one, after which training stops
    )
    config.update(common.training(size))
    return config
