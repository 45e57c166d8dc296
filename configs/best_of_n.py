"""Best-of-n: n whole trajectories a task, the reward model picks one (paper 3.3).

    python search.py --config=configs/best_of_n.py

Beside its own row it reports what chance (`random`) and a perfect chooser (`oracle`) would have made of the same samples.
"""

from configs import common


def get_config(size: str = "nano"):
    common.check_size(size)
    config = common.search(size, method="best_of_n", reward_model=f"runs/{size}/explicit")
    # all_steps: every step is scored, for the report, also where the aggregate needs the last only
    config.search = common.config_dict(n=5, aggregate="last", temperature=1.0, all_steps=True)
    return config
