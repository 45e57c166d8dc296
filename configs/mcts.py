"""Exploration: a search tree for every training task, whose step values train the explicit reward model (paper 3.2.1).

    python search.py --config=configs/mcts.py

Nano takes about 3 minutes on 2 cores and leaves 144 trees with some 8,500 states. Its score is that of the best episode of each tree:
it says what there is to learn from, and compares with nothing. The tasks are other ones than those the policy imitated. Nano looks
at many tasks briefly: what it lacks is variety.
"""

from configs import common

MAIN = "search.py"


def get_config(size: str = "nano"):
    common.check_size(size)
    nano = size == "nano"
    config = common.search(size, method="mcts")
    config.env.split, config.env.start, config.env.count = "train", 1500, 72
    config.search = common.config_dict(
        iterations=3 if nano else 40,
        k=5,
        c=0.5,
        n=1,
        temperature=1.0,
        rollout_temperature=0.0,
        outcome="reward",
    )
    return config
