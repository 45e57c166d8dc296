"""Test files that are also programs: run again where JAX shows several devices, which must be said before it starts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]


def run_on_eight(script: str, *arguments: str, cache: bool = True) -> tuple[Any, str]:
    """What `script` prints as JSON in its last line on eight simulated devices, and its standard error.

    `cache=False`: programs are compiled anew. One from the cache does not say what memory it needs.
    """
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(_ROOT)}
    if not cache:
        env.pop("JAX_COMPILATION_CACHE_DIR", None)
    run = subprocess.run([sys.executable, script, *arguments], env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1]), run.stderr
