"""Several runs of a claim in one line."""

import pytest

from helpers import aggregate
from helpers.claims import paired


def test_verdicts_are_counted_in_a_fixed_order():
    assert aggregate.verdicts(["reproduced"]) == "reproduced"
    assert aggregate.verdicts(["reproduced"] * 3) == "reproduced 3/3"
    mixed = ["not reproduced", "reproduced", "reproduced"]
    assert aggregate.verdicts(mixed) == "reproduced 2/3, not reproduced 1/3"


def test_equal_texts_stay_as_they_are():
    assert aggregate.measured(["17 of 17 layers"] * 3) == "17 of 17 layers"


def test_numbers_that_vary_become_mean_and_interval():
    found = aggregate.measured(["+1.0 points, 3 seeds", "+2.0 points, 3 seeds"])
    half = paired([1.0, 2.0], [0.0, 0.0])
    assert found == f"+1.5 [{half.low:+.1f}, {half.high:+.1f}] points, 3 seeds"
    three = aggregate.measured(["a 1,000", "a 2,000", "a 3,000"])
    assert three.startswith("a 2000 [")


def test_intervals_of_single_runs_give_way():
    texts = ["gain +1.00 [+0.50, +1.50] dB", "gain +3.00 [-0.50, +4.50] dB"]
    assert aggregate.measured(texts).startswith("gain +2.00 [-10.71, +14.71] dB")


@pytest.mark.parametrize("word", ["layer4", "C2b", "x0.5y"])
def test_numbers_inside_words_are_no_numbers(word):
    assert not aggregate.NUMBER.search(word)


def test_texts_of_different_form_are_listed():
    assert aggregate.measured(["none", "2 found"]) == "none / 2 found"
    assert aggregate.measured([f"{'x' * i}" for i in range(1, 9)]).endswith(" / ...")


def test_exponents():
    assert aggregate.measured(["1e-07 off", "3e-07 off"]).startswith("2e-07 [")
