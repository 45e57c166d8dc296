"""Step-level beam search: width x branch proposals a step, the reward model keeps `width` of them (paper 3.3).

    python search.py --config=configs/beam.py

Nano takes about 4 minutes on 2 cores, after its policy and reward model; expect 62 to 75 of 100, by chance in the reward
model's training (64 in the last run: 46 on BabyAI, 81 in mazes), where the policy alone has 58.
"""

from configs import common

MAIN = "search.py"


def get_config(size: str = "nano"):
    common.check_size(size)
    config = common.search(size, method="beam", reward_model=f"runs/{size}/explicit")
    config.search = common.config_dict(width=5, branch=5, aggregate="last", temperature=1.0)
    return config
