"""Figures that others have published on reward data, to stand beside ours."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Figure:
    """What somebody reports: the mean over a data set's splits, in percent."""

    scorer: str
    metric: str
    percent: float
    source: str


_PLAN = "arXiv 2604.08178, macro mean of seven splits"

PUBLISHED: dict[str, tuple[Figure, ...]] = {  # by the layout of the rows
    "plan-rewardbench": (
        Figure("Qwen-Plus", "pair accuracy", 70.0, _PLAN),
        Figure("Inf-ORM-Llama3.1-70B", "pair accuracy", 69.2, _PLAN),
        Figure("GPT-5", "pair accuracy", 68.5, _PLAN),
        Figure("Skywork-Reward-V2-8B", "pair accuracy", 65.9, _PLAN),
    ),
}
