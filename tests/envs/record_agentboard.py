"""Records episodes of AgentBoard's own BabyAI and PDDL wrappers, which `test_agentboard_play.py` plays again.

Two steps, because the original needs old packages. With ours (agentrm_jax and minigrid), choose tasks and commands:

    PYTHONPATH=. python tests/envs/record_agentboard.py plan babyai plan.json            (pddl likewise; --data DIR for the official tasks)

With the original's (`pip install minigrid==2.3.0 gymnasium==0.29.1 'numpy<2' gym==0.24.0 nltk matplotlib pillow imageio scikit-image`
and a checkout of hkust-nlp/AgentBoard), play them:

    python tests/envs/record_agentboard.py play babyai plan.json CHECKOUT tests/envs/agentboard_golden/babyai.json

Without `--data`, worlds, problems and sub-goals are ours; nothing of AgentBoard's data is in the files then. Episodes mix the expert's
commands with random ones; what is random depends on the task alone.
"""

import argparse
import contextlib
import io
import json
import os
import random
import sys
import tempfile
import types

# Worlds in whose episodes the wrapper's peculiarities show: which of several routes it takes, where a command stops, how it counts.
WORLDS = {
    "GoToRedBallGrey": 100_001,
    "GoToRedBall": 100_002,
    "GoToLocalS8N7": 100_002,
    "GoToImpUnlock": 100_003,
    "OpenDoorsOrderN4Debug": 100_000,
    "UnblockPickup": 100_001,
    "UnlockLocalDist": 100_003,
    "BlockedUnlockPickup": 100_004,
    "KeyCorridorS6R3": 100_001,
}
ODD = [
    "",
    "check valid actions",
    "Check",
    "inventory",
    "fly to the moon",
    "pick up red ball 1",
    "toggle",
    "drop",
    "look around",
]


def chosen(name, data):
    """(task, the original's arguments) for every task to be recorded."""
    from agentrm_jax.envs import catalogue
    from agentrm_jax.envs.pddl import environment as pddl
    from agentrm_jax.envs.pddl.engine import write_problem

    spec = catalogue.find(name)
    options = {"setting": "agentboard"}
    if data:
        tasks = spec.tasks("test", {**options, "data": data})
    elif name == "babyai":
        tasks = spec.tasks("train", {**options, "levels": list(WORLDS), "seeds_per_level": 5})
        tasks = [task for task in tasks if WORLDS[task.id.split("-")[0]] == task.args["seed"]]
    else:
        tasks = spec.tasks("test", {**options, "count": 12})
    for task in tasks:
        args = dict(task.args)
        if name == "pddl" and "pddl" not in args:
            problem = pddl._grounded(*pddl._source(task)).problem
            args = {"domain": args["domain"], "difficulty": "easy", "setting": "agentboard"}
            args["pddl"] = write_problem(problem, pddl.WORLDS[args["domain"]].domain)
        yield task.id, args


def plan(name, out, data, episodes, length):
    from agentrm_jax.envs import catalogue
    from agentrm_jax.types import Task

    spec = catalogue.find(name)
    env = spec.make({"setting": "agentboard"})
    found = []
    for id_, args in chosen(name, data):
        if name == "babyai" and "subgoals" not in args:
            env.reset(Task(name, id_, "test", 30, args))
            patterns = [subgoal[0] for subgoal in env._ledger.remaining]
            patterns += ["You are carrying a **", "There is a ** door **", "You are facing a wall 1 **"]
            others = ["You are facing a box **", *patterns[1:-1], "You are facing a box **"]
            args["subgoals"] = [patterns, others] if "Locked" in id_ or "Unlock" in id_ else [patterns]
        task = Task(name, id_, "test", 30, args)
        played = []
        for episode in range(episodes):
            rng = random.Random(f"{name}/{id_}/{episode}")
            env.reset(task)
            expert = spec.expert(env, task)
            commands = []
            for _ in range(length):
                ours = next(expert, None) if rng.random() < (0.9, 0.5, 0.0)[episode % 3] else None
                known = listed(name, env)
                command = ours[1] if ours else rng.choice(known) if rng.random() < 0.85 else mangled(rng, known)
                commands.append(command)
                if env.step(command).over:
                    break
                if not ours:
                    expert = spec.expert(env, task) if name == "babyai" else expert
            played.append(commands)
        found.append({"id": id_, "args": args, "commands": played})
    with open(out, "w") as file:
        json.dump(found, file)
    print(f"{len(found)} tasks, {sum(len(commands) for task in found for commands in task['commands'])} commands")


