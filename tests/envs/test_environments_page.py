"""`docs/environments.md` holds what it promises: its example plays, and its tables name every environment."""

import asyncio
import re
import sys
from pathlib import Path

import pytest

from agentrm_jax.envs.agentgym.kinds import KINDS
from agentrm_jax.envs.catalogue import find, names
from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.types import Action

PAGE = (Path(__file__).parents[2] / "docs" / "environments.md").read_text()


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The example as a module of a user's own."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "users_own").mkdir()
    (tmp_path / "users_own" / "guess.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield "users_own.guess"
    for name in ("users_own", "users_own.guess"):
        sys.modules.pop(name, None)


def test_the_example_environment_plays_through_the_pool(example):
    spec = find(example)
    splits = [{t.id for t in spec.tasks(split, {})} for split in ("train", "dev", "test")]
    assert len(set.union(*splits)) == sum(map(len, splits)) == 100

    async def go():
        async with EnvironmentPool({example: {}}, workers=1) as pool:
            task = next(t for t in spec.tasks("test", {}) if t.args["number"] == 42)
            state = await pool.reset(task)
            middle = await pool.step(state, Action("Thought: the middle\nAction: 50"))
            lost = await pool.step(middle, Action("Action: forty"))
            found = await pool.step(middle, Action("Action: 42"))
            return [s.outcome for s in (middle, lost, found)]

    middle, lost, found = asyncio.run(go())
    assert middle.observation == "Observation: Lower."
    assert (lost.valid, lost.done) == (False, False)
    assert (found.reward, found.success, found.done) == (1.0, True, True)


def test_the_tables_name_every_environment_once():
    _, *tables = PAGE.split("\n| task |")
    rows = [re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) for table in tables]
    assert sorted(rows[0]) == sorted(rows[1]) == names()
    assert sorted(rows[2]) == [
        name for name in names() if name not in ("agentgym", "openenv", "textarena", "verifiers")
    ]
    for kind in KINDS:
        assert f"`{kind}`" in PAGE


def test_the_table_says_which_extra_an_engine_needs():
    table = PAGE.split("\n| task |")[1]
    for name in names():
        row = next(line for line in table.splitlines() if line.startswith(f"| `{name}` |"))
        extra = find(name).extra
        assert (f"`[{extra}]`" in row) if extra else ("`[" not in row)
