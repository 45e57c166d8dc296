"""WebShop: official and large catalogues, their caches, what experts earn in them."""

import functools
import hashlib
import json
import random

import numpy as np
import pytest

from agentrm_jax.envs.webshop import cache
from agentrm_jax.envs.webshop import environment as webshop
from agentrm_jax.envs.webshop import reward as rewards
from agentrm_jax.envs.webshop.cache import StoredProducts, is_large, prepared
from agentrm_jax.envs.webshop.catalogue import read_shop, shop_files
from agentrm_jax.envs.webshop.generate import generate_records
from agentrm_jax.testing.shared import needs_shared, shared_data
from agentrm_jax.types import Task, UserError
from tests.envs.shopping import most_reward, rewards_of_the_expert, solve_all

OFFICIAL = shared_data()
official = needs_shared("webshop/items_shuffle_1000.json.xz")
OFFICIAL_OPTIONS = {"data": str(OFFICIAL)}


def test_settings_that_cannot_be_met_are_named(tmp_path):
    with pytest.raises(UserError, match="needs the official files"):
        webshop.tasks("test", {"setting": "small"})
    with pytest.raises(UserError, match=r"items_ins_v2_1000.json is missing"):
        webshop.tasks("test", {"data": str(tmp_path)})
    with pytest.raises(UserError, match="no setting 'big'"):
        webshop.make({"setting": "big"})
    with pytest.raises(UserError, match="no split 'valid'"):
        webshop.tasks("valid", {})
    with pytest.raises(UserError, match="num_products is 0"):
        webshop.tasks("test", {"num_products": 0})
    with pytest.raises(UserError, match="catalogue 'small'"):
        webshop.make({}).reset(Task("webshop", "small-1", "test", 10, {"shop": "small", "session": 1}))


