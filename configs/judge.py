"""Best-of-n with a language model as judge: it sees all candidates in one prompt and says which is best (paper D.1); nothing is trained.

    python search.py --config=configs/judge.py:smollm2
    python search.py --config=configs/judge.py:smollm2 --config.reward_model=judge:openai:MODEL@http://127.0.0.1:8000/v1

The policy judges its own trajectories unless another model is named. Expect little of a small one: with 8 B parameters the paper
finds 52.1, where the policy alone has 52.7. The 3.4 M of nano were never shown a question, so there the run shows that it works and how
strong position bias can be, which `judge` in results.json says. Beam and the other step-wise searches take a judge too:
`--config=configs/beam.py --config.reward_model=judge:PLACE`.
"""

from configs import common

MAIN = "search.py"


def get_config(size: str = "nano"):
    common.check_size(size)
    config = common.search(size, method="best_of_n", reward_model="judge:")
    config.reward_model += config.policy
    config.search = common.config_dict(n=5, aggregate="last", temperature=1.0, all_steps=False)
    return config
