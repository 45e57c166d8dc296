"""Step-level lookahead: at every step sample turns, score each (after `depth` greedy steps, if any), take the best.

python search.py --config=configs/lookahead.py
"""

from configs import common


def get_config(size: str = "nano"):
    common.check_size(size)
    config = common.search(size, method="lookahead", reward_model=f"runs/{size}/explicit")
    config.search = common.config_dict(samples=5, depth=0, temperature=1.0)
    return config
