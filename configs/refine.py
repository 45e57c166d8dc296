"""Refine: attempts one after another, each told the reward model's verdict on the best one so far.

    python search.py --config=configs/refine.py

For policies that can read what they are told: one trained from nothing on expert episodes (nano) has never seen such a note, and
docs/search.md shows what becomes of it.
"""

from configs import common

MAIN = "search.py"


def get_config(size: str = "nano"):
    common.check_size(size)
    config = common.search(size, method="refine", reward_model=f"runs/{size}/explicit")
    config.search = common.config_dict(attempts=3, aggregate="last", temperature=1.0)
    return config
