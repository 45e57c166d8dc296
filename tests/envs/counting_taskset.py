"""A taskset of verifiers with its own environment: count to a number, one step a turn. Its reward has two parts."""

from collections.abc import Iterator

import verifiers.v1 as vf

__all__ = ["CountingConfig", "CountingEnv", "CountingTaskset"]


class CountingConfig(vf.TasksetConfig):
    least: int = 2


class CountingData(vf.TaskData):
    target: int


class CountingTask(vf.Task[CountingData, vf.State, vf.TaskConfig]):
    @vf.reward(weight=0.5)
    async def polite(self, trace) -> float:
        return float(all("please" in m.content for m in trace.assistant_messages))

    @vf.stop
    async def bored(self, trace) -> bool:
        return trace.last_reply == "bored"


class CountingEnvConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig()


class CountingEnv(vf.Env[CountingEnvConfig]):
    async def run(self, task, agents):
        count = 0
        async with agents.player.interaction(task) as interaction:
            segment = await interaction.turn()
            while not segment.terminated:
                count += segment.last_reply.startswith("up")
                if count == task.data.target:
                    break
                segment = await interaction.turn(f"You are at {count}.")
        interaction.trace.record_reward("reached", float(count == task.data.target), 0.5)


class CountingTaskset(vf.Taskset[CountingTask, CountingConfig]):
    def load(self) -> Iterator[CountingTask]:
        for n in range(5):
            target = self.config.least + n
            data = CountingData(prompt=f"Count to {target}.", system_prompt="You count.", target=target)
            yield CountingTask(data, self.config.task)
