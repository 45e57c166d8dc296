"""Implicit reward model: a policy whose log-ratio to its start is the reward (paper 3.2.2).

    python train.py --config=configs/implicit.py

It starts from a policy, which is also the frozen reference: `runs/nano/sft`, for other sizes the pretrained model. It learns
whole trajectories with their outcomes: samples of `runs/SIZE/sample`, leaves of search trees (`--config.trees=runs/SIZE/mcts`), or both.
What is missing is made first. Then `python search.py --config=configs/best_of_n.py --config.reward_model=runs/SIZE/implicit`.
Nano takes about 3 minutes on 2 cores, after its policy and samples (some 10 minutes), and learns by cross-entropy: on held-out tasks it
tells success from failure better so than by AgentRM's squared error (docs/models.md), which is the default of the other sizes.
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
        samples=f"runs/{size}/sample",  # a search's workdir or a file of trajectories; empty: none
        data="",  # your own rows instead: files and folders with commas between them, or hf:NAME (docs/data.md)
        on_bad_row="stop",  # or skip
        show_batch=False,
        trees="",  # the workdir of an exploration whose leaves are learned (too)
        outcome="reward",
        min_visits=1 if nano else 3,  # of held-out states that are measured
        heldout=0.05 if nano else 0.1,  # of the tasks: not trained on, but measured on (evaluation.json)
        loss="implicit_cross_entropy" if nano else "implicit_regression",  # ImplicitPRM's, AgentRM's
        beta=0.05,
        lora=common.lora(),
        seed=0,
        seeds=1,  # 3: seeds 0, 1 and 2, each in a folder of the workdir
        mesh=common.config_dict(data=-1, fsdp=1, tensor=1) if nano else common.config_dict(data=1, fsdp=-1, tensor=1),
        accumulate=1,  # parts in which the rows of an update are read
        total_steps=110 if nano else 300,
        learning_rate=3e-4 if nano else 5e-7,
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
