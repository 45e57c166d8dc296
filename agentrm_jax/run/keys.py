"""Every key of a config: what it means, what it may be, and whether a run that has begun may go on with another value.

Checks, `--help` and docs/config.md are made from this table.
"""

from collections.abc import Mapping
from typing import Any, get_args

import ml_collections

from agentrm_jax.run.key import (
    BOTH,
    MODELS,
    OUTCOMES,
    POLICIES,
    RERANKING,
    REWARD_MODELS,
    SAMPLING,
    SEARCH,
    TASKS,
    TREES,
    Key,
)
from agentrm_jax.run.ranges import (
    COUNT,
    DTYPES,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SOME,
    Choice,
    Date,
    Flag,
    Free,
    Names,
    Number,
    Sizes,
    Text,
)
from agentrm_jax.run.training_keys import TRAINING
from agentrm_jax.search.aggregate import Aggregator
from agentrm_jax.search.guided_mcts import Backup
from agentrm_jax.search.particle import Resampling

# Title of a section of docs/config.md -> its keys.
SECTIONS: Mapping[str, tuple[Key, ...]] = {
    "All runs": (
        Key("size", Text("a size"), "the size, from --config=FILE:SIZE", of=BOTH, identity=True),
        Key("seed", SEED, "names everything that is drawn at random", of=BOTH),
        Key(
            "chat_template",
            Text("chatml, keep, or a file that holds a template", optional=True),
            "chat template instead of the tokenizer's own",
            of=BOTH,
        ),
        Key(
            "date",
            Date(optional=True),
            "what a chat template that reads the clock is told; empty: the day the run began",
            of=BOTH,
        ),
    ),
    **TRAINING,
    "Tasks and environments": (
        Key("env.names", Names(), "environments: shipped ones by name, your own by import path", of=TASKS),
        Key("env.split", Choice(("train", "dev", "test")), "the split", of=TASKS),
        Key("env.start", SOME, "first task, in an order shuffled once and for all", of=TASKS),
        Key("env.count", COUNT, "tasks of each environment", unit="tasks", of=TASKS),
        Key("env.data", Text("a folder", optional=True), "official data files; empty: generated tasks", of=TASKS),
        Key(
            "env.prompts",
            Text("a folder, or none", optional=True),
            "AgentRM's eval_agent/prompt, for its wording; none: goal and observation only",
            of=TASKS,
        ),
        Key("env.workers", COUNT, "processes that environments run in", of=TASKS, steady=True),
        Key("env.step_timeout", POSITIVE, "time a step may take", unit="seconds", of=TASKS, steady=True),
        Key("env.options.*", Free(), "options of an environment, under its name", of=TASKS),
    ),
    "Search": (
        Key(
            "method",
            Choice(("greedy", *SAMPLING)),
            "the search method",
            of=SEARCH,
            identity=True,
        ),
        Key("policy", Text(POLICIES), "the policy", of=SEARCH),
        Key("reward_model", Text(REWARD_MODELS), "the reward model", of=RERANKING),
        Key(
            "pessimism",
            NOT_NEGATIVE,
            "k: the score of an ensemble (value heads, or several reward models) is its mean less k standard deviations",
            of=RERANKING,
            before=0.0,
        ),
        Key(
            "step_reward",
            Choice(("accumulated", "single")),
            "score of an implicit reward model: the sum over the path, or its last step's reward; others have one kind",
            of=RERANKING,
        ),
        Key("reward_model", Text(MODELS, optional=True), "not used", of=("greedy", "mcts", "sample")),
        Key(
            "greedy", Text("a workdir"), "greedy run whose row is reported too, if it is there", of=SEARCH, steady=True
        ),
        Key(
            "samples",
            Text("a workdir", optional=True),
            "finished run whose samples are ranked; empty: samples are drawn",
            of=("best_of_n",),
            before="",
        ),
        Key("examples", SOME, "worked examples in the policy's prompt", of=SEARCH),
        Key("concurrency", COUNT, "tasks in flight", unit="tasks", of=SEARCH, steady=True),
        Key("log_seconds", NOT_NEGATIVE, "time between two lines of progress", unit="seconds", of=SEARCH, steady=True),
        Key(
            "ray",
            Text("auto, or HOST:PORT of the head of a Ray cluster", optional=True),
            "the cluster that tasks are searched on; empty: this process searches",
            of=SEARCH,
            steady=True,
            before="",
        ),
        Key(
            "engines",
            SOME,
            "engines on that cluster, each with `concurrency` tasks and `env.workers` of its own; 0: one for `engine.tensor` "
            "accelerators, or one a node where there are none",
            of=SEARCH,
            steady=True,
            before=0,
        ),
        Key("search.n", COUNT, "trajectories drawn for a task", of=("best_of_n", "sample")),
        Key("search.n", COUNT, "trajectories drawn for a task at most", of=("adaptive",)),
        Key("search.wave", COUNT, "trajectories drawn at once", of=("adaptive",)),
        Key(
            "search.threshold",
            Number(),
            "no more are drawn once the best score is at least this",
            of=("adaptive",),
        ),
        Key(
            "search.patience",
            SOME,
            "waves in a row without a better one, after which no more are drawn; 0: never",
            of=("adaptive",),
        ),
        Key("search.attempts", COUNT, "trajectories made one after another", of=("refine",)),
        Key("search.width", COUNT, "trajectories kept (W1)", of=("beam", "sharing_beam")),
        Key("search.trees", COUNT, "subtrees, which do not compete", of=("dvts",)),
        Key("search.width", COUNT, "trajectories kept in each of them", of=("dvts",)),
        Key("search.branch", COUNT, "turns drawn after each of them (W2)", of=("beam", "dvts", "sharing_beam")),
        Key(
            "search.unique_weight",
            NOT_NEGATIVE,
            "score that text which is not shared costs, if it is all text",
            of=("sharing_beam",),
        ),
        Key("search.samples", COUNT, "turns drawn at every step", of=("lookahead",)),
        Key("search.depth", SOME, "greedy steps before a turn is scored", of=("lookahead",)),
        Key("search.particles", COUNT, "trajectories that step together", of=("particle",)),
        Key(
            "search.weight_temperature",
            NOT_NEGATIVE,
            "what scores are divided by before they are weights of a softmax; 0: the best has all weight",
            of=("particle",),
        ),
        Key("search.resampling", Choice(get_args(Resampling)), "how places are given by weight", of=("particle",)),
        Key("search.iterations", COUNT, "expansions of a tree (ω)", of=("mcts",)),
        Key("search.iterations", COUNT, "expansions of the tree before every turn", of=("guided_mcts",)),
        Key("search.k", COUNT, "turns drawn in an expansion", of=TREES),
        Key("search.c", NOT_NEGATIVE, "weight of exploration", of=TREES),
        Key("search.n", COUNT, "simulations from a new state", of=TREES),
        Key("search.depth", SOME, "turns of a simulation before it is scored; 0: none", of=("guided_mcts",)),
        Key("search.rollout_temperature", NOT_NEGATIVE, "temperature of simulations; 0: greedy", of=TREES),
        Key(
            "search.backup",
            Choice(get_args(Backup)),
            "value of a state: mean or best of the scores below",
            of=("guided_mcts",),
        ),
        Key("search.outcome", OUTCOMES, "what counts as the return of an episode", of=("mcts",)),
        Key("search.temperature", NOT_NEGATIVE, "temperature at which turns are drawn", of=SAMPLING),
        Key(
            "search.aggregate",
            Choice(get_args(Aggregator)),
            "from the scores of steps to the score of a trajectory",
            of=("best_of_n", "beam", "adaptive", "dvts", "sharing_beam", "particle", "refine"),
        ),
        Key("search.all_steps", Flag(), "every step is scored, for the report", of=("best_of_n",)),
    ),
    "Judge (reward_model=judge:PLACE)": (
        Key(
            "judge.compare",
            Choice(("trajectories", "steps")),
            "what is compared: all trajectories of a task, or turns after one history",
            of=RERANKING,
        ),
        Key(
            "judge.orders",
            COUNT,
            "orders in which the candidates are shown, at most as many as there are",
            of=RERANKING,
        ),
    ),
    "Server (openai:MODEL@URL)": (
        Key("server.key_variable", Text("a name"), "environment variable that holds the key", of=SEARCH, steady=True),
        Key(
            "server.tokenizer",
            Text("a workdir, a folder with tokenizer files, a .gguf file, or smollm2", optional=True),
            "renders conversations here, which then go as token ids to /completions; empty: messages to /chat/completions",
            of=SEARCH,
        ),
        Key(
            "server.context",
            SOME,
            "tokens that the model reads, where the server does not say; 0: as it says",
            unit="tokens",
            of=SEARCH,
        ),
        Key("server.timeout", POSITIVE, "time that one try may take", unit="seconds", of=SEARCH, steady=True),
        Key("server.retries", SOME, "further tries of a request", of=SEARCH, steady=True),
        Key("server.concurrency", COUNT, "requests in flight", unit="requests", of=SEARCH, steady=True),
    ),
    "Engine": (
        Key("engine.cache_tokens", COUNT, "size of the key/value cache", unit="tokens", of=SEARCH, steady=True),
        Key("engine.rows", Sizes(), "histories of a decoding batch", unit="rows", of=SEARCH, steady=True),
        Key("engine.batch_tokens", Sizes(), "new tokens of a prefill batch", unit="tokens", of=SEARCH, steady=True),
        Key("engine.new_tokens", Sizes(), "new tokens of one history in it", unit="tokens", of=SEARCH, steady=True),
        Key(
            "engine.context",
            Sizes(),
            "cached tokens of a row; the last one bounds a history",
            unit="tokens",
            of=SEARCH,
            raised="longer histories are read whole from here on; finished tasks stay as they are",
        ),
        Key("engine.samples", COUNT, "samples of one history drawn together", of=SEARCH, steady=True),
        Key("engine.max_new", COUNT, "longest reply", unit="tokens", of=SEARCH),
        Key(
            "engine.draft",
            SOME,
            "tokens that a step of a sample proposes by prompt lookup and verifies, where that is faster; 0: none",
            of=SEARCH,
            steady=True,
        ),
        Key("engine.tensor", COUNT, "devices that share each model", of=SEARCH, steady=True),
        Key("engine.dtype", DTYPES, "type that is computed in", of=SEARCH),
        Key(
            "engine.weights",
            Choice(("bfloat16", "int8"), optional=True),
            "type of the policy's matrices, for less memory and, by processor, speed; empty: `dtype`. Reward models keep `dtype`",
            of=SEARCH,
        ),
    ),
}


def roles(config: Mapping[str, Any] | ml_collections.ConfigDict) -> set[str]:
    """The roles of a config: `search` and its method, or `train` and what is trained, by the data it names; empty if it names neither."""
    if "method" in config:
        return {"search", str(config["method"])}
    trained = {"experts": "policy", "samples": "implicit", "trees": "explicit"}  # by the first of these that there is
    return next(({"train", of} for name, of in trained.items() if name in config), set())


def rows(of: set[str]) -> list[Key]:
    """The keys of a config of these roles."""
    return [key for section in SECTIONS.values() for key in section if of & set(key.of)]


def find(name: str, of: set[str]) -> Key | None:
    """The row of a key in a config of these roles; None if the table does not know it."""
    return next((key for key in rows(of) if key.stands_for(name, of)), None)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value, of a config or of a JSON object."""
    flat: dict[str, Any] = {}
    for name in config:
        value = config[name]
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
