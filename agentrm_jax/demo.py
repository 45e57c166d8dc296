"""`make demo`: the whole loop at nano size, as the commands a user would type, then one report of everything."""

import subprocess
import sys
import time
from pathlib import Path

from agentrm_jax.evaluation import results
from agentrm_jax.run import reports as outcome
from agentrm_jax.run.logs import format_seconds
from agentrm_jax.types import UserError

RUNS = Path("runs/nano")
STAGES = (
    ("train.py", "sft", "the policy learns from expert trajectories"),
    ("search.py", "mcts", "tree search on other tasks collects step values"),
    ("train.py", "explicit", "the reward model learns the step values"),
    ("search.py", "greedy", "held-out tasks: the policy alone"),
    ("search.py", "best_of_n", "held-out tasks: best of 5 by the reward model"),
    ("search.py", "beam", "held-out tasks: 5 x 5 beam by the reward model"),
)


def main() -> None:
    begin = time.monotonic()
    for number, (script, name, purpose) in enumerate(STAGES, 1):
        command = [sys.executable, script, f"--config=configs/{name}.py"]
        print(f"\n[{number}/{len(STAGES)}] {purpose}\n$ python {' '.join(command[1:])}", flush=True)
        if code := subprocess.run(command, check=False).returncode:
            raise UserError(f"the demo stopped at {name} (exit code {code}); run make demo again to continue there")
    runs = [RUNS / name for _, name, _ in STAGES]
    page = outcome.page(
        [r for r in runs if (r / "results.json").exists()],
        RUNS / "report" / "index.html",
        title="AgentRM at nano size",
        training=[r for r in runs if (r / "metrics.jsonl").exists()],
    )
    searches = [RUNS / name for name in ("greedy", "best_of_n", "beam")]
    print("\n" + results.table(*(outcome.read(r) for r in searches)))
    print(f"\ndone in {format_seconds(time.monotonic() - begin)}; report: {page}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
