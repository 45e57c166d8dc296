"""The documentation builds as a site without a warning, and describes every public module."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "agentrm_jax"


def test_the_site_builds_without_warnings_and_has_every_public_module(tmp_path):
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path),
    ]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")

    pages = "".join(page.read_text() for page in (tmp_path / "api").rglob("*.html"))
    described = set(re.findall(r'id="(agentrm_jax[\w.]+)"', pages))
    files = (path.relative_to(ROOT).with_suffix("").parts for path in PACKAGE.rglob("*.py"))
    public = {".".join(parts) for parts in files if not any(part.startswith("_") for part in parts[1:])}
    assert public
    assert public - described == set()
    assert "agentrm_jax.engine.engine.Engine.generate" in described
    assert "agentrm" in (tmp_path / "index.html").read_text()
