"""Extras: named one way, and those that need no compiler hold nothing that has no wheels."""

import re
import tomllib
from pathlib import Path

import pytest

from agentrm_jax.envs.catalogue import find, names

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
COMPILED = ("alfworld", "fast-downward", "jericho", "textworld")  # no wheels, or dependencies without


def texts():
    folders = (ROOT / "agentrm_jax", ROOT / "docs", ROOT / "configs", ROOT / "benchmarks")
    files = [ROOT / "README.md", *(p for folder in folders for p in folder.rglob("*") if p.suffix in (".py", ".md"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in files}


def test_extras_are_spelled_one_way_and_exist():
    found = {(path, *m) for path, text in texts().items() for m in re.findall(r"\b(agentrm.jax)\[([\w,-]+)\]", text)}
    assert found
    for path, project, extras in found:
        assert project == "agentrm-jax", path
        assert set(extras.split(",")) <= EXTRAS.keys(), path


@pytest.mark.parametrize("extra", ["envs", "tool", "test", "gguf", "smollm2", "openai", "ray", "serve"])
def test_extras_install_without_a_compiler(extra):
    assert not [need for need in EXTRAS[extra] if need.startswith(COMPILED)]


def test_every_environment_names_an_extra_that_exists():
    assert {find(name).extra for name in names()} - {""} <= EXTRAS.keys()
