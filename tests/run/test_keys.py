"""The table of keys: it knows every key, refuses what means nothing, and is what the docs and --help say."""

import math
import subprocess
import sys
import time
from pathlib import Path

import ml_collections
import pytest

from agentrm_jax.data import targets
from agentrm_jax.models.lora import TARGETS
from agentrm_jax.run import checks, flags, keys, ranges, reference, stages
from agentrm_jax.run.key import LINEAR_MAPS, OUTCOMES
from agentrm_jax.search.methods import METHODS
from agentrm_jax.types import UserError

ROOT = Path(__file__).parents[2]
SIZES = ("nano", "smollm2", "qwen3_4b", "llama3_8b", "llama3_70b")


def parse(name: str, *overrides: str):
    return flags.parse([f"--config={ROOT}/configs/{name}.py", *(f"--config.{o}" for o in overrides)])[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", stages.STAGES)
def test_every_key_of_every_config_is_in_the_table_and_its_value_in_range(name, size):
    config = flags.load_module(ROOT / "configs" / f"{name}.py").get_config(size)
    roles = keys.roles(config)
    unknown = [key for key in keys.flatten(config) if keys.find(key, roles) is None]
    assert unknown == []
    checks.check(config)


def test_a_config_that_is_for_nothing_is_refused():
    with pytest.raises(UserError, match=r"names no method \(for search\.py\), and neither experts nor trees"):
        checks.check(ml_collections.ConfigDict({"size": "nano", "seed": 0}))
    other = parse("greedy")
    with other.unlocked():
        other.method = "magic"
    with pytest.raises(UserError, match=r"--config\.method=magic: must be greedy, best_of_n, "):
        checks.check(other)


def test_every_row_of_the_table_belongs_to_a_config():
    configs = [values for _, values in reference.configs().values()]
    for key in (key for section in keys.SECTIONS.values() for key in section):
        assert any(key.stands_for(name, keys.roles(values)) for values in configs for name in values), key.name


def test_choices_are_those_of_the_rooms_that_read_them():
    assert set(OUTCOMES.options) == set(targets.OUTCOMES)
    assert set(LINEAR_MAPS) == set(TARGETS)
    method = keys.find("method", {"search"})
    assert method is not None
    assert set(method.range.options) == set(METHODS)


# Every value here means nothing; what is wrong with it is said with its key.
ODD = [
    *(("sft", f"{key}={value}") for key in ("total_steps", "log_steps", "checkpoint_steps") for value in (0, -1)),
    *(("sft", f"batch_rows={value}") for value in (0, -8)),
    *(("sft", f"row_length={value}") for value in (0, 1, -5)),
    *(("sft", f"learning_rate={value}") for value in (0, -1e-3, "nan", "inf")),
    *(("sft", f"warmup={value}") for value in (-0.1, 1, 2, "nan")),
    *(("sft", f"clip={value}") for value in (0, -1, "inf", "nan")),
    *(("sft", f"weight_decay={value}") for value in (-0.1, "inf")),
    *(("sft", f"context_weight={value}") for value in (-1, 2, "nan")),
    *(("sft", f"seed={value}") for value in (-1, 2**31)),
    ("sft", "dtype=float17"),
    ("sft", "dtype=int8"),
    ("sft", "loss=regression"),
    ("sft", "loss="),
    ("sft", "cpu_devices=0"),
    ("sft", "experts="),
    ("sft", "lora.rank=-1"),
    ("sft", "lora.alpha=0"),
    ("sft", "lora.targets=q_proj,qproj"),
    ("sft", "lora.targets=q_proj,q_proj"),
    ("sft", "lora.targets="),
    ("sft", "mesh.data=0"),
    ("sft", "mesh.tensor=-2"),
    ("sft", "mesh.fsdp=-1"),  # beside mesh.data=-1
    *(
        ("sft", f"model.{key}=0")
        for key in ("num_layers", "d_model", "num_heads", "num_kv_heads", "d_ff", "max_length")
    ),
    ("sft", "model.vocab_size=10"),
    ("sft", "model.head_dim=7"),
    ("sft", "model.num_kv_heads=3"),
    ("explicit", "init="),
    ("explicit", "trees="),
    ("explicit", "min_visits=0"),
    ("explicit", "target=median"),
    ("explicit", "outcome=score"),
    ("explicit", "loss=imitation"),
    ("greedy", "policy="),
    ("greedy", "concurrency=0"),
    ("greedy", "examples=-1"),
    ("greedy", "log_seconds=-1"),
    ("greedy", "log_seconds=nan"),
    ("greedy", "env.names="),
    ("greedy", "env.names=maze,maze"),
    ("sft", "chat_template=my.jinja"),  # used to be left out without a word
    ("greedy", "env.split=tset"),
    ("greedy", "env.start=-1"),
    ("greedy", "env.count=0"),
    ("greedy", "env.workers=0"),
    ("greedy", "env.step_timeout=0"),
    ("greedy", "env.step_timeout=inf"),
    ("greedy", "env.options.maze.weight=1e999"),
    ("greedy", "engine.rows=0,"),  # used to hang
    ("greedy", "engine.rows="),
    ("greedy", "engine.rows=4,2"),
    ("greedy", "engine.rows=4,4"),
    ("greedy", "engine.context=-1,"),
    ("greedy", "engine.context=896,256"),
    ("greedy", "engine.batch_tokens=0,512"),
    ("greedy", "engine.new_tokens=64,4096"),  # more than a batch
    ("greedy", "engine.max_new=0"),
    ("greedy", "engine.max_new=1024"),  # no room for a history
    ("greedy", "engine.cache_tokens=0"),
    ("greedy", "engine.cache_tokens=100"),  # no room for one history
    ("greedy", "engine.samples=0"),
    ("greedy", "engine.tensor=0"),
    ("greedy", "engine.dtype=float17"),
    ("best_of_n", "reward_model="),
    ("best_of_n", "search.n=0"),
    ("best_of_n", "search.temperature=-1"),
    ("best_of_n", "search.aggregate=lsat"),
    ("beam", "search.width=0"),
    ("beam", "search.branch=-2"),
    ("beam", "search.temperature=nan"),
    ("lookahead", "search.samples=0"),
    ("lookahead", "search.depth=-1"),
    *(("adaptive", f"search.{key}=0") for key in ("n", "wave")),
    ("adaptive", "search.threshold=nan"),
    ("adaptive", "search.patience=-1"),
    *(("dvts", f"search.{key}=0") for key in ("trees", "width", "branch")),
    ("sharing_beam", "search.unique_weight=-1"),
    ("particle", "search.particles=0"),
    ("particle", "search.weight_temperature=-1"),
    ("particle", "search.weight_temperature=inf"),
    ("particle", "search.resampling=residual"),
    ("guided_mcts", "search.iterations=0"),
    ("guided_mcts", "search.depth=-1"),
    ("guided_mcts", "search.backup=median"),
    ("guided_mcts", "search.n=2"),  # of a greedy policy
    ("mcts", "search.iterations=0"),
    ("mcts", "search.k=0"),
    ("mcts", "search.c=-1"),
    ("mcts", "search.n=2"),  # of a greedy policy
    ("mcts", "search.rollout_temperature=-1"),
    ("mcts", "search.outcome=foo"),
]


@pytest.mark.parametrize(("name", "override"), ODD, ids=[f"{name}:{override}" for name, override in ODD])
def test_a_value_that_means_nothing_is_one_line_at_once(name, override):
    config = parse(name, override)
    begin = time.monotonic()
    with pytest.raises(UserError) as caught:
        checks.check(config)
    assert time.monotonic() - begin < 1
    line = str(caught.value)
    key = override.partition("=")[0]
    assert f"--config.{key}" in line or ("--config.mesh: only one of" in line and key == "mesh.fsdp")
    assert "must be" in line or len(line.partition(": ")[2]) > 20
    assert "\n" not in line


@pytest.mark.parametrize(
    ("name", "override"),
    [
        ("sft", "warmup=0"),
        ("sft", "weight_decay=0"),
        ("sft", "lora.targets=q_proj,v_proj"),
        ("best_of_n", "search.temperature=0"),
        ("mcts", "search.c=0"),
        ("greedy", "log_seconds=0"),
        ("greedy", "engine.rows=1,"),
        ("lookahead", "search.depth=3"),
        ("adaptive", "search.threshold=-1"),  # scores may be anything
        ("particle", "search.weight_temperature=0"),
        ("guided_mcts", "search.depth=3"),
    ],
)
def test_ends_of_a_range_that_mean_something_are_taken(name, override):
    checks.check(parse(name, override))


def test_simulations_may_be_several_where_they_are_drawn():
    checks.check(parse("mcts", "search.n=2", "search.rollout_temperature=0.5"))
    checks.check(parse("guided_mcts", "search.n=2", "search.rollout_temperature=0.5", "search.depth=1"))
    with pytest.raises(
        UserError, match=r"--config\.search\.n=2: simulations that take no turn .* search\.depth above 0"
    ):
        checks.check(parse("guided_mcts", "search.n=2", "search.rollout_temperature=0.5"))


JUDGE = "reward_model=judge:smollm2"


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("adaptive", (JUDGE,), "a judge compares candidates, and adaptive scores them one after the other"),
        ("refine", (JUDGE,), "a judge compares candidates, and refine scores them one after the other"),
        ("guided_mcts", (JUDGE,), "a judge compares candidates, and guided_mcts"),
        ("best_of_n", (JUDGE,), r"set --config\.search\.all_steps=false"),
        ("judge", ("search.aggregate=mean",), r"--config\.search\.aggregate=last"),
        ("judge", ("judge.compare=steps",), r"set --config\.judge\.compare=trajectories"),
        ("lookahead", (JUDGE, "search.depth=2"), r"set --config\.judge\.compare=trajectories"),
    ],
)
def test_a_judge_is_refused_where_it_would_compare_nothing(name, overrides, said):
    with pytest.raises(UserError, match=said):
        checks.check(parse(name, *overrides))


