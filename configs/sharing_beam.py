"""Beam search that prefers trajectories which share their past, and so what the engine caches of them (after ETS, arXiv 2502.13575).

    python search.py --config=configs/sharing_beam.py

Not measured yet. It draws and scores as many turns as `configs/beam.py` (about 4 minutes at nano size on 2 cores). What it saves is
cache, so it is for models and histories that fill it; with `unique_weight` 0 it is `configs/beam.py`.
"""

from configs import common

MAIN = "search.py"


def get_config(size: str = "nano"):
    common.check_size(size)
    config = common.search(size, method="sharing_beam", reward_model=f"runs/{size}/explicit")
    config.search = common.config_dict(width=5, branch=5, unique_weight=0.2, aggregate="last", temperature=1.0)
    return config
