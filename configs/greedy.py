"""The policy alone: one trajectory a task at temperature 0, the row every search method is compared with.

    python search.py --config=configs/greedy.py

Nano takes half a minute on 2 cores for 64 held-out tasks of each environment; expect about 58 of 100 (47 on BabyAI, 69 in mazes).
"""

from configs import common

MAIN = "search.py"


def get_config(size: str = "nano"):
    common.check_size(size)
    return common.search(size, method="greedy")
