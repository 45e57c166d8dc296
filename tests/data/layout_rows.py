"""A row of every layout that `data.labels` reads, as other people's programs write them; contents are our own."""

import json

from agentrm_jax.data import formats
from agentrm_jax.types import JSON, Action, Outcome, Step, Task, Trajectory

HUMAN, OK, GOAL = (
    {"from": "human", "value": "You shop."},
    {"from": "gpt", "value": "OK"},
    {"from": "human", "value": "A mug."},
)
LOOK, SEEN, BUY = (
    {"from": "gpt", "value": "Action: look"},
    {"from": "human", "value": "A shelf."},
    {"from": "gpt", "value": "Action: buy"},
)
ASK, YES, NO = (
    {"role": "user", "content": "Is 7 prime?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "assistant", "content": "No."},
)
PROBLEM = "What is 2 + 3?"
TOOLS = [
    {
        "type": "function",
        "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}},
    }
]
CALL = {"role": "tool_call", "content": json.dumps({"name": "add", "arguments": {"a": 2}})}
RESULT = {"role": "tool_response", "content": "5"}


def _own(reward: float = 1.0, way: str = "left") -> JSON:
    steps = (
        Step(Action(f"Action: move {way}"), Outcome("A wall.", 0.0, 0.0, parsed=f"move {way}")),
        Step(Action("Action: move up"), Outcome("The goal.", reward, reward, True, reward == 1.0)),
    )
    return formats.trajectory_to_json(
        Trajectory(Task("maze", "m-1", "test", 9), "reach the goal", "You are at 1, 1.", steps)
    )


# Layout -> rows of it.
ROWS: dict[str, list[JSON]] = {
    "native": [_own(), _own(0.25, "down")],
    "conversations": [
        {"id": "webshop_12", "conversations": [HUMAN, OK, GOAL, LOOK, SEEN, BUY, SEEN], "reward": 1.0},
        {"meta": {"steps": 2, "reward": None, "success": False}, "conversations": [HUMAN, LOOK, SEEN, BUY]},
        {
            "item_id": "webshop_6",
            "conversations": [{**HUMAN, "loss": None}, {**OK, "loss": False}, GOAL, {**BUY, "loss": True}],
            "reward": 0,
            "success": 0,
        },
    ],
    "preference": [
        {"id": "webshop_12", "prompt": [HUMAN, OK, GOAL], "chosen": [LOOK, SEEN, BUY], "rejected": [BUY]},
        {"chosen": [ASK, YES], "rejected": [ASK, NO]},
        {"prompt": "Is 7 prime?", "chosen": " Yes.", "rejected": " No.", "margin": 0.5},
    ],
    "plan-rewardbench": [
        {
            "query": "2 + 3?",
            "uuid": "0a",
            "tools": TOOLS,
            "_lcp_bucket": "single_easy",
            "chosen": {
                "messages": [
                    {"role": "user", "content": "2 + 3?"},
                    CALL,
                    RESULT,
                    {"role": "assistant", "content": "5."},
                ]
            },
            "reject": {"messages": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "6."}]},
        }
    ],
    "ipr-exploration": [
        {
            "id": 7,
            "iteration": 1,
            "agent_step_output": "Action: look",
            "agent_step_reward": 0.0,
            "agent_step_conversations": [ASK, NO],
            "agent_conversations": [ASK, NO, ASK, YES],
            "agent_final_reward": 0.5,
            "monte_carlo_step_reward": 0.25,
            "time": "t",
        }
    ],
    "ipr-values": [
        {
            "7_1": {
                "gpt_reward": 1.0,
                "gpt_conversations": [ASK, YES],
                "gpt_step_conversations": [ASK, YES],
                "monte_carlo_step_reward": 0.75,
            }
        }
    ],
    "prm800k": [
        {
            "question": {"problem": PROBLEM, "ground_truth_answer": "5"},
            "label": {
                "steps": [
                    {
                        "completions": [
                            {"text": "2 + 3 is 6.", "rating": -1, "flagged": None},
                            {"text": "Count on.", "rating": 1},
                        ],
                        "human_completion": None,
                        "chosen_completion": 1,
                    },
                    {
                        "completions": [{"text": "So 5.", "rating": 0, "flagged": False}],
                        "human_completion": {"text": "It is 5."},
                        "chosen_completion": None,
                    },
                ],
                "finish_reason": "solution",
            },
        }
    ],
    "processbench": [
        {"id": "gsm8k-0", "problem": PROBLEM, "steps": ["Two.", "Six.", "So 6."], "label": 1},
        {"id": "gsm8k-1", "problem": PROBLEM, "steps": ["Five."], "label": -1},
    ],
    "math-shepherd": [
        {
            "input": "What is 2 + 3? Step 1: 2 + 3 = 5 ки\nStep 2: So -5. ки",
            "label": "What is 2 + 3? Step 1: 2 + 3 = 5 +\nStep 2: So -5. -",
            "task": "GSM8K",
        }
    ],
    "ntp-prm": [{"input": PROBLEM, "output": "Count on.\n\nIt is 6.", "process_label": [1, 0], "correctness": True}],
    "stepwise": [
        {"prompt": PROBLEM, "completions": ["Count on.", "It is 6."], "labels": [True, False]},
        {"prompt": PROBLEM, "completions": ["Count on."], "labels": [True], "values": [0.7]},
    ],
    "samples": [
        {
            "prompt": PROBLEM,
            "reference": "5",
            "completions": ["5.", "6.", "5!"],
            "correctness": [True, False, True],
            "steps": [["5."], ["6."], ["5!"]],
        }
    ],
    "sample": [
        {"idx": 4, "prompt": PROBLEM, "response": "5.", "correctness": True},
        {"idx": 4, "prompt": PROBLEM, "response": "6.", "correctness": False},
    ],
    "implicitprm": [
        {"id": "17-0", "dataset": "m", "response": [ASK, YES], "label": True},
        {"id": "17-1", "dataset": "m", "response": [ASK, NO], "label": False},
    ],
    "rest-mcts": [
        {
            "content": PROBLEM,
            "policy_samples": [{"solution": "5.", "summary": "5", "correct": True}],
            "value_samples": [{"steps": "Count", "value": 0.4}],
            "real_answer": "5",
        }
    ],
    "rest-mcts-prefix": [{"prompt_answer": f"Problem:{PROBLEM}\nSolution:\nCount on.", "label": 0.25}],
    "agentboard": [
        {
            "id": 3,
            "task_name": "pddl",
            "goal": "Move it.",
            "is_done": False,
            "progress_rate": 0.5,
            "trajectory": {
                "Interaction Turn 10": {"Action": "wait", "Observation": "Nothing.", "Progress Rate": 0.5},
                "Interaction Turn 0": {"Goal": "Move it.", "Observation": "A block."},
                "Interaction Turn 1": {"Action": "pick up", "Observation": "You hold it."},
            },
        }
    ],
    "agentprocessbench": [
        {
            "query_index": 3,
            "sample_index": 0,
            "data_source": "tau",
            "final_label": -1,
            "step_labels": {"1": 1, "3": -1},
            "tools": TOOLS,
            "messages": [
                ASK,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "c", "function": {"name": "add", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "c", "content": "5"},
                NO,
            ],
        },
        {
            "query_index": 3,
            "sample_index": 1,
            "data_source": "tau",
            "final_label": 1,
            "step_labels": [0, 1],
            "messages": [ASK, NO, ASK, YES],
        },
    ],
    "knowagent": [
        {
            "name": "put-1/trial",
            "result": True,
            "traj": "You are in a room.\nYour task is to: put a mug.\n"
            "> Think: where?\n> go to desk 1\nOn the desk 1, you see a mug 1.\n> take mug 1\nYou pick up the mug 1.",
        }
    ],
    "tau-bench": [
        {
            "task_id": 0,
            "trial": 1,
            "reward": 1.0,
            "info": {},
            "traj": [
                {"role": "system", "content": "Be brief."},
                ASK,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "c", "function": {"name": "add", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "c", "content": "5"},
                YES,
            ],
        }
    ],
    "messages": [
        {"messages": [ASK, YES]},
        {"id": "q", "messages": [ASK, NO, ASK, YES], "reward": 0.75},
        {"messages": [ASK, NO, ASK, YES], "step_rewards": [0.0, 1.0]},
    ],
    "completion": [
        {"prompt": "Is 7 prime?", "completion": " Yes.", "label": True},
        {"prompt": [ASK], "completion": [NO], "label": False},
    ],
}
