"""Best-of-n: n whole trajectories a task, the reward model picks one (paper 3.3).

    python search.py --config=configs/best_of_n.py

Nano takes about 2.5 minutes on 2 cores, after its policy and reward model; expect about 72 of 100 (64 on BabyAI, 81 in mazes), where the
policy alone has 58. Beside its own row it reports what chance (`random`, about 50) and a perfect chooser (`oracle`, about 77)
would have made of the same samples.
"""

from configs import common

MAIN = "search.py"


def get_config(size: str = "nano"):
    common.check_size(size)
    config = common.search(size, method="best_of_n", reward_model=f"runs/{size}/explicit")
    # all_steps: every step is scored, for the report, also where the aggregate needs the last only
    config.search = common.config_dict(n=5, aggregate="last", temperature=1.0, all_steps=True)
    return config