@pytest.fixture(scope="module")
def full_files(tmp_path_factory):
    """Files named as the full official ones, with made-up content."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "webshop").mkdir()
    names = ("items_shuffle", "items_ins_v2", "items_human_ins")
    for name, records in zip(names, generate_records(600, 3), strict=True):
        (folder / f"webshop/{name}.json").write_text(json.dumps(records), encoding="utf-8")
    return folder


def test_full_catalogue_with_the_original_split(full_files):
    options = {"data": str(full_files), "setting": "original"}
    sessions = {split: [t.args["session"] for t in webshop.tasks(split, options)] for split in ("test", "dev", "train")}
    assert sessions == {"test": [*range(500)], "dev": [*range(500, 1500)], "train": [*range(1500, 1800)]}
    assert solve_all(webshop.tasks("test", options)[:20], options) > 0.99
    fewer = webshop.tasks("test", {**options, "num_products": 10})
    assert len(fewer) == 30
    assert fewer[0].id == "full-10-0"


def test_a_large_catalogue_is_prepared_once_and_sells_the_same(full_files, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files, read = shop_files(full_files, "original"), functools.partial(read_shop, full_files, "original")
    assert not is_large(files)
    plain, stored = read(), prepared(files, ("original",), read)
    assert isinstance(stored.products, StoredProducts)
    assert list(stored.products) == list(plain.products)
    assert stored.products[-3:] == plain.products[-3:]
    assert (stored.name, stored.goals, stored.splits) == (plain.name, plain.goals, plain.splits)
    for goal in plain.goals[:50]:
        assert stored.find(goal.text) == plain.find(goal.text)

    def never():
        raise AssertionError("it was prepared before")

    assert prepared(files, ("original",), never).goals == plain.goals
    with pytest.raises(AssertionError, match="prepared before"):
        prepared(files, ("original", 10), never)
    assert [p.name for p in (tmp_path / "agentrm_jax/webshop").iterdir() if p.name.startswith(".")] == []


def cut_short(folder):
    file = folder / "products.jsonl"
    file.write_bytes(file.read_bytes()[:-1])


def overwritten(folder):
    (folder / "shop.json").write_bytes(b"\x80\x05K\x01.")


def without_an_index(folder):
    (folder / "index_docs.npy").unlink()


@pytest.mark.parametrize("damage", [cut_short, overwritten, without_an_index])
def test_a_damaged_cache_is_made_again_and_it_is_said_once(full_files, tmp_path, monkeypatch, capsys, damage):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files, read = shop_files(full_files, "original"), functools.partial(read_shop, full_files, "original", 20)
    whole = prepared(files, (20,), read)
    (home,) = (tmp_path / "agentrm_jax/webshop").iterdir()
    damage(home)
    capsys.readouterr()
    again, reopened = (prepared(files, (20,), read) for _ in range(2))
    assert again.goals == reopened.goals == whole.goals
    assert list(reopened.products) == list(whole.products)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "again, since what is there is damaged (" in said


def test_a_cache_of_an_older_version_is_replaced_and_never_read(full_files, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files, read = shop_files(full_files, "original"), functools.partial(read_shop, full_files, "original", 20)
    old = tmp_path / "agentrm_jax/webshop" / cache._key(1, files, (20,))
    old.mkdir(parents=True)
    (old / "shop.pickle").write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    prepared(files, (20,), read)
    assert not old.exists()
    assert "again, since it was made by an older version" in capsys.readouterr().err


def test_a_prepared_catalogue_holds_data_only(full_files, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files, read = shop_files(full_files, "original"), functools.partial(read_shop, full_files, "original", 20)
    prepared(files, (20,), read)
    (home,) = (tmp_path / "agentrm_jax/webshop").iterdir()
    assert {path.suffix for path in home.iterdir()} == {".json", ".jsonl", ".npy"}
    for path in home.glob("*.npy"):
        np.load(path, allow_pickle=False)


def test_an_episode_in_a_prepared_catalogue_is_that_in_any(full_files, tmp_path, monkeypatch):
    options = {"data": str(full_files), "setting": "original", "num_products": 300}
    rewards = solve_all(webshop.tasks("test", options)[:5], options)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("agentrm_jax.envs.webshop.cache.LARGE", 0)
    webshop._cached_shop.cache_clear()
    assert solve_all(webshop.tasks("test", options)[:5], options) == rewards
    assert isinstance(webshop.make(options).shop.products, StoredProducts)
    webshop._cached_shop.cache_clear()


def test_eto_sessions_need_the_goals_they_were_made_for(full_files, monkeypatch):
    for name, sessions in (("train", [3, 5, 5, 9, 600]), ("test", [9, 7])):
        (full_files / f"webshop/{name}_indices.json").write_text(json.dumps(sessions))
    options = {"data": str(full_files)}  # the files are there, so `eto` it is
    with pytest.raises(UserError, match="gives 1800 goals, ETO's session numbers need 12087"):
        webshop.tasks("train", options)
    monkeypatch.setattr("agentrm_jax.envs.webshop.catalogue._ETO_GOALS", 1800)
    sessions = {split: [t.args["session"] for t in webshop.tasks(split, options)] for split in ("train", "dev", "test")}
    assert sessions["train"] == [3, 5, 600]  # 9 is a test session
    assert sessions["test"] == [9, 7]
    assert sessions["dev"] == [n for n in range(500, 1500) if n != 600]
    webshop._cached_shop.cache_clear()


@official
def test_official_goals_in_the_original_order():
    shop = webshop.make(OFFICIAL_OPTIONS).shop
    assert (len(shop.products), len(shop.goals)) == (1000, 6910)
    # Recorded from the original engine, its generator seeded with 233 before loading.
    assert hashlib.sha256("\n".join(g.text for g in shop.goals).encode()).hexdigest()[:16] == "1a2bcb4ef1fcb15d"
    assert sum(len(webshop.tasks(split, OFFICIAL_OPTIONS)) for split in ("train", "dev", "test")) == 6910


@official
def test_official_search():
    shop = webshop.make(OFFICIAL_OPTIONS).shop
    recorded = {
        "shampoo for men": ["B09SHRV5JW", "B09Q3PZ8JK", "B07B6DVG41", "B07FLKB8CV"],
        "gluten free snacks": ["B07HYF111T", "B08P28NXH3", "B09DBYG4XD", "B08BPTT8MX"],
        "queen size bed frame with storage": ["B09BNCFGLY", "B071S7GPMS", "B004A9L7ZO", "B00KL9G3Z6"],
    }
    for query, asins in recorded.items():
        assert [p.asin for p in shop.find(query)[:4]] == asins
        assert len(shop.find(query)) == 50


@official
def test_no_purchase_earns_more_than_the_experts_on_any_official_goal():
    tasks = [t for split in ("train", "dev", "test") for t in webshop.tasks(split, OFFICIAL_OPTIONS)]
    shop, earned = webshop.make(OFFICIAL_OPTIONS).shop, rewards_of_the_expert(tasks, OFFICIAL_OPTIONS)
    assert sum(earned) / len(earned) == pytest.approx(0.98961, abs=1e-5)
    below = [(shop.goals[t.args["session"]], reward) for t, reward in zip(tasks, earned, strict=True) if reward < 1]
    assert len(below) == 458
    assert len({goal.product.asin for goal, _ in below}) == 17
    for goal, reward in below:
        assert most_reward(goal, [goal.product]) == pytest.approx(reward)
    for goal, reward in random.Random(0).sample(below, 40):  # of any of the 1000 products, which takes longer
        assert most_reward(goal, shop.products, reward) == reward


@official
def test_options_that_cannot_be_met_contain_a_colour_word():
    """The original takes a chosen value for its first colour word, and compares that with a synthetic goal's whole option."""
    shop = webshop.make(OFFICIAL_OPTIONS).shop
    unmet = set()
    for goal in shop.goals:
        for name, value in goal.options:
            if not rewards.options_met([value], [(name, value)]):
                unmet.add(value)
                assert rewards.first_colour(value) != value
    assert {"rectangular", "peppered", "dash", "fashion black woman", "r.brown2070", "2005grey"} < unmet


@official
def test_official_episode_is_the_same_after_restore():
    env, task = webshop.make(OFFICIAL_OPTIONS), webshop.tasks("test", OFFICIAL_OPTIONS)[0]
    env.reset(task)
    commands = [command for _, command in webshop.expert(env, task)]
    snapshots, answers = [], []
    for command in commands:
        snapshots.append(env.snapshot())
        answers.append(env.step(command))
    for _ in range(2):
        for snapshot, command, answer in reversed(list(zip(snapshots, commands, answers, strict=True))):
            env.restore(snapshot)
            assert env.step(command) == answer
