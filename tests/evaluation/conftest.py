"""A small made-up comparison with everything a report can show, drawn from a seed."""

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest

from agentrm_jax.evaluation import metrics, results, rules
from agentrm_jax.types import Action, Outcome, SearchTree, Step, Task, Trajectory, TreeNode

OBJECTS = ["red ball", "grey key", "blue box", "green door", "purple door", "yellow ball"]
ROOMS = ["You are in a room 7 by 7.", "There is a wall 3 steps ahead.", "The door is locked.", "You carry nothing."]


def budget(policy: float, reward: float, steps: float, seconds: float) -> dict[str, float]:
    return {"policy_tokens": policy, "reward_tokens": reward, "env_steps": steps, "seconds": seconds}


def make_samples(difficulty: float, n: int, rng: random.Random) -> list[rules.Sample]:
    found = []
    for _ in range(n):
        worth = min(1.0, max(0.0, difficulty + rng.gauss(0, 0.35)))
        worth = 1.0 if worth > 0.8 else round(worth, 2)
        found.append(rules.Sample(worth + rng.gauss(0, 0.2), worth, worth == 1, worth))
    return found


def make_records(sizes: dict[str, int], n: int, seed: int) -> tuple[list[results.TaskRecord], list[results.TaskRecord]]:
    """Records of a reranking method, and greedy records of the same tasks."""
    rng = random.Random(seed)
    chosen, greedy = [], []
    for env, size in sizes.items():
        for i in range(size):
            difficulty = rng.random()
            samples = make_samples(difficulty, n, rng)
            first, best = make_samples(difficulty, 1, rng)[0], max(samples)
            key = f"{env}/Task-{i:04d}"
            chosen.append(results.TaskRecord(key, env, best.reward, best.progress, best.success, 9, samples))
            greedy.append(results.TaskRecord(key, env, first.reward, first.progress, first.success, 11))
    return chosen, greedy


def make_turn(rng: random.Random) -> Action:
    thing = rng.choice(OBJECTS)
    verb = rng.choice(["go to", "pick up", "toggle and go through"])
    thought = f"The goal needs the {thing}. I have not been there yet, so I go there first and look around."
    return Action(f"Thought: {thought}\nAction: {verb} {thing} 1")


def make_outcome(rng: random.Random, progress: float, done: bool = False) -> Outcome:
    text = " ".join(rng.sample(ROOMS, 3)) + f" There is a {rng.choice(OBJECTS)} 1 to your left and a wall behind you."
    return Outcome(text, progress, progress, done, done and progress == 1, rng.random() > 0.1, "look" if done else None)


def make_trajectory(env: str, task: int, sample: int, rng: random.Random) -> Trajectory:
    length, steps, progress = rng.randint(3, 14), [], 0.0
    for i in range(length):
        progress = min(1.0, progress + rng.choice([0, 0, 0.25, 0.5]))
        steps.append(Step(make_turn(rng), make_outcome(rng, progress, i == length - 1)))
    values = [min(1.0, max(0.0, s.outcome.progress * 0.7 + 0.15 + rng.gauss(0, 0.06))) for s in steps]
    meta = {"method": "best_of_n", "sample": sample, "score": values[-1], "step_scores": values, "seed": 17 + sample}
    goal = f"pick up the {rng.choice(OBJECTS)}, then go to the {rng.choice(OBJECTS)}"
    where = Task(env, f"Task-{task:04d}", "test", 20)
    return Trajectory(where, goal, ROOMS[0] + " There is a green door 2 ahead.", tuple(steps), meta)


