"""Adaptive best-of-n: samples are drawn one after another until the reward model is content with the best of them.

    python search.py --config=configs/adaptive.py

Not measured yet. With `threshold` out of reach and `patience` 0 it draws what `configs/best_of_n.py` draws (about 2.5 minutes at nano
size on 2 cores), one wave after another; what it saves on a task is `saved` under `counts` in tasks.jsonl. The threshold is on the
reward model's scale: choose it on tasks of the `dev` split (--config.env.split=dev) that are not reported.
"""

from configs import common

MAIN = "search.py"


def get_config(size: str = "nano"):
    common.check_size(size)
    config = common.search(size, method="adaptive", reward_model=f"runs/{size}/explicit")
    config.search = common.config_dict(n=5, wave=1, threshold=0.9, patience=0, aggregate="last", temperature=1.0)
    return config
