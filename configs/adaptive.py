"""Adaptive best-of-n: samples are drawn one after another until the reward model is content with the best of them.

    python search.py --config=configs/adaptive.py

Expect the score of `configs/best_of_n.py` (about 70 at nano size) with 3.7 instead of 5 samples a task: 2.4 in mazes, and all 5 on
BabyAI, where no score reaches the threshold. So it follows from the samples of a best-of-5 run; its own time is not measured yet.
What it saves on a task is `saved` under `counts` in tasks.jsonl.

The threshold is on the reward model's scale. The one of size nano was read off those very tasks, so it flatters; choose yours, for
each environment by itself, on tasks that are not reported (--config.env.names=maze --config.env.split=dev).
"""

from configs import common

MAIN = "search.py"


def get_config(size: str = "nano"):
    common.check_size(size)
    config = common.search(size, method="adaptive", reward_model=f"runs/{size}/explicit")
    config.search = common.config_dict(
        n=5,
        wave=1,
        threshold=0.4 if size == "nano" else 0.9,
        patience=0,
        aggregate="last",
        temperature=1.0,
    )
    return config
