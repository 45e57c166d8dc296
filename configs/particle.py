"""Particle filtering: trajectories step together and are resampled by their scores at every step (arXiv 2502.01618).

    python search.py --config=configs/particle.py

Not measured yet. It draws as many turns as `configs/best_of_n.py` and scores each of them (about 2.5 minutes at nano size on 2 cores).
"""

from configs import common

MAIN = "search.py"


def get_config(size: str = "nano"):
    common.check_size(size)
    config = common.search(size, method="particle", reward_model=f"runs/{size}/explicit")
    config.search = common.config_dict(
        particles=5,
        weight_temperature=0.05,  # scores of a step differ by some hundredths; ten times as much hardly resamples
        resampling="systematic",  # or multinomial
        aggregate="last",
        temperature=1.0,
    )
    return config
