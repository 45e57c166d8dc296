"""The policy alone: one trajectory a task at temperature 0, the row every search method is compared with.

python search.py --config=configs/greedy.py
"""

from configs import common


def get_config(size: str = "nano"):
    common.check_size(size)
    return common.search(size, method="greedy")