def make_tree(task: int, seed: int, simulations: int = 60) -> SearchTree:
    """A tree whose statistics are those of the returns below every node."""
    rng = random.Random(seed)
    parents, actions, outcomes, returns = [-1], [None], [make_outcome(rng, 0.0)], [[]]
    depths, hidden = [0], [0.5]
    for _ in range(simulations):
        weights = [math.exp(3 * h) if d < 9 else 0.01 for h, d in zip(hidden, depths, strict=True)]
        at = rng.choices(range(len(parents)), weights)[0]
        if outcomes[at].done:
            continue
        hidden.append(min(1.0, max(0.0, hidden[at] + rng.gauss(-0.05, 0.25))))
        done = depths[at] > 2 and rng.random() < 0.4
        worth = (1.0 if hidden[-1] > 0.75 else round(hidden[-1] * 0.6, 2)) if done else round(hidden[-1] * 0.8, 2)
        parents.append(at)
        depths.append(depths[at] + 1)
        actions.append(make_turn(rng))
        outcomes.append(make_outcome(rng, worth, done))
        returns.append([])
        node = len(parents) - 1
        while node >= 0:
            returns[node].append(worth)
            node = parents[node]
    nodes = tuple(
        TreeNode(
            p,
            a,
            o,
            len(r),
            sum(r),
            sum(x * x for x in r),
            min(r, default=0),
            max(r, default=0),
            1 + i % 5 // 4,
            p in parents,
            False,
        )
        for i, (p, a, o, r) in enumerate(zip(parents, actions, outcomes, returns, strict=True))
    )
    goal = "open the purple door, then pick up the grey key"
    return SearchTree(Task("babyai", f"Task-{task:04d}", "train", 20), goal, nodes, {"seed": seed, "c_uct": 0.5})


def make_example(sizes: dict[str, int], n: int = 5, seed: int = 0, resamples: int = 400) -> SimpleNamespace:
    """Keyword arguments of `report.write`, as attributes."""
    rng = random.Random(seed)
    chosen, greedy = make_records(sizes, n, seed)
    better = [r for r in make_records(sizes, n, seed)[0]]
    shared = {"policy": "SmolLM2-135M-Instruct", "resamples": resamples}
    best = results.build(
        chosen, method="best_of_n", reward_model="explicit", budget=budget(4.1e6, 1.2e6, 9120, 811.2),
        baselines={"greedy": greedy}, **shared,
    )  # fmt: skip
    beam = results.build(
        [r.__class__(r.task, r.env, min(1.0, r.reward + 0.05), r.progress, r.success, 8) for r in better],
        method="beam", reward_model="explicit", budget=budget(9.7e6, 3.4e6, 20871, 2210.5), **shared,
    )  # fmt: skip
    plain = results.build(greedy, method="greedy", budget=budget(8.2e5, 0, 1841, 140.0), **shared)
    train = [
        {"step": 5 * i, "train/loss": 0.3 + math.exp(-i / 9) + rng.gauss(0, 0.02), "lr": 1e-4 * (1 - i / 60)}
        for i in range(60)
    ]
    for row in train[::6]:
        row |= {"dev/loss": row["train/loss"] + 0.06, "dev/spearman": 0.7 - 0.6 * math.exp(-row["step"] / 80)}
    value = np.random.default_rng(seed).uniform(size=900)
    target = np.clip(0.15 + 0.7 * value + np.random.default_rng(seed + 1).normal(0, 0.15, 900), 0, 1)
    tasks = [f"t{i // 15}" for i in range(900)]
    rated = metrics.reward_model_metrics(value, target, tasks, success=target > 0.7, lengths=np.arange(900) % 15)
    step = np.random.default_rng(seed + 2).normal(0, 0.1, 900)
    rated["aggregators"] = metrics.aggregators_table(
        {"last": value, "mean": value + step, "min": value - 2 * np.abs(step)},
        target,
        tasks,
        lengths=np.arange(900) * 7 % 15,
    )
    return SimpleNamespace(
        title="best_of_n, beam and greedy on " + ", ".join(sizes),
        results=[plain, best, beam],
        trajectories=[make_trajectory(env, task, s, rng) for env in sizes for task in range(3) for s in range(3)],
        trees=[make_tree(1, 3), make_tree(2, 9, 200)],
        training={"policy (sft)": train, "reward model (explicit)": [dict(row) for row in train]},
        reward_models={"explicit": rated},
        provenance={
            "commands": ["python search.py --config=configs/best_of_n.py --workdir=runs/best_of_n"],
            "versions": {"python": "3.11", "numpy": np.__version__},
            "config": {"seed": 0, "search": {"n": n, "temperature": 1.0}, "env": {"name": "babyai"}},
        },
    )


@pytest.fixture(scope="session")
def example() -> SimpleNamespace:
    return make_example({"babyai": 14, "pddl": 9})
