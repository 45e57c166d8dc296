"""Searches with a policy, environments and (where the method needs one) a reward model. Read it top to bottom.

    python search.py --config=configs/greedy.py        the policy alone
    python search.py --config=configs/mcts.py          trees to learn step values from
    python search.py --config=configs/best_of_n.py     whole trajectories, the reward model picks
    python search.py --config=configs/beam.py          step by step, the reward model prunes

Finished tasks are kept, so running the same command again continues a run that was stopped. Started as several processes
(`jax.distributed`), each searches its share of the tasks with engines on its own devices.
"""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import jax
import ml_collections

from agentrm_jax import parallel, search
from agentrm_jax.data import examples as sources
from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.envs.react import command_reader
from agentrm_jax.policies.native import load_policy
from agentrm_jax.rewards.explicit import load_reward_model
from agentrm_jax.run import config as cli
from agentrm_jax.run import journal
from agentrm_jax.run import reports as outcome
from agentrm_jax.run import stages as start
from agentrm_jax.run.logs import Progress
from agentrm_jax.types import UserError

METHODS: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {
    "greedy": search.rollout,
    "best_of_n": search.best_of_n,
    "beam": search.beam,
    "lookahead": search.lookahead,
    "mcts": search.explore,
}
RANKING = ("best_of_n", "beam", "lookahead")


def main(config: ml_collections.ConfigDict, workdir: Path) -> None:
    # --- Where we are --------------------------------------------------------------------------------------------------
    if config.method not in METHODS:
        raise UserError(f"--config.method={config.method}: known methods are {', '.join(METHODS)}")
    start.accelerator()
    process, processes = jax.process_index(), jax.process_count()
    with parallel.first_process_first("workdir"):
        cli.begin(config, workdir)
        if process == 0:
            journal.gather(workdir)  # what processes of a stopped run left
    if start.is_finished(workdir):
        if process == 0:
            print(outcome.show(workdir))
            print(f"{workdir} is finished; report: {workdir / 'report' / 'index.html'}")
        return

    # --- Tasks: what is left of them -----------------------------------------------------------------------------------
    specs = sources.specs(config.env)
    tasks = [task for name in config.env.names for task in sources.tasks(config.env, name)]
    log = journal.part(workdir, process, processes)
    before = log.finished if processes == 1 else journal.Journal(workdir).finished
    left = [task for task in tasks if task.key not in before][process::processes]
    share = f", {len(left)} of them here" if processes > 1 else ""
    print(f"{config.method} on {len(tasks)} tasks" + (f", {len(before)} done before" if before else "") + share)

    # --- Policy and reward model, each on an engine --------------------------------------------------------------------
    with parallel.first_process_first("models"):
        start.require(config.policy, "sft", config.size)
        if config.method in RANKING:
            start.require(config.reward_model, "explicit", config.size)
    policy = load_policy(config.policy, specs, config.engine, examples=config.examples, template=config.chat_template)
    reward_model = None
    if config.method in RANKING:
        reward_model = load_reward_model(config.reward_model, specs, config.engine, template=config.chat_template)

    # --- Run: one coroutine a task; engines batch across them, environments step in worker processes -------------------
    async def run() -> None:
        options = {name: sources.env_options(config.env, name) for name in config.env.names}
        async with EnvironmentPool(options, config.env.workers, config.env.step_timeout) as pool:
            meter = search.Meter()
            parts = [meter.policy(policy), meter.environments(pool)]
            settings = {"seed": config.seed, **config.search}
            if reward_model is not None:
                parts.append(meter.reward_model(reward_model))
            if config.method in ("beam", "lookahead", "mcts"):
                settings["command"] = command_reader(specs)
            if config.method == "best_of_n":
                settings["all_steps"] = True
            method = functools.partial(METHODS[config.method], **settings)
            total = len(log.finished) + len(left)
            progress = Progress(total, done=len(log.finished), name="task", period=config.log_seconds)

            def on_done(done: search.Done) -> None:
                log.record(done, meter)
                spent = meter.total()
                speed = spent.policy_tokens / max(spent.seconds, 1e-9)
                progress.show(
                    len(log.finished),
                    f"score {log.mean_reward():.3f}",
                    f"{speed:,.0f} tokens/s",
                    f"{spent.env_steps} env steps",
                    final=len(log.finished) == total,
                )

            await search.run_tasks(
                left, lambda task: method(task, *parts), concurrency=config.concurrency, on_done=on_done
            )

    if left:
        asyncio.run(run())

    # --- Results and report --------------------------------------------------------------------------------------------
    if processes > 1:
        parallel.meet("searched")
        if process:
            return
        journal.gather(workdir)
        log = journal.Journal(workdir)
    outcome.write(workdir, config, tasks, log)
    print(outcome.show(workdir))
    start.finish(workdir, tasks=len(tasks))
    print(f"results: {workdir / 'results.json'}  report: {workdir / 'report' / 'index.html'}")


if __name__ == "__main__":
    cli.run(main)
