"""Searches with a policy, environments and (where the method needs one) a reward model. Read it top to bottom.

    python search.py --config=configs/greedy.py        the policy alone
    python search.py --config=configs/mcts.py          trees to learn step values from
    python search.py --config=configs/sample.py        trajectories to learn outcomes from
    python search.py --config=configs/best_of_n.py     whole trajectories, the reward model picks
    python search.py --config=configs/beam.py          step by step, the reward model prunes

docs/search.md has the others (lookahead, adaptive, particle, dvts, guided_mcts, sharing_beam, refine). With --config.samples=RUN
best-of-n draws nothing: another reward model ranks what that run drew.

Finished tasks are kept, so running the same command again continues a run that was stopped. Started as several processes
(`jax.distributed`), each searches its share of the tasks with engines on its own devices. With --config.ray=auto a Ray cluster
searches: its engines are handed task after task, and what a lost node had in flight is tried elsewhere.
"""

import asyncio
import functools
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import ml_collections

from agentrm_jax import parallel, search
from agentrm_jax.envs import catalogue
from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.envs.react import answer_reader, command_reader
from agentrm_jax.evaluation import panels
from agentrm_jax.files import write_json
from agentrm_jax.models.card import card_of, differences, texts_of
from agentrm_jax.policies.loading import load_policy
from agentrm_jax.rewards.loading import load_reward_model
from agentrm_jax.run import journal, mains, recorded, reports, stages, workdirs
from agentrm_jax.run.devices import accelerator
from agentrm_jax.run.logs import ProgressLine
from agentrm_jax.search import methods
from agentrm_jax.types import JSON


@parallel.together()
def main(config: ml_collections.ConfigDict, workdir: Path) -> None:
    # --- What is asked for: checked as a whole, before anything is made or written -------------------------------------
    method = methods.find(config.method)
    environments = catalogue.resolve(config.env)
    tasks = [task for entry in environments.values() for task in catalogue.tasks(config.env, entry)]
    run = method.bind(config.search, seed=config.seed, command=command_reader(environments.specs))
    if drawn := recorded.read(config, tasks) if config.get("samples") else None:
        run = drawn.ranking(config.search)

    # --- Where we are --------------------------------------------------------------------------------------------------
    if config.ray:
        jax.config.update("jax_platforms", "cpu")  # accelerators are for the engines on the cluster
    accelerator(alone=bool(config.ray))
    process, processes = jax.process_index(), jax.process_count()
    workdirs.compare(config, workdir)
    if workdirs.is_finished(workdir):
        if process == 0:
            print(reports.show(workdir))
            print(f"{workdir} is finished; report: {workdir / 'report' / 'index.html'}")
        return

    # --- Policy and reward model, each on an engine --------------------------------------------------------------------
    with workdirs.begun(config, workdir, write=process == 0):
        with parallel.first_process_first("models"):
            stages.require_named(config)
            if process == 0:
                journal.gather(workdir)  # what processes of a stopped run left
        specs, how = environments.specs, {"template": config.chat_template, "date": config.date, "config": config}
        policy = reward_model = fleet = None
        if config.ray:
            from agentrm_jax.cluster.fleet import Fleet

            fleet = Fleet(config)  # opens the same on its nodes
        else:
            if drawn is None:
                policy = load_policy(config.policy, specs, config.engine, examples=config.examples, **how)
            if method.reward_model:
                reward_model = load_reward_model(config.reward_model, specs, config.engine, **how)
        policy_card, reward_card = fleet.cards if fleet else (card_of(policy), card_of(reward_model))

    # --- Tasks: what is left of them -----------------------------------------------------------------------------------
    if process == 0:  # what results are about, and what of their cost was paid elsewhere
        write_json(
            workdir / "panel.json", panels.panel_of(tasks, {e.spec.name: e.options for e in environments.values()})
        )
        if drawn:
            write_json(workdir / "drawn.json", {"run": config.samples, "budget": drawn.spent})
    log = journal.part(workdir, process, processes)
    before = {entry.record.task for entry in journal.entries(workdir / "tasks.jsonl")}
    left = [task for task in tasks if task.key not in before][process::processes]
    share = f", {len(left)} of them here" if processes > 1 else ""
    print(f"{config.method} on {len(tasks)} tasks" + (f", {len(before)} done before" if before else "") + share)
    if process == 0:
        told = functools.partial(texts_of, specs, tasks, config.env.prompts)
        for line in differences(policy_card, told(reader="policy", examples=config.examples)):
            print(f"note: the policy reads this run's texts; {line}", file=sys.stderr)
        for line in differences(reward_card, told(reader="reward")):
            print(f"note: the reward model reads what it was trained with; {line}", file=sys.stderr)

    # --- Run: one coroutine a task; engines batch across them, environments step in worker processes -------------------
    total = len(log.finished) + len(left)
    progress = ProgressLine(total, done=len(log.finished), name="task", period=config.log_seconds)

    def on_done(done: search.Done[search.Result], meter: search.Meter, notes: Mapping[str, JSON]) -> None:
        log.record(done, meter, ranked=method.keeps, notes=notes, answer=answer_reader(environments.specs))
        spent = meter.total()
        speed = spent.policy_tokens / max(spent.seconds, 1e-9)
        progress.show(
            len(log.finished),
            f"score {log.mean_reward():.3f}",
            f"{speed:,.0f} tokens/s",
            f"{spent.env_steps} env steps",
            final=len(log.finished) == total,
        )

    async def run_all() -> None:
        meter = search.Meter()
        pool_of = functools.partial(EnvironmentPool, environments.pool_options)
        async with search.closing(policy, reward_model), pool_of(config.env.workers, config.env.step_timeout) as pool:
            parts = [meter.policy(policy), meter.environments(pool)] if policy else []
            if reward_model is not None:
                parts.append(meter.reward_model(reward_model))
            await search.run_tasks(
                left,
                lambda task: run(task, *parts),
                concurrency=config.concurrency,
                on_done=lambda done: on_done(done, meter, journal.notes_of(reward_model, done.task)),
            )

    if left and fleet:
        fleet.run(left, on_done)
    elif left:
        asyncio.run(run_all())

    # --- Results and report --------------------------------------------------------------------------------------------
    if processes > 1:
        parallel.barrier("searched")
        if process:
            return
        journal.gather(workdir)
        log = journal.Journal(workdir)
    reports.write(workdir, config, tasks, log)
    print(reports.show(workdir))
    workdirs.finish(workdir, tasks=len(tasks))
    print(f"results: {workdir / 'results.json'}  report: {workdir / 'report' / 'index.html'}")


if __name__ == "__main__":
    mains.run("search.py", main, kept="finished tasks are kept; the same command continues")
