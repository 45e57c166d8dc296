"""WebShop: what a purchase earns."""

import pytest

from agentrm_jax.envs.webshop import reward as rewards
from tests.envs.shopping import goal, product


def test_the_wanted_product_with_the_wanted_options_earns_one():
    assert rewards.reward(product(), ["black", "10"], goal()) == 1.0


@pytest.mark.parametrize(
    ("bought", "options", "wanted", "reward"),
    [
        (product(), ["black"], goal(), 4 / 5),  # no size chosen
        (product(), ["navy", "10"], goal(), 4 / 5),
        (product(), [], goal(attributes=("memory foam", "steel toe")), 2 / 5),
        (product(price=60.01), ["black", "10"], goal(), 4 / 5),
        (product(price=60.0), ["black", "10"], goal(), 1.0),
        (product(attributes=()), ["black", "10"], goal(), 4 / 5),  # a bullet says "rubber sole", nothing "memory foam"
        (
            product(attributes=("foam memory",)),
            ["black", "10"],
            goal(attributes=("memory foams",)),
            1.0,
        ),  # nearly equal
        (product(), ["black", "10"], goal(attributes=("gravel roads",)), 1.0),  # in the description
        (product(), ["black"], goal(options=(("color", "black"), ("size", "10"))), 4 / 5),  # (name, value) pairs
        (product(), ["dark blue"], goal(options=("light blue",)), 1.0),  # the same colour word
    ],
)
def test_reward_counts_attributes_options_and_price(bought, options, wanted, reward):
    assert rewards.reward(bought, options, wanted) == pytest.approx(reward)


@pytest.mark.parametrize("price_upper", [0.0, -1.0])
def test_a_goal_without_price_cap_has_no_price_term(price_upper):
    assert rewards.reward(product(price=1e6), ["black"], goal(price_upper=price_upper)) == pytest.approx(3 / 4)
    assert rewards.reward(product(), [], goal(price_upper=price_upper, attributes=(), options=())) == 1.0


@pytest.mark.parametrize(
    ("bought", "r_type"),
    [
        (product(title="Other Shoes"), 1.0),  # same query
        (product(title="Other Shoes", query="shoes"), 1.0),  # same category levels
        (product(title="Running Shoes", query="shoes", product_category="A › B"), 1.0),  # 2 of 5 title nouns
        (product(title="Running Late", query="x", product_category="A › Shoes"), 0.5),  # 1 of 5
        (product(title="Wooden Chair"), 0.0),  # no noun in common, although the query is the same
    ],
)
def test_type_reward(bought, r_type):
    wanted = product(title="Acme Trail Running Shoes for the Men")
    assert rewards.type_reward(bought, wanted) == r_type


def test_type_reward_for_less_than_a_tenth_of_the_nouns():
    wanted = product(title="one of alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu")
    assert rewards.type_reward(product(title="alpha wave"), wanted) == 0.1


@pytest.mark.parametrize(
    ("a", "b", "ratio"),
    [  # thefuzz 0.22
        ("essential oil", "essential oils", 96), ("tea tree", "tea bag", 60), ("cool powder snow", "powder snow", 100),
        ("black", "('color', 'dark black')", 100), ("3 feet", "6 feet", 83), ("", "x", 0), ("xl", "xxl", 80),
        ("é red", "red blue", 100), ("heavy duty", "heavy-duty steel", 100),
    ],
)  # fmt: skip
def test_token_set_ratio(a, b, ratio):
    assert rewards.token_set_ratio(a, b) == rewards.token_set_ratio(b, a) == ratio
