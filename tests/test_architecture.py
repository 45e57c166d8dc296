"""Who may import whom, how long a file may be, and that importing the package costs nothing."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "agentrm_jax"

# Room -> the rooms of the package it may import; every module of the package lies in one of them.
_BASE = {"types", "files", "tree", "chat", "tokenizer", "prompts", "window", "parallel"}
MAY_IMPORT = {
    "types": set(),
    "text": set(),  # strings only: every room may import it
    "files": {"types"},
    "tree": {"types"},
    "templates": {"types"},
    "rendering": {"types"},
    "chat": {"types", "tree", "templates", "tokenizer", "rendering"},
    "parallel": {"types"},
    "replies": {"types"},
    "places": {"types"},
    "tokenizer": {"types", "templates"},
    "envs": {"types", "files", "replies"},
    "search": {"types", "replies"},
    "prompts": {"types", "tree", "chat", "envs", "replies"},
    "window": {"types", "tree"},
    "models": {"types", "files", "tree", "chat", "tokenizer", "prompts", "envs", "parallel"},
    "data": {"types", "files", "tree", "rendering", "chat", "tokenizer", "prompts", "envs"},
    "engine": {"types", "tree", "chat", "models", "parallel"},
    "training": _BASE | {"models", "data", "evaluation"},
    "generators": _BASE | {"models", "engine", "places"},
    "policies": _BASE | {"envs", "models", "engine", "places", "generators"},
    "rewards": _BASE | {"envs", "models", "engine", "places", "generators"},
    "evaluation": {"types", "files", "search", "data"},
    "run": {"types", "files", "parallel", "places", "search", "data", "evaluation"},
    "cluster": {"types", "envs", "models", "policies", "rewards", "run", "search"},
    "testing": _BASE | {"templates", "envs", "models", "data", "search", "export"},
    # commands beside the mains
    "report": {"types", "run"},
    "demo": {"types", "files", "run", "evaluation"},
    "cli": {"types", "run"},
    "export": _BASE | {"models", "run"},
    "scoring": _BASE | {"models", "data", "search"},
    "evaluate": {"types", "files", "data", "evaluation", "run", "score"},
    "convert": {"types", "files", "envs", "data", "run"},
    "score": {"types", "places", "prompts", "envs", "models", "data", "search", "scoring", "run"},
    "serving": {"types", "chat", "tokenizer", "prompts", "envs", "models", "engine", "data", "search", "scoring"},
    "serve": {"types", "places", "prompts", "envs", "models", "engine", "search", "score", "serving", "run"},
    "compilers": {"types"},
    "plan": _BASE | {"places", "models", "engine", "training", "run", "compilers"},
}
# Rooms without model code, and what would bring it in.
FREE = (
    "types",
    "files",
    "tree",
    "chat",
    "rendering",
    "templates",
    "tokenizer",
    "replies",
    "places",
    "prompts",
    "envs",
    "search",
    "evaluation",
    "data",
)
MODEL_CODE = {"jax", "flax", "optax", "orbax", "torch"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@functools.cache
def imports(path: Path) -> set[str]:
    """Dotted names of everything a file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{a.name}" for a in node.names}
    return found


@pytest.mark.parametrize("name", sorted(MAY_IMPORT))
def test_a_room_imports_only_the_rooms_below_it(name):
    for path in (
        p for p in modules() if room(p) == name and p.name != "__main__.py"
    ):  # a room's program may wire others
        rooms = {i.split(".")[1] for i in imports(path) if i.startswith("agentrm_jax.")}
        assert rooms - {name, "text"} <= MAY_IMPORT[name], path


def test_every_module_has_a_room():
    assert {room(p) for p in modules()} - {"__init__"} == set(MAY_IMPORT)


@pytest.mark.parametrize("name", FREE)
def test_rooms_without_model_code_import_none(name):
    for path in (p for p in modules() if room(p) == name):
        assert not {i.split(".")[0] for i in imports(path)} & MODEL_CODE, path


def test_nothing_imports_a_main_and_nothing_needs_torch():
    for path in modules():
        tops = {i.split(".")[0] for i in imports(path)}
        assert not tops & {"train", "search", "configs", "torch"}, path


def test_files_are_short_and_named_for_what_they_hold():
    limits = {"train.py": 350, "search.py": 300, "agentrm_jax/__init__.py": 80}
    for path in [*modules(), ROOT / "train.py", ROOT / "search.py"]:
        name = path.relative_to(ROOT).as_posix()
        assert len(path.read_text().splitlines()) <= limits.get(name, 500), name
        assert path.name not in ("utils.py", "helpers.py", "misc.py"), name


def test_importing_the_package_loads_no_heavy_library():
    heavy = ("jax", "flax", "transformers", "torch", "tensorflow_datasets", "orbax", "grain")
    code = f"import sys, agentrm_jax; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_public_name_has_a_home():
    import agentrm_jax

    assert set(agentrm_jax.__all__) <= set(dir(agentrm_jax))
    for name in agentrm_jax.__all__:
        found = getattr(agentrm_jax, name)
        assert callable(found), name
        assert found.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'beem'"):
        agentrm_jax.beem  # noqa: B018
