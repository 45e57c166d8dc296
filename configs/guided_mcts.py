"""Monte-Carlo tree search at test time: before every step a tree is grown by the reward model's values.

    python search.py --config=configs/guided_mcts.py

Not measured yet. It draws and scores up to `iterations` x `k` turns a step, 25 as `configs/beam.py` does (about 4 minutes at nano size on
2 cores), but one expansion after another, and executes all of them, so expect it to take longer. Several simulations, say
--config.search.n=4 --config.search.depth=3 --config.search.rollout_temperature=1.0, cost n x depth turns more for each.
"""

from configs import common

MAIN = "search.py"


def get_config(size: str = "nano"):
    common.check_size(size)
    config = common.search(size, method="guided_mcts", reward_model=f"runs/{size}/explicit")
    config.search = common.config_dict(
        iterations=5,
        k=5,
        c=0.5,
        n=1,
        depth=0,
        rollout_temperature=0.0,
        backup="mean",  # or max
        temperature=1.0,
    )
    return config
