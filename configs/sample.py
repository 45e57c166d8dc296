"""Sampling: whole trajectories of the policy, whose outcomes train the implicit reward model (paper 3.2.2).

    python search.py --config=configs/sample.py

Its own row is that of one sample a task; beside it stands what rules that need no reward model, and a perfect chooser
(`oracle`), would have made of all of them. The tasks are those that `configs/mcts.py` explores.
"""

from configs import common

MAIN = "search.py"


def get_config(size: str = "nano"):
    common.check_size(size)
    config = common.search(size, method="sample")
    config.env.split, config.env.start, config.env.count = "train", 1500, 72
    config.search = common.config_dict(n=16, temperature=1.0)
    return config