def listed(name, env):
    """Commands that can be done now, and those refused with a reason of their own."""
    if name == "pddl":
        text = env.step("check valid actions").observation
        return text.removeprefix("Valid actions are: ").split(", ")
    found = env.commands()
    return sorted([*found.routes, *found.refusals])


def mangled(rng, known):
    command = rng.choice([*known, *ODD])
    return rng.choice(
        [
            rng.choice(ODD),
            command.upper(),
            command + ".",
            f'"{command}"',
            command.replace(" 1", " 2"),
            f"({command.strip()}), please!",
            " ".join(rng.sample(command.split(), len(command.split()))),
            " ".join(command.split()[:-1]),
            "  " + command + " again ",
        ]
    )


def original(name, checkout, args):
    """AgentBoard's environment object for a task."""
    sys.path[:0] = [
        os.path.join(checkout, "agentboard"),
        os.path.join(checkout, "agentboard", "environment", "pddl_env"),
    ]
    package = types.ModuleType("environment")  # its own imports every environment
    package.__path__ = [os.path.join(checkout, "agentboard", "environment")]
    sys.modules.setdefault("environment", package)
    if name == "babyai":
        import minigrid  # noqa: F401
        from environment.babyai_env import BabyAI

        labels = [list(patterns) for patterns in args["subgoals"]]
        labels = labels[0] if len(labels) == 1 else labels
        return BabyAI(game_name=args["level"], seed=args["seed"], obs_to_reward=labels)
    import nltk
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    # nltk.word_tokenize, but that its sentence splitter knows no abbreviations: its trained data is a download.
    sentences, tokens = PunktSentenceTokenizer().tokenize, NLTKWordTokenizer().tokenize
    nltk.download = lambda *_, **__: True
    nltk.word_tokenize = lambda text: [token for sentence in sentences(text) for token in tokens(sentence)]
    from environment.pddl_env import pddl_env
    from pddlgym.core import PDDLEnv

    domain = os.path.join(os.path.dirname(pddl_env.__file__), "pddlgym", "pddl", f"{args['domain']}.pddl")
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "p.pddl"), "w") as file:
            file.write(args["pddl"])
        pddl_env.pddlgym.make = lambda _: PDDLEnv(domain, folder, operators_as_actions=True, dynamic_action_space=True)
        return pddl_env.PDDL(problem_index=0, game_name=args["domain"])


def play(name, plan_file, checkout, out):
    with open(plan_file) as file:
        tasks = json.load(file)
    texts = {}  # every observation once: episodes name them by number

    def numbered(text):
        return texts.setdefault(text, len(texts))

    for task in tasks:
        task["answers"] = []
        for commands in task["commands"]:
            with contextlib.redirect_stdout(io.StringIO()):
                env = original(name, checkout, task["args"])
                task["start"] = [env._get_goal(), env._get_obs()]
                task["answers"].append([])
                for command in commands:
                    observation, reward, over, _ = env.step(command)
                    task["answers"][-1].append([numbered(observation), reward, bool(over)])
                    if over:
                        break
    with open(out, "w") as file:
        parts = [",\n".join(map(json.dumps, rows)) for rows in (texts, tasks)]
        file.write('{"texts": [\n' + parts[0] + '\n],\n"tasks": [\n' + parts[1] + "\n]}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=("plan", "play"))
    parser.add_argument("name", choices=("babyai", "pddl"))
    parser.add_argument("files", nargs="+")
    parser.add_argument("--data", default="")
    parser.add_argument("--episodes", type=int, default=2)
    parser.add_argument("--length", type=int, default=18)
    options = parser.parse_args()
    if options.step == "plan":
        plan(options.name, options.files[0], options.data, options.episodes, options.length)
    else:
        play(options.name, *options.files)