@pytest.mark.parametrize("name", ["judge", "beam", "dvts", "lookahead", "particle", "sharing_beam"])
def test_a_judge_is_taken_where_candidates_are_scored_together(name):
    checks.check(parse(name, JUDGE))


@pytest.mark.parametrize(
    ("overrides", "env", "said"),
    [
        (("ray=everywhere",), {}, r"--config\.ray=everywhere: must be auto, or HOST:PORT"),
        (("ray=ray://head:10001",), {}, r"must be auto, or HOST:PORT"),
        (("ray=auto", "samples=runs/x"), {}, r"are ranked in one process; leave ray empty"),
        (("ray=head:6379",), {}, r"pip install 'agentrm-jax\[ray\]'"),
        (("ray=[fd00::1]:6379",), {"JAX_COORDINATOR_ADDRESS": "auto"}, r"this is one of several .*; start it alone"),
    ],
)
def test_a_cluster_is_refused_where_it_makes_no_sense(overrides, env, said, monkeypatch):
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: sys if env else None)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        checks.check(parse("best_of_n", *overrides))


def test_a_config_of_ones_own_is_checked_too():
    config = parse("sft")
    with config.unlocked(), config.ignore_type():
        config.clip = "much"
    with pytest.raises(UserError, match=r"--config\.clip=much: must be a number above 0"):
        checks.check(config)
    with config.unlocked():
        del config.clip
    with pytest.raises(UserError, match=r"the config lacks clip \(longest gradient"):
        checks.check(config)


def test_numbers_of_a_range_in_words():
    assert ranges.COUNT.words() == "a whole number at least 1"
    assert ranges.AXIS.words() == "a whole number at least 1 or -1"
    assert ranges.POSITIVE.words() == "a number above 0"
    assert not ranges.POSITIVE.allows(math.inf)
    assert not ranges.COUNT.allows(True)
    assert not ranges.COUNT.allows(1.0)


def test_the_page_of_keys_is_current():
    assert (ROOT / "docs/config.md").read_text() == reference.page(), (
        "write it anew: python -m agentrm_jax.run.reference docs/config.md"
    )


@pytest.mark.parametrize(("main", "has", "lacks"), [("train.py", "sft", "beam"), ("search.py", "beam", "sft")])
def test_help_lists_the_configs_and_keys_of_its_own_main(main, has, lacks, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / main, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python {main} --config=configs/NAME.py[:SIZE] ")
    assert f"configs/{has}.py" in done.stdout
    assert f"configs/{lacks}.py" not in done.stdout
    own, other = ("--config.clip=1.0", "--config.concurrency=64")[:: 1 if main == "train.py" else -1]
    assert own in done.stdout
    assert other not in done.stdout
