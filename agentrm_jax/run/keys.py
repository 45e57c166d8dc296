"""Every key of a config: what it means, what it may be, and whether a run that has begun may go on with another value.

Checks, `--help` and docs/config.md are made from this table.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

import ml_collections

from agentrm_jax.evaluation import selection
from agentrm_jax.run.ranges import Choice, Date, Flag, Free, Names, Number, Range, Sizes, Text
from agentrm_jax.search.aggregate import Aggregator
from agentrm_jax.search.guided_mcts import Backup
from agentrm_jax.search.particle import Resampling


@dataclasses.dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
      name: as after `--config.`; `*` at its end stands for all keys below.
      range: the values it may have.
      meaning: half a sentence.
      unit: of a number, where it has one.
      of: roles of the configs that have it (`roles`); a key of one name may mean one thing here and another there.
      identity: it is what the config file is, and is not set on the command line.
      steady: changing it cannot change results (beyond rounding), so a run that has begun may go on with another value.
      raised: it may be raised in a run that has begun, and this is what that does; empty if it may not.
      before: what runs did that were made before the key existed; None if it is as old as the program.
    """

    name: str
    range: Range
    meaning: str
    unit: str = ""
    of: tuple[str, ...] = ()
    identity: bool = False
    steady: bool = False
    raised: str = ""
    before: Any = None

    def stands_for(self, name: str, roles: set[str]) -> bool:
        """Whether this is the row of the key `name` in a config of these roles."""
        if not roles & set(self.of):
            return False
        return name.startswith(self.name[:-1]) if self.name.endswith("*") else name == self.name


