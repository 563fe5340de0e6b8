"""Spreads over seeds: their text, their verdict, their confidence."""

import math

import pytest
import scipy.stats

from minimoe.reporting.statistics import T95, Spread, confidence, describe_lead, format_spread, outcome


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([0.51562], "0.516 %"), ([250_360.4], "250,360 %"), ([8.8e-16], "8.8e-16 %"), ([3.0], "3 %"),
        ([2.0, 2.1, 2.2], "2.10 ±0.10 %"), ([27.5, 28.5], "28.00 ±0.71 %"), ([-200.0, 300.0], "50 ±354 %"),
        ([1.0, 1.0], "1 %"), ([1e12], "1e+12 %"), ([-1234.5], "-1,234 %"),
        ([0.1234, 0.1236], "0.12350 ±0.00014 %"),
    ],
)  # fmt: skip
def test_digits_follow_the_deviation(values, text):
    assert format_spread(values, unit=" %") == format_spread(Spread.of(values), unit=" %") == text


@pytest.mark.parametrize(
    ("values", "spec", "text"),
    [
        ([0.5164], ".3f", "0.516"), ([2.0, 2.1, 2.2], ".3f", "2.100 ±0.100"), ([0.0, 0.0], ".1f", "0.0 ±0.0"),
        ([0.25, 0.35], ".0%", "30% ±7%"), ([1.0, 2.0], "+.2f", "+1.50 ±0.71"),
        ([-1.0, -2.0], "+.2f", "-1.50 ±0.71"), ([1234.5], ",.0f", "1,234"),
    ],
)  # fmt: skip
def test_a_format_sets_the_digits_of_both(values, spec, text):
    assert format_spread(values, spec) == format_spread(Spread.of(values).as_dict(), spec) == text


@pytest.mark.parametrize(
    ("lead", "expected"),
    [
        (Spread(0.1, 0.05), "won"),
        (Spread(-0.1, 0.05), "LOST"),
        (Spread(0.1, 0.2), "tied"),
        (Spread(-0.1, 0.2), "tied"),
        (Spread(0.004, None), "tied"),
        (Spread(0.006, None), "won"),
    ],
)
def test_outcomes_on_both_sides_of_their_bounds(lead, expected):
    assert outcome(lead) == expected


def test_a_lead_is_described_with_its_size():
    assert describe_lead(Spread(-0.1, 0.05)) == "LOST (by 0.100 ±0.050)"
    assert describe_lead(Spread(0.2, None), "at equal FLOPs") == "won at equal FLOPs (by 0.200)"


def test_the_table_of_students_t_is_scipys():
    expected = [scipy.stats.t.ppf(0.95, df) for df in range(1, len(T95) + 1)]
    assert list(T95) == pytest.approx(expected, abs=5e-4)
    assert confidence(1) == 0
    assert confidence(3) == pytest.approx(2.92 / math.sqrt(3))
    assert confidence(100) >= scipy.stats.t.ppf(0.95, 99) / 10
