"""The sentence about the first setting that differs."""

import pytest

from minimoe.tools.settings import first_difference

SAVED = {"data": "default", "model": {"dim": 64, "gate": {"score": "sigmoid"}}, "top_groups": None}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, None),
        ({"data": "all"}, "made with data = default, now it is all"),
        ({"model": {"dim": 64, "gate": {"score": "softmax"}}},
         "made with model.gate.score = sigmoid, now it is softmax"),
        ({"model": {"gate": {"score": "sigmoid"}}}, "made with model.dim = 64, now it is None"),
        ({"new": 1}, "made with new = None, now it is 1"),
        ({"new": None}, None),  # a missing setting counts as None
        ({"model": {"dim": 32, "gate": {"score": "softmax"}}, "data": "all"},
         "made with data = default, now it is all"),
    ],
)  # fmt: skip
def test_the_first_difference_is_named_with_both_values(change, sentence):
    assert first_difference(SAVED, SAVED | change) == sentence


def test_the_order_is_that_of_the_request():
    assert first_difference({"a": 1, "b": 1}, {"b": 2, "a": 2}) == "made with b = 1, now it is 2"


def test_tuples_are_lists_as_in_json():
    assert first_difference({"sizes": [1, 2]}, {"sizes": (1, 2)}) is None


def test_the_place_can_be_named():
    assert first_difference({"a": 1}, {"a": 2}, "in process 3") == "made with a = 1, in process 3 it is 2"
