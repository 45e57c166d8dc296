"""Step-level lookahead: at every step sample turns, score each (after `depth` greedy steps, if any), take the best.

    python search.py --config=configs/lookahead.py

With `depth` 0 it is a beam of width 1, and takes less time than `configs/beam.py` (about 4 minutes at nano size on 2 cores). Its score at
nano size is not recorded.
"""

from configs import common

MAIN = "search.py"


def get_config(size: str = "nano"):
    common.check_size(size)
    config = common.search(size, method="lookahead", reward_model=f"runs/{size}/explicit")
    config.search = common.config_dict(samples=5, depth=0, temperature=1.0)
    return config