TRAIN, SEARCH = ("train",), ("search",)
BOTH = TRAIN + SEARCH
POLICY, EXPLICIT, IMPLICIT = ("policy",), ("explicit",), ("implicit",)
REWARDS = EXPLICIT + IMPLICIT
TASKS = POLICY + SEARCH  # what chooses tasks
RERANKING = (
    "best_of_n",
    "beam",
    "lookahead",
    "adaptive",
    "dvts",
    "sharing_beam",
    "particle",
    "guided_mcts",
    "refine",
)  # with a reward model
SAMPLING = (*RERANKING, "mcts", "sample")
TREES = ("mcts", "guided_mcts")
MODELS = "a workdir, a Hugging Face folder, a .gguf file, or smollm2"
POLICIES = f"{MODELS}; openai:MODEL@URL; or MODULE:FUNCTION"
REWARD_MODELS = f"{MODELS}; implicit:TUNED@BASE; judge:PLACE of a policy; or MODULE:FUNCTION"
DTYPES = Choice(("float32", "bfloat16"))
OUTCOMES = Choice(("reward", "progress", "success"))
IMPLICIT_LOSSES = ("implicit_regression", "implicit_cross_entropy", "implicit_brier")
LINEAR_MAPS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
COUNT, SOME = Number(1, whole=True), Number(0, whole=True)  # at least one; none or some
SEED = Number(0, 2**31 - 1, whole=True)
POSITIVE, NOT_NEGATIVE = Number(0, above=True), Number(0)
AXIS = Number(1, whole=True, also=(-1,))
AXIS_WORDS = "-1: all devices that are left"

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
    "Training: data": (
        Key("init", Text(MODELS, optional=True), "the model that training starts from; empty: from nothing", of=POLICY),
        Key("init", Text(MODELS), "the model that training starts from", of=EXPLICIT),
        Key("init", Text(MODELS), "the policy that training starts from, and is compared with", of=IMPLICIT),
        Key("experts", Text("a folder"), "where expert episodes are kept; made if they are missing", of=POLICY),
        Key("context_weight", Number(0, 1), "weight of prompt and observation tokens; actions weigh 1", of=POLICY),
        Key("trees", Text("a workdir"), "the exploration whose step values are learned", of=EXPLICIT),
        Key(
            "samples",
            Text("a workdir or a file of trajectories", optional=True),
            "the sampled trajectories whose outcomes are learned; empty: none",
            of=IMPLICIT,
        ),
        Key(
            "trees",
            Text("a workdir", optional=True),
            "the exploration whose leaves' outcomes are learned; empty: none",
            of=IMPLICIT,
        ),
        Key("min_visits", COUNT, "returns that a state's value must rest on (λ)", of=EXPLICIT),
        Key("min_visits", COUNT, "returns that a held-out state's value must rest on", of=IMPLICIT),
        Key(
            "target",
            Choice(("mean", "max", "soft", "hard", "distance")),
            "the value of a state: mean or max of the returns below, soft (mean of its own rollouts), hard (1 if one below succeeded), "
            "distance (ReST's, by steps to a success)",
            of=EXPLICIT,
        ),
        Key("outcome", OUTCOMES, "what counts as the return of an episode", of=REWARDS),
        Key(
            "state",
            Choice(("default", "last_observation", "no_observations", "no_thoughts", "actions")),
            "what the model reads of a state; default: all but the last observation",
            of=EXPLICIT,
            before="default",
        ),
        Key(
            "weight_visits",
            NOT_NEGATIVE,
            "κ: a state of N returns weighs N / (N + κ), one that ended an episode 1; 0: all weigh the same",
            of=EXPLICIT,
            before=0.0,
        ),
        Key(
            "balance_values",
            Flag(),
            "each tenth of [0, 1] in which targets lie weighs the same",
            of=EXPLICIT,
            before=False,
        ),
        Key(
            "balance_tasks", Flag(), "each task weighs the same, however many states it has", of=EXPLICIT, before=False
        ),
    ),
    "Training: optimisation": (
        Key("loss", Choice(("imitation",)), "the loss", of=POLICY),
        Key(
            "loss",
            Choice(("regression", "cross_entropy", "pairwise", "listwise", "promise", "temporal_difference")),
            "the loss",
            of=EXPLICIT,
        ),
        Key("loss", Choice(IMPLICIT_LOSSES), "the loss on the log-ratio of a trajectory", of=IMPLICIT),
        Key("beta", POSITIVE, "what log-ratios (nats) are multiplied by to be rewards (β)", of=IMPLICIT),
        Key(
            "center",
            NOT_NEGATIVE,
            "pairwise: weight of the squared sum of a pair's scores, which keeps them around 0",
            of=EXPLICIT,
            before=0.0,
        ),
        Key(
            "advantage_weight",
            NOT_NEGATIVE,
            "promise, temporal_difference: weight of the error in a step's advantage (β)",
            of=EXPLICIT,
            before=1.0,
        ),
        Key(
            "td_lambda",
            Number(0, 1),
            "temporal_difference: 1 learns from outcomes alone, 0 from the next state's value alone",
            of=EXPLICIT,
            before=0.95,
        ),
        Key("heads", COUNT, "value heads, each trained on a bootstrap sample of the tasks", of=EXPLICIT, before=1),
        Key(
            "heldout",
            Number(0, 1, below=True),
            "share of the tasks whose trees are measured on, not trained on",
            of=REWARDS,
        ),
        Key("eval_steps", COUNT, "steps between measurements on held-out trees", of=REWARDS, steady=True),
        Key(
            "eval_metric",
            Choice((selection.NONE, *selection.METRICS)),
            "metric of held-out trees by which the best checkpoint is kept; none: the last one is the model",
            of=REWARDS,
            before=selection.NONE,
        ),
        Key(
            "patience",
            SOME,
            "measurements without a better one after which training stops; 0: never",
            of=REWARDS,
            raised="training goes on until so many measurements in a row are no better",
            before=0,
        ),
        Key(
            "total_steps",
            COUNT,
            "updates",
            unit="steps",
            of=TRAIN,
            raised="training goes on, and from here on the learning rate is that of a run of so many steps",
        ),
        Key("learning_rate", POSITIVE, "highest learning rate of the schedule", of=TRAIN),
        Key(
            "head_learning_rate",
            POSITIVE,
            "the value head's rate, as a multiple of learning_rate",
            of=EXPLICIT,
            before=1.0,
        ),
        Key(
            "freeze",
            Choice(("nothing", "trunk")),
            "trunk: the value head alone is trained",
            of=EXPLICIT,
            before="nothing",
        ),
        Key("warmup", Number(0, 1, below=True), "part of all steps in which the rate rises from 0", of=TRAIN),
        Key("weight_decay", NOT_NEGATIVE, "decay of matrices, as in AdamW", of=TRAIN),
        Key("clip", POSITIVE, "longest gradient (global norm); a longer one is shortened to it", of=TRAIN),
        Key("batch_rows", COUNT, "rows of an update, over all devices", unit="rows", of=TRAIN),
        Key("row_length", Number(2, whole=True), "length of a row", unit="tokens", of=TRAIN),
        Key(
            "accumulate",
            COUNT,
            "parts that the rows of an update are read in, one after another: less memory, the same update",
            of=TRAIN,
            steady=True,
            before=1,
        ),
        Key(
            "seeds",
            COUNT,
            "runs with the seeds seed, seed + 1, ..., each in a folder of the workdir, and a summary of them",
            of=TRAIN,
            raised="more seeds are trained",
            before=1,
        ),
        Key("lora.rank", SOME, "rank of low-rank adapters; 0: every parameter is trained", of=TRAIN),
        Key("lora.alpha", POSITIVE, "adapters count alpha / rank times", of=TRAIN),
        Key("lora.targets", Names((*LINEAR_MAPS, "all-linear")), "linear maps that get an adapter", of=TRAIN),
    ),
    "Training: devices and log": (
        Key("dtype", DTYPES, "type that is computed in", of=TRAIN),
        Key("scan", Flag(), "one program for all layers: compiles fast, runs slower on CPUs", of=TRAIN, steady=True),
        Key("remat", Flag(), "activations are computed again instead of kept: less memory", of=TRAIN, steady=True),
        Key("cpu_devices", COUNT, "devices that a CPU is shown as", of=TRAIN, steady=True),
        Key("mesh.data", AXIS, f"ways that rows are split; {AXIS_WORDS}", of=TRAIN),
        Key("mesh.fsdp", AXIS, f"ways that rows and weights are split; {AXIS_WORDS}", of=TRAIN),
        Key("mesh.tensor", AXIS, f"ways that heads are split; {AXIS_WORDS}", of=TRAIN),
        Key("log_steps", COUNT, "steps between two rows of metrics.jsonl", unit="steps", of=TRAIN, steady=True),
        Key("checkpoint_steps", COUNT, "steps between two checkpoints", unit="steps", of=TRAIN, steady=True),
    ),
    "Model of a policy that starts from nothing": (
        Key("model.vocab_size", Number(259, whole=True), "most tokens of the tokenizer that is trained", of=POLICY),
        Key("token_span", Choice(("phrases", "words")), "what a token of that tokenizer may span", of=POLICY),
        Key("model.num_layers", COUNT, "layers", of=POLICY),
        Key("model.d_model", COUNT, "width", of=POLICY),
        Key("model.num_heads", COUNT, "query heads", of=POLICY),
        Key("model.num_kv_heads", COUNT, "key and value heads; divides the query heads", of=POLICY),
        Key("model.head_dim", Number(2, whole=True), "width of a head; even", of=POLICY),
        Key("model.d_ff", COUNT, "width of the feed-forward part", of=POLICY),
        Key("model.max_length", Number(2, whole=True), "longest path it is used with", unit="tokens", of=POLICY),
    ),
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
        ),
        Key("examples", SOME, "worked examples in the policy's prompt", of=SEARCH),
        Key("concurrency", COUNT, "tasks in flight", unit="tasks", of=SEARCH, steady=True),
        Key("log_seconds", NOT_NEGATIVE, "time between two lines of progress", unit="seconds", of=SEARCH, steady=True),
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
