"""The text of PDDL files: one reading for the engines of pddl and alfworld."""

import pytest

from agentrm_jax.envs import pddl_text
from agentrm_jax.envs.alfworld import pddl as household
from agentrm_jax.envs.pddl import engine
from agentrm_jax.types import UserError

DOMAIN = """(define (domain D) ; a comment (
  (:types cat dog - animal) (:constants rex - dog)
  (:action PET :parameters (?x - cat ?y) :precondition (calm ?x) :effect (and (happy ?x) (not (calm ?y)))))"""
PROBLEM = "(define (problem p) (:domain d) (:objects tom - cat box) (:init (calm tom)) (:goal (happy tom)))"


def test_words_are_lower_case_and_comments_are_left_out():
    assert pddl_text.read_tree("(A (b ?C) ; d)\n())") == ("a", ("b", "?c"), ())
    assert pddl_text.read_tree("(?l - level?l1 - level)") == ("?l", "-", "level", "?l1", "-", "level")


@pytest.mark.parametrize("text", ["", "(", ")", "(a", "(a))", "(a) (b)", "word", "(a)(" * 2000])
def test_text_that_is_not_one_balanced_expression_is_refused_in_one_line(text):
    with pytest.raises(UserError, match=r"^PDDL text .+$"):
        pddl_text.read_tree(text)


def test_deep_nesting_is_read():
    assert pddl_text.read_tree("(" * 20_000 + ")" * 20_000)


def test_names_share_the_type_that_follows_them_and_are_objects_without_one():
    assert pddl_text.typed(["a", "b", "-", "t", "c"]) == (("a", "t"), ("b", "t"), ("c", "object"))
    with pytest.raises(UserError, match="ends where a type is expected"):
        pddl_text.typed(["a", "-"])


def test_types_are_below_their_parents_and_everything_is_an_object():
    parents = {"cat": "animal", "animal": "object"}
    assert pddl_text.is_a("cat", "animal", parents)
    assert pddl_text.is_a("stone", "object", parents)
    assert not pddl_text.is_a("animal", "cat", parents)


def test_both_engines_read_the_same_actions_and_problems():
    (theirs,), ours = household.parse_domain(DOMAIN), engine.read_domain(DOMAIN)
    (schema,) = ours.schemas
    assert (
        (theirs.name, theirs.params) == (schema.name, schema.parameters) == ("pet", (("?x", "cat"), ("?y", "object")))
    )
    assert (theirs.precondition,) == schema.pre
    problem = engine.read_problem(PROBLEM, ours)
    assert household.parse_problem(PROBLEM).init == {"calm": {("tom",)}}
    assert problem.init == {("calm", "tom")}
    assert {**household.parse_problem(PROBLEM).types, "rex": "dog"} == problem.objects


@pytest.mark.parametrize(
    ("reader", "text", "message"),
    [
        (household.parse_domain, "(define (domain d) (:action go :effect))", "action go has a key without a value"),
        (engine.read_domain, "(define (domain d) ())", "does not begin with a word"),
        (household.parse_problem, "(define (problem p) (:objects a) (:init))", "problem p has no :goal"),
        (lambda text: engine.read_problem(text, engine.read_domain(DOMAIN)), "(define (problem p))", "'p' has no goal"),
    ],
)
def test_what_is_missing_is_named(reader, text, message):
    with pytest.raises(UserError, match=message):
        reader(text)
