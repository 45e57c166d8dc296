"""What tests of WebShop share: a product and a goal, and how experts fare."""

import itertools

from agentrm_jax.envs.webshop import environment as webshop
from agentrm_jax.envs.webshop import reward as rewards
from agentrm_jax.envs.webshop.catalogue import Goal, Product


def product(**changes):
    values = {
        "asin": "B000000001", "title": "Acme Trail Running Shoes for Men", "description": "Runs well on GRAVEL roads.",
        "bullets": ("Rubber sole", "Quick lacing"), "query": "running shoes",
        "product_category": "Clothing › Shoes › Running", "attributes": ("arch support", "memory foam"),
        "options": {"color": ("black", "navy"), "size": ("9", "10")}, "price": 49.5, "price_tag": "$49.5",
    }  # fmt: skip
    return Product(**{**values, **changes})


def goal(**changes):
    values = {
        "text": "shoes",
        "product": product(),
        "attributes": ("memory foam", "rubber sole"),
        "options": ("black", "10"),
    }
    return Goal(**{**values, "price_upper": 60.0, **changes})


def rewards_of_the_expert(tasks, options):
    env, rewards = webshop.make(options), []
    for task in tasks:
        env.reset(task)
        commands = 0
        for thought, command in webshop.expert(env, task):
            answer = env.step(command)
            assert answer.valid
            assert 0 < len(thought) < 300
            commands += 1
        assert answer.over
        assert commands <= task.max_steps
        rewards.append(answer.reward)
    return rewards


def solve_all(tasks, options):
    rewards = rewards_of_the_expert(tasks, options)
    return sum(rewards) / len(rewards)


def most_reward(goal, products, least=0.0):
    """The most that any purchase of one of `products`, with any of its options, earns; `least` if that is no more."""
    best, wanted = least, [rewards.first_colour(w) for w in goal.options]
    for bought in products:
        if rewards.reward(bought, [], goal) + len(wanted) / (len(wanted) + len(goal.attributes) + 1) <= best:
            continue  # even with all options
        values = [[v for v in values if rewards.options_met([v], wanted)] for values in bought.options.values()]
        for chosen in itertools.product(*({v: None for v in [*some, ""]} for some in values)):
            best = max(best, rewards.reward(bought, [v for v in chosen if v], goal))
    return best
