import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from agentrm_jax.evaluation import report
from agentrm_jax.types import Action, Outcome, SearchTree, Step, Task, Trajectory, TreeNode

NASTY = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(2)> & \"' \u2028 \x00 \ud800 %%data%% ${x}"
TASK = Task("web", "1", "test", 5)


def page(tmp_path, **content) -> str:
    path = report.write(tmp_path / "report" / "index.html", **{"title": "a title"} | content)
    return path.read_text("utf-8")


def embedded(text: str) -> dict:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


@pytest.fixture(scope="module")
def full(example, tmp_path_factory) -> str:
    return page(tmp_path_factory.mktemp("full"), **vars(example))


def test_page_loads_nothing_from_elsewhere(full):
    outside_data = re.sub(r'id="data">.*?</script>', "", full, flags=re.DOTALL)
    assert not re.search(
        r"https?:|//[a-z]+\.|@import|url\(|<link|<iframe|<img|\bsrc=|\bfetch\(|XMLHttpRequest|import\(", outside_data
    )
    assert "default-src 'none'" in full


def test_page_never_builds_markup_from_text(full):
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", full)


def test_data_holds_what_was_given(full, example):
    data = embedded(full)
    assert [row["name"] for row in data["summary"]["rows"]] == ["greedy", "random", "best_of_n", "beam", "oracle"]
    assert data["summary"]["columns"] == ["babyai", "pddl", "overall"]
    assert set(data["curves"]["overall"]) == {"best_of_n", "oracle", "random"}
    assert [row["name"] for row in data["budget"]] == ["greedy", "best_of_n", "beam"]
    assert len(data["trajectories"]["items"]) == len(example.trajectories)
    first = data["trajectories"]["items"][0]
    assert first["steps"][0]["action"].startswith(("go to", "pick up", "toggle"))
    assert not first["steps"][0]["thought"].startswith("Thought")
    assert first["steps"][0]["value"] == example.trajectories[0].meta["step_scores"][0]
    assert len(data["trees"]["items"][1]["nodes"]) == len(example.trees[1].nodes)
    assert data["reward_models"]["explicit"]["metrics"]["states"] == 900


def test_hostile_text_stays_text(tmp_path):
    step = Step(Action(NASTY), Outcome(NASTY, parsed=NASTY))
    trajectory = Trajectory(TASK, NASTY, NASTY, (step,), {"method": NASTY, "step_scores": [float("nan")]})
    root = TreeNode(-1, None, Outcome(NASTY), 0, 0.0, 0.0, 0.0, 0.0)
    text = page(
        tmp_path, title=NASTY, trajectories=[trajectory], trees=[SearchTree(TASK, NASTY, (root,), {"k": NASTY})],
        provenance={NASTY: {NASTY: NASTY}},
    )  # fmt: skip
    assert text.count("<script") == 2
    assert text.count("</script>") == 2
    assert "<img" not in text
    data = embedded(text)
    assert data["title"] == NASTY
    assert data["trajectories"]["items"][0]["steps"][0]["observation"] == NASTY
    assert data["trajectories"]["items"][0]["steps"][0]["value"] is None
    assert data["trees"]["items"][0]["goal"] == NASTY


@pytest.mark.parametrize("part", ["results", "trajectories", "trees", "training", "reward_models", "provenance"])
def test_any_part_alone_or_missing_is_fine(tmp_path, example, part):
    alone = embedded(page(tmp_path / "alone", **{part: vars(example)[part]}))
    key = "summary" if part == "results" else part
    assert alone[key]
    without = {k: v for k, v in vars(example).items() if k != part}
    rest = embedded(page(tmp_path / "rest", **without))
    assert not rest[key] or rest[key] == {"items": [], "left_out": 0}


def test_nothing_at_all_is_fine(tmp_path):
    assert embedded(page(tmp_path))["summary"] is None


def test_one_method_without_extras_is_fine(tmp_path, example):
    data = embedded(page(tmp_path, results=example.results[:1]))
    assert [row["name"] for row in data["summary"]["rows"]] == ["greedy"]
    assert data["curves"] == {}


def test_what_is_left_out_is_counted(tmp_path, example):
    content = {"trajectories": example.trajectories, "trees": example.trees}
    data = embedded(page(tmp_path, **content, max_trajectories=4, max_trees=1))
    assert [t["task"] for t in data["trajectories"]["items"]] == ["babyai/Task-0000"] * 3 + ["pddl/Task-0000"]
    assert data["trajectories"]["left_out"] == len(example.trajectories) - 4
    assert (len(data["trees"]["items"]), data["trees"]["left_out"]) == (1, 1)
    small = page(tmp_path, **content, max_bytes=20_000)
    assert len(small) < len(page(tmp_path)) + 25_000
    assert embedded(small)["trajectories"]["left_out"] > 0


