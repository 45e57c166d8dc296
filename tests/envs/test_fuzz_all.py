"""Whatever a policy writes, every environment answers with an observation: text that is clean and bounded, numbers in [0, 1].

Each environment plays in a worker process without second tries, so that an exception, a crash and a hang all fail the test.
AGENTRM_FUZZ_EXAMPLES=2000 looks further than the usual 60 lists of turns.
"""

import asyncio
import json
import math
import os
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentrm_jax.envs.agentgym.kinds import KINDS, sent
from agentrm_jax.envs.catalogue import find, names
from agentrm_jax.envs.pool.episode import COMMAND_LIMIT, OBSERVATION_LIMIT
from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.envs.tool import operation, query
from agentrm_jax.replies import parse_action
from agentrm_jax.testing.demonstrated import LIGHT
from agentrm_jax.text import clean
from agentrm_jax.types import Action, UserError

ENVIRONMENTS = [name for name in names() if find(name).expert is not None]
USUAL = int(os.environ.get("AGENTRM_FUZZ_EXAMPLES", "60"))
EXAMPLES = {"sciworld": USUAL // 10}  # an episode starts in a second there

# Text that is no text, no number and no structure, in the lengths that hurt.
HOSTILE = (
    "",
    "\x00",
    "look\x00around",
    "\ud83d",
    "\udfff" * 50,
    "\x1b[2J\x1b[31m",
    "\x85\x1c\u2028\u2029",
    "\r\n\r\n",
    "\ufeff\u200b\u202e",
    "NaN",
    "-Infinity",
    "1e999",
    "9" * 5_000,
    "-1",
    "[" * 2_000,
    "{" * 2_000,
    "(" * 2_000,
    "{" + '"a":{' * 500,
    "x" * 100_000,
    "é" * 500,
    "我去厨房",
    "\U0001f600" * 100,
    "{0} {} %s %(x)d {__class__}",
    "<|im_end|>\n<|im_start|>user\n",
    "../../etc/passwd",
    "(a+)+$",
    "a, b. quit. save",
    "look. restore. script. undo",
    "```",
    "'\"\\",
)
ANY = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(codec=None), max_size=80))
# What arguments of tools may be, so that calls get past the first checks.
PLAUSIBLE = [
    *("A1", "B2", "C3", "A99999", "ZZZ5", "SUM", "PRODUCT", "MINUS", "row", "col", "rows", "columns", "asc", "des"),
    *(
        "Oslo",
        "2023-01-01",
        "9999-12-31",
        "0001-01-01",
        "(a+)+$",
        ".*a.*b",
        "a*" * 30,
        "1e99",
        "1e999",
        "NaN",
        "inf",
    ),
    *(1, 2, 3, 0, -1, 1e99, 10**400, 59.91, 10.75, math.nan, math.inf, True),
    *([], {}, [1, 2], ["A1", "B2"], [[]], [["a", 1], ["b"]], [["a" * 200, 1e99, math.inf]]),
]
_TOOLS = {
    "tool_operation": [tool for tools in operation.TOOLS.values() for tool in tools.values()],
    "tool_query": [tool for tools in query.TOOLS.values() for tool in tools.values()],
}
_FORMS = {
    "webshop": ["search[{}]", "click[{}]", "search[{}"],
    "babyai": ["go to {} 1", "pickup {}", "toggle and go through {} 2"],
}


def known_commands(name):
    """Commands of the worked example, which the environment understands."""
    turns = [message.content for message in find(name).example if message.role == "assistant"]
    return [c for turn in turns if (c := parse_action(turn, multiline=find(name).multiline).command)] or ["look"]


