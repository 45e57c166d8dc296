"""WebShop: pages, commands, made-up shops, expert."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentrm_jax.envs.pool.episode import Episode
from agentrm_jax.envs.webshop import environment as webshop
from agentrm_jax.envs.webshop import reward as rewards
from agentrm_jax.envs.webshop.expert import choices
from agentrm_jax.envs.webshop.wares import OPTION_PHRASES, OPTIONS, WARES
from agentrm_jax.replies import render_action
from tests.envs.shopping import goal, product, solve_all

# --- pages and commands ---


@pytest.fixture
def env():
    env = webshop.make({})
    env.reset(webshop.tasks("test", {})[0])
    return env


def test_page_flow(env):
    assert env._show() == f"WebShop [SEP] Instruction: [SEP] {env.goal.text} [SEP] Search"
    head = f"Instruction: [SEP] {env.goal.text} [SEP] Back to Search [SEP] "
    first = env.step("search[blanket]").observation
    shown, total = env._shown(), len(env.shop.find("blanket"))
    assert 10 < total <= 20
    assert first.startswith(
        head + f"Page 1 (Total results: {total}) [SEP] Next > [SEP] {shown[0].asin} [SEP] {shown[0].title} [SEP] $"
    )
    assert len(shown) == 10
    second = env.step("click[Next >]").observation
    assert second.startswith(head + f"Page 2 (Total results: {total}) [SEP] < Prev [SEP] Next > [SEP] B0")
    assert not {p.asin for p in shown} & {p.asin for p in env._shown()}
    assert env.step("click[next >]").observation == head + f"Page 3 (Total results: {total}) [SEP] < Prev [SEP] Next >"
    assert env.step("click[< prev]").observation == second
    assert env.step("click[< prev]").observation == first

    bought = shown[3]
    item = env.step(f"click[{bought.asin.lower()}]").observation
    listed = " [SEP] ".join(text for name, values in bought.options.items() for text in (name, *values))
    assert item == (
        f"{head}< Prev [SEP] {listed} [SEP] {bought.title} [SEP] Price: {bought.price_tag} [SEP] Rating: N.A. "
        "[SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now"
    )
    size = bought.options["bed size"][0]
    assert env.step(f"click[{size}]").observation == item
    assert env.step("click[Description]").observation == f"{head}< Prev [SEP] {bought.description}"
    assert env.step("click[< Prev]").observation == item
    assert env.step("click[Features]").observation == f"{head}< Prev [SEP] {' [SEP] '.join(bought.bullets)}"
    assert env.step("click[< Prev]").observation == item
    assert env.step("click[Reviews]").observation == f"{head}< Prev"
    env.step("click[< Prev]")
    snapshot = env.snapshot()
    done = env.step("click[Buy Now]")
    assert done.over
    assert done.observation.startswith("Thank you for shopping with us! [SEP] Your code: [SEP] None")
    assert f'[SEP] options [SEP] {{"bed size": "{size}"}} [SEP]' in done.observation
    assert done.reward == done.progress == rewards.reward(bought, [size], env.goal)

    env.restore(snapshot)
    assert env.step("click[< Prev]").observation == first  # back to the results, and the options are forgotten
    env.step(f"click[{bought.asin}]")
    assert env.view.options == ()
    assert env.step("click[Back to Search]").observation.startswith("WebShop [SEP]")


def test_an_option_is_chosen_anew_and_commands_ignore_case(env):
    env.step("SEARCH[Blanket]")
    bought = env._shown()[0]
    env.step(f"Click[{bought.asin}]")
    for size in bought.options["bed size"][:2]:
        env.step(f"click[{size.upper()}]")
    assert env.view.options == (("bed size", bought.options["bed size"][1]),)
    assert env.step("click[BUY NOW]").over


@pytest.mark.parametrize(
    "command",
    [
        "click[Buy Now]",
        "click[search]",
        "click[nothing]",
        "search[]",
        "search[ ]",
        "click",
        "buy",
        "",
        "go to search[x]",
        "click[b",
    ],
)
def test_invalid_commands_change_nothing_and_say_so(env, command):
    for preparation in ("", "search[blanket]"):
        if preparation:
            env.step(preparation)
        before = env.snapshot()
        answer = env.step(command)
        assert not answer.valid
        assert not answer.over
        assert answer.observation.startswith("Invalid action")
        assert env.snapshot() == before


def test_nothing_happens_after_the_purchase(env):
    for command in ("search[blanket]", f"click[{env.shop.find('blanket')[0].asin}]", "click[buy now]"):
        bought = env.step(command)
    again = env.step("search[desk]")
    assert (again.valid, again.over, again.reward) == (False, True, bought.reward)


@pytest.mark.parametrize("seed", range(5))
def test_all_that_can_be_clicked_is_shown_and_works_from_every_snapshot(seed):
    rng, env = random.Random(seed), webshop.make({})
    env.reset(rng.choice(webshop.tasks("train", {})))
    for _ in range(40):
        names = env.clickables()
        assert all(name in env._show().lower() for name in names)
        before, answers = env.snapshot(), []
        for name in names:
            env.restore(before)
            answers.append(env.step(f"click[{name}]"))
            assert answers[-1].valid
        for name, answer in zip(names, answers, strict=True):
            env.restore(before)
            assert env.step(f"click[{name}]") == answer
        env.restore(before)
        name = rng.choice([*names, "search"])
        env.step(f"search[{rng.choice(WARES).noun}]" if name in ("search", "buy now") else f"click[{name}]")


def test_an_episode_without_purchase_earns_nothing():
    episode = Episode(webshop.make({}), webshop.SPEC)
    task = webshop.tasks("test", {})[1]
    episode.reset(task)
    for _ in range(task.max_steps):
        outcome = episode.step(render_action("", "search[desk]"))
    assert (outcome.done, outcome.reward, outcome.progress, outcome.success) == (True, 0.0, 0.0, False)
    assert outcome.observation.startswith("Observation:\nInstruction:")


def test_speed(env):
    task, started, steps = webshop.tasks("test", {})[0], time.process_time(), 0
    while steps < 400:
        env.reset(task)
        for _, command in webshop.expert(env, task):
            env.step(command)
            steps += 1
    assert steps / (time.process_time() - started) > 500


# --- made-up shop ---


def test_values_of_an_option_are_told_apart_by_the_reward():
    assert OPTIONS.keys() == OPTION_PHRASES.keys() == {name for ware in WARES for name in ware.options}
    for values in OPTIONS.values():
        for value in values:
            assert [v for v in values if rewards.options_met([v], [value])] == [value]


def test_splits_share_no_product():
    shop = webshop.make({}).shop
    tasks = {split: webshop.tasks(split, {}) for split in ("train", "dev", "test")}
    assert [len(tasks[split]) for split in tasks] == [1920, 240, 240]
    wanted = {split: {shop.goals[t.args["session"]].product.asin for t in tasks[split]} for split in tasks}
    assert not wanted["train"] & wanted["test"]
    assert not wanted["train"] & wanted["dev"]
    assert not wanted["dev"] & wanted["test"]
    assert len({t.id for split in tasks.values() for t in split}) == 2400


def test_made_up_shops_depend_on_their_seed_only():
    code = (
        "from agentrm_jax.envs.webshop import environment as w\n"
        "e = w.make({'seed': 7, 'num_products': 90}); t = w.tasks('test', {'seed': 7, 'num_products': 90})\n"
        "print([e.reset(x) for x in t], [e.step(c) for _, c in w.expert(e, t[-1])])"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, cwd=Path(__file__).parents[2],
                       capture_output=True, text=True, check=True).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert runs[0] == runs[1] != ""
    assert webshop.make({"seed": 7}).shop.goals[0].text != webshop.make({}).shop.goals[0].text


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_expert_buys_what_is_wanted(split):
    assert solve_all(webshop.tasks(split, {}), {}) == 1.0


@pytest.mark.parametrize(
    ("values", "wanted", "clicked"),
    [
        ({"color": ("black", "navy"), "size": ("9", "10")}, ("10", "black"), ["black", "10"]),
        ({"color": ("matte black", "black"), "size": ("9",)}, ("black",), ["black"]),  # both count, one was asked for
        ({"color": ("navy", "dark blue")}, ("light blue",), ["dark blue"]),  # the same colour word
        ({"style": ("10 inch", "9 inch"), "size": ("10",)}, ("10", "9 inch"), ["9 inch", "10"]),  # both, not 10 inch
        ({"color": ("red", "navy"), "trim": ("red",)}, ("red", "navy"), ["navy", "red"]),  # red is chosen for the trim
        # As the reward knows none of these for what was asked, what was asked is chosen.
        ({"shape": ("rectangular", "round")}, (("shape", "rectangular"),), ["rectangular"]),
        ({"color": ("navy",)}, ("red",), []),
    ],
)
def test_expert_clicks_what_meets_most_wanted_options(values, wanted, clicked):
    assert [c.value for c in choices(product(options=values), goal(options=wanted), clicks=5)] == clicked
    assert [c.value for c in choices(product(options=values), goal(options=wanted), clicks=0)] == []


def test_expert_says_whether_it_is_what_was_asked_for(env, monkeypatch):
    said = {}
    for wanted in (("black", "10"), ("black", "12"), ("dark black", "10")):
        monkeypatch.setattr(env, "goal", goal(options=wanted, product=product(asin=env.shop.products[0].asin)))
        monkeypatch.setattr("agentrm_jax.envs.webshop.expert.best_query", lambda *_: ("shoes", 12))
        said[wanted] = [thought for thought, _ in webshop.solve(env, 10)][1:]
    assert said["black", "10"][0] == "What I look for is not on page 1, so I look at the next one."
    assert said["black", "10"][2:] == [
        "The color should be black.",
        "The size should be 10.",
        "This is what was asked for, so I buy it.",
    ]
    assert said["black", "12"][2:] == [
        "The color should be black.",
        "This comes nearest to what was asked for, so I buy it.",
    ]
    assert said["dark black", "10"][2] == "The color that comes nearest to the wish is black."


def test_expert_searches_in_the_words_of_the_wish(env):
    for task in webshop.tasks("dev", {})[:40]:
        env.reset(task)
        _, command = next(iter(webshop.expert(env, task)))
        words = command.removeprefix("search[").removesuffix("]").split()
        assert set(words) <= set(env.goal.text.replace(",", " ").split())


def test_the_example_is_an_expert_episode():
    roles = [message.role for message in webshop.SPEC.example]
    assert roles == [*["user", "assistant"] * (len(roles) // 2), "user"]
    assert webshop.SPEC.example[0].content.startswith("Your task: ")
    assert webshop.SPEC.example[-2].content.endswith("Action: click[Buy Now]")
