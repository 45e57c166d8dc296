"""A value of a row is what it should be, or one line says where it stands, what is there and what should be."""

import math

import pytest

from agentrm_jax.data import fields
from agentrm_jax.data.fields import Fields
from agentrm_jax.types import UserError


def row(**values) -> Fields:
    return Fields(values, "t.jsonl, line 3", "tree record", "nodes[4].")


@pytest.mark.parametrize(
    ("read", "value", "expected"),
    [
        (lambda r: fields.text(r, "x"), 3, "x is 3; expected text"),
        (lambda r: fields.text(r, "x"), None, "x is null; expected text"),
        (lambda r: fields.choice(r, "x", ["stop", "error"]), "go", 'x is "go"; expected stop or error'),
        (lambda r: fields.choice(r, "x", ["stop", "error"]), ["stop"], "x is a list of 1; expected stop or error"),
        (lambda r: fields.flag(r, "x"), 0, "x is 0; expected true or false"),
        (lambda r: fields.number(r, "x", 0, 1), 1e6, "x is 1000000.0; expected a number from 0 to 1"),
        (lambda r: fields.number(r, "x", 0, 1), "0.7", 'x is "0.7"; expected a number from 0 to 1'),
        (lambda r: fields.number(r, "x", 0, 1), True, "x is true; expected a number from 0 to 1"),
        (lambda r: fields.number(r, "x"), math.nan, "x is NaN; expected a number"),
        (lambda r: fields.number(r, "x"), 10**400, r"x is 1000\d+...; expected a number"),
        (lambda r: fields.whole(r, "x", 0), -3, "x is -3; expected a whole number from 0 on"),
        (lambda r: fields.whole(r, "x", 4, 4), 3, "x is 3; expected a whole number equal to 4"),
        (lambda r: fields.whole(r, "x"), 2**64, "x is 18446744073709551616; expected a whole number of 64 bits"),
        (lambda r: fields.whole(r, "x"), 1.0, "x is 1.0; expected a whole number"),
        (lambda r: fields.items(r, "x"), {}, "x is an object of 0; expected a list"),
        (lambda r: fields.inner(r, "x"), [], "x is a list of 0; expected an object"),
        (lambda r: fields.objects(r, "x"), [{}, 7], r"x\[1\] is 7; expected an object"),
        (lambda r: fields.anything(r, "x"), {"a": [math.inf]}, "x holds inf, which is no JSON number"),
        (lambda r: fields.text(r, "x"), None, r"x is null"),
    ],
)
def test_what_is_wrong_with_a_value(read, value, expected):
    with pytest.raises(UserError, match=rf"^t.jsonl, line 3: nodes\[4\]\.{expected}"):
        read(row(x=value))


def test_what_is_missing_is_named_unless_there_is_a_default():
    with pytest.raises(
        UserError, match=r"^t.jsonl, line 3: not a complete tree record without nodes\[4\]\.N; expected"
    ):
        fields.whole(row(), "N", 0)
    assert fields.whole(row(), "N", 0, default=7) == 7


def test_text_is_made_clean_and_names_are_only_made_valid():
    dirty = row(x="a\x00b\r\nc\ud800")
    assert fields.text(dirty, "x") == "a\ufffdb\nc\ufffd"
    assert fields.text(dirty, "x", verbatim=True) == "a\x00b\r\nc\ufffd"


def test_numbers_come_as_floats_and_inner_objects_know_their_place():
    assert repr(fields.number(row(x=1), "x", 0, 1)) == "1.0"
    inner = fields.objects(row(x=[{}, {"y": 2}]), "x")[1]
    with pytest.raises(UserError, match=r"nodes\[4\]\.x\[1\]\.y is 2; expected text"):
        fields.text(inner, "y")


def test_what_is_kept_unread_has_a_greatest_depth():
    deep: list = []
    for _ in range(fields.DEEPEST - 2):
        deep = [deep]
    assert fields.anything(row(x={"a": deep}), "x") == {"a": deep}
    with pytest.raises(UserError, match="x is nested deeper than 64 levels"):
        fields.anything(row(x={"a": [deep]}), "x")


def test_messages_stay_short():
    with pytest.raises(UserError) as error:
        fields.flag(row(x="y" * 10**6), "x")
    assert len(str(error.value)) < 200