def calls(name, seed, count):
    """Calls of tools with arguments of the right names and all sorts of values, in JSON or in Python's spelling."""
    rng = random.Random(seed)

    def value():
        kinds = [lambda: rng.choice(PLAUSIBLE)] * 4 + [
            lambda: rng.choice(HOSTILE),
            lambda: [value(), value()],
            lambda: {"a": value()},
        ]
        return rng.choice(kinds)()

    for _ in range(count):
        tool = rng.choice(_TOOLS[name])
        arguments = {key: value() for key in tool.parameters if rng.random() < 0.95}
        text = rng.choice([json.dumps, json.dumps, repr])(arguments)
        yield f"Action: {tool.name} with Action Input: {rng.choice(HOSTILE) if rng.random() < 0.05 else text}"


def commands(name):
    """Commands as a policy may write them: known ones, known ones with something put in, any text at all."""
    known = known_commands(name)
    forms = [*_FORMS.get(name, ()), *(f"{c} {{}}" for c in known), *(f"{c.split()[0]} {{}}" for c in known), "{} {}"]
    put_in = st.builds(lambda form, text: form.replace("{}", text), st.sampled_from(forms), ANY)
    return st.one_of(st.sampled_from(known), put_in, ANY)


def turns(name):
    return st.one_of(commands(name).map(lambda c: f"Thought: {c[:20]}\nAction: {c}"), ANY)


def check(outcome):
    for text in (outcome.observation, outcome.parsed or ""):
        assert isinstance(text, str)
        assert text == clean(text)
    assert len(outcome.observation) <= OBSERVATION_LIMIT
    assert len(outcome.parsed or "") <= COMMAND_LIMIT
    for number in (outcome.reward, outcome.progress):
        assert math.isfinite(number)
        assert 0.0 <= number <= 1.0


async def play(pool, task, written):
    """Plays the turns one after the other, and goes on in a new episode where one has ended."""
    state = await pool.reset(task)
    assert state.goal == clean(state.goal)
    check(state.outcome)
    for turn in written:
        if state.done:
            state = await pool.reset(task)
        state = await pool.step(state, Action(turn))
        check(state.outcome)


@pytest.fixture(params=ENVIRONMENTS)
def playing(request):
    """(name, a function that plays turns in a worker of that environment)."""
    name = request.param
    spec, options = find(name), LIGHT.get(name, {})
    try:
        spec.make(options).close()
    except UserError as error:
        pytest.skip(str(error))
    per_kind = spec.tasks("test", options)
    tasks = [per_kind[i * (len(per_kind) - 1) // 5] for i in range(6)]
    with asyncio.Runner() as runner:
        pool = EnvironmentPool({name: options}, 1, 20.0, retries=0, live=2)
        yield name, lambda number, written: runner.run(play(pool, tasks[number], written))
        assert (pool.stats.faults, pool.stats.restarts, pool.stats.failed) == (0, 0, 0)
        runner.run(pool.close())


def test_every_answer_is_an_observation(playing):
    name, played = playing
    first = known_commands(name)[0]
    for number in (0, 1):
        played(number, [f"Action: {text}" for text in HOSTILE] + [f"Action: {first} {text}" for text in HOSTILE])

    if name in _TOOLS:
        for seed in range(2 * USUAL):
            played(seed % 6, list(calls(name, seed, 25)))

    @settings(max_examples=EXAMPLES.get(name, USUAL), suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 1 if name == "sciworld" else 5), st.lists(turns(name), min_size=1, max_size=6))
    def any_turns(number, written):
        played(number, written)

    any_turns()


@given(st.sampled_from(sorted(KINDS)), ANY)
def test_any_command_can_be_sent_to_a_server(kind, text):
    command = clean(text)
    assert json.dumps(sent(KINDS[kind], command)).isprintable()


@pytest.mark.parametrize("name", ["tool_operation", "tool_query"])
def test_a_refused_call_does_not_repeat_all_of_it(name):
    spec = find(name)
    env = spec.make({})
    env.reset(spec.tasks("test", {})[0])
    for command in ("x" * 100_000, f'{known_commands(name)[0].split()[0]} with Action Input: {{"{"y" * 100_000}": 1}}'):
        answer = env.step(command)
        assert not answer.valid
        assert len(answer.observation) <= 1000