def test_long_texts_are_cut(tmp_path):
    trajectory = Trajectory(TASK, "g", "x" * 50_000, ())
    seen = embedded(page(tmp_path, trajectories=[trajectory]))["trajectories"]["items"][0]["observation"]
    assert len(seen) < 7000
    assert seen.endswith("[44000 more characters are not in this report]")


def test_a_large_tree_keeps_its_most_visited_nodes(tmp_path):
    rng = np.random.default_rng(0)
    parents = [-1, *(int(rng.integers(0, i)) for i in range(1, 4000))]
    visits = [1] * 4000
    for i in range(3999, 0, -1):
        visits[parents[i]] += visits[i]
    nodes = tuple(
        TreeNode(p, Action(f"Action: {i}") if i else None, Outcome(""), v, v / 2, v / 4, 0.5, 0.5)
        for i, (p, v) in enumerate(zip(parents, visits, strict=True))
    )
    (tree,) = embedded(page(tmp_path, trees=[SearchTree(TASK, "g", nodes)]))["trees"]["items"]
    assert (len(tree["nodes"]), tree["left_out"]) == (3000, 1000)
    for i, node in enumerate(tree["nodes"]):
        assert -1 <= node["parent"] < i or i == 0
        original = nodes[int(node["action"] or 0)]
        assert node["visits"] == original.visits
        if i:
            assert tree["nodes"][node["parent"]]["action"] == str(original.parent or "")


def test_training_metrics_share_a_chart_and_are_thinned(tmp_path):
    rows = [{"step": i, "train/loss": 1 / (i + 1), "note": "text", "flag": True} for i in range(1000)]
    rows[5]["dev/loss"], rows[9]["dev/loss"], rows[7]["train/loss"] = 0.5, 0.4, float("nan")
    (run,) = embedded(page(tmp_path, training={"sft": rows}))["training"]
    (chart,) = run["charts"]
    assert (chart["name"], list(chart["lines"])) == ("loss", ["train", "dev"])
    assert len(chart["lines"]["train"]) == 400
    assert chart["lines"]["train"][-1] == [999, 1 / 1000]
    assert chart["lines"]["dev"] == [[5, 0.5], [9, 0.4]]


def test_the_report_replaces_the_last_one(tmp_path):
    page(tmp_path, title="the first of two")
    assert "the first of two" not in page(tmp_path, title="the second of two")
    assert [p.name for p in (tmp_path / "report").iterdir()] == ["index.html"]


@pytest.mark.skipif(shutil.which("node") is None, reason="runs the page's script with node, which is not installed")
def test_labels_of_ticks_never_repeat():
    script = (Path(report.__file__).parent / "report_charts.js").read_text()
    parts = [
        re.search(rf"^function {name}\(.*?^}}", script, re.DOTALL | re.MULTILINE)[0]
        for name in ("number", "tickLabels")
    ]
    cases = [[42.1, 42.1002, 42.1004], [0.1, 0.2], [1000.2, 1000.4], [0.4211, 0.4212], [1, 2, 3]]
    code = "\n".join(
        [*parts, f"console.log(JSON.stringify({cases}.flatMap((c) => [tickLabels(c, false), tickLabels(c, true)])))"]
    )
    out = json.loads(subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True).stdout)
    assert all(len(set(labels)) == len(labels) for labels in out)
    assert out[2:4] == [["0.1", "0.2"], ["10", "20"]]
    assert out[8] == ["1", "2", "3"]


@pytest.mark.skipif(shutil.which("node") is None, reason="runs the page's script with node, which is not installed")
def test_a_logarithmic_axis_has_ticks_from_end_to_end():
    script = (Path(report.__file__).parent / "report_charts.js").read_text()
    ticks = re.search(r"^function logTicks\(.*?^}", script, re.DOTALL | re.MULTILINE)[0]
    code = f"{ticks}\nconsole.log(JSON.stringify([logTicks(82, 2417), logTicks(0.07, 0.97), logTicks(3, 4)]))"
    out = json.loads(subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True).stdout)
    assert out == [[100, 200, 500, 1000, 2000], [0.1, 0.2, 0.5], []]


def test_charts_have_a_role_a_title_and_their_numbers(full):
    assert 'setAttribute("role", "img")' in full
    assert "aria-label" in full
    assert 'el("summary", {}, "Numbers")' in full


def test_the_page_says_how_many_turns_were_left_out(tmp_path, example):
    result = dict(example.results[0]) | {"dropped_turns": {"policy": 7, "reward_model": 3, "tasks": 2}}
    (row,) = embedded(page(tmp_path, results=[result]))["budget"]
    assert row["spent"]["turns left out (policy)"] == 7
    assert row["spent"]["turns left out (reward_model)"] == 3
