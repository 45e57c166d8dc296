"""Pages of the documentation that are made from other files: the first one from README.md, the API reference from docstrings."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "agentrm_jax"


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages to those that lie in docs/."""
    readme = re.sub(r"\]\(docs/", "](", (ROOT / "README.md").read_text())
    files.append(File.generated(config, "index.md", content=readme))
    for room, modules in rooms().items():
        lines = [f"# {room}", "", *(f"::: {module}" for module in modules)]
        files.append(File.generated(config, f"api/{room}.md", content="\n".join(lines) + "\n"))
    return files


def rooms() -> dict[str, list[str]]:
    """Room (a folder of the package, or a module at its top) -> the modules that its page describes."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if any(part.startswith("_") for part in parts[1:]):
            continue
        found.setdefault(parts[1], []).append(".".join(parts))
    return found
