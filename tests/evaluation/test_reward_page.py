"""The tables of reward-model evaluations in every form say the same numbers."""

import re

from agentrm_jax.evaluation import reward_page
from agentrm_jax.evaluation.published import PUBLISHED
from agentrm_jax.evaluation.reward_data import Row

NAN = float("nan")
ROWS = [
    Row("my_rm & co", "pair accuracy", 0.642, 0.581, 0.7, 109, "pairs"),
    Row("shortest", "pair accuracy", 0.651, 0.56, 0.74, 109, "pairs"),
    Row("my_rm & co", "calibration error", 0.05, NAN, NAN, 20, "conversations"),
]
FIGURES = PUBLISHED["plan-rewardbench"]


def test_markdown_latex_and_html_hold_the_same_cells():
    said = reward_page.markdown({"easy": ROWS}, ["a note"], FIGURES)
    assert "| pair accuracy | 109 pairs | 64.2 [58.1, 70.0] | 65.1 [56.0, 74.0] |" in said
    assert "| calibration error | 20 conversations | 5.0 | - |" in said
    assert "| Qwen-Plus | pair accuracy | 70.0 |" in said
    tex = reward_page.latex({"easy": ROWS})
    assert r"pair accuracy & 109 pairs & 64.2 [58.1, 70.0] & 65.1 [56.0, 74.0] \\" in tex
    assert r"my\_rm \& co" in tex
    page = reward_page.page("t < u", {"easy": ROWS}, ["a note"], FIGURES)
    assert "<title>t &lt; u</title>" in page
    assert re.findall(r"<td class=n>([^<]*)</td>", page)[:2] == ["64.2 [58.1, 70.0]", "65.1 [56.0, 74.0]"]
    assert "my_rm &amp; co" in page
    assert "http" not in page
