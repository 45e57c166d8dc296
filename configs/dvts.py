"""Diverse verifier tree search: subtrees that do not compete, in each of them a beam, the best end of all wins.

    python search.py --config=configs/dvts.py

Not measured yet. It draws and scores as many turns as `configs/beam.py` (about 4 minutes at nano size on 2 cores).
"""

from configs import common

MAIN = "search.py"


def get_config(size: str = "nano"):
    common.check_size(size)
    config = common.search(size, method="dvts", reward_model=f"runs/{size}/explicit")
    config.search = common.config_dict(trees=5, width=1, branch=5, aggregate="last", temperature=1.0)
    return config
