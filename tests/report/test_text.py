from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest

from steepest.core.records import Against
from steepest.report import text

THIN = "\u202f"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0"),
        (8.0, "8"),
        (2.07, "2.07"),
        (2.001, "2.0"),
        (0.8, "0.80"),
        (12.04, "12"),
        (9.999, "10"),
        (118.4, "118"),
        (999.7, f"1{THIN}000"),
        (36040, f"36{THIN}040"),
        (1e5, "1e5"),
        (3.14e-4, "3.1e-4"),
        (1e-12, "1e-12"),
        (-1.72, "−1.72"),
        (math.inf, "∞"),
        (math.nan, "not a number"),
    ],
)
def test_numbers_have_two_or_three_digits_and_thin_thousands(value, expected):
    assert text.number(value) == expected


@pytest.mark.parametrize(
    ("interval", "like", "expected"),
    [
        ((2.016, 2.134), "2.07", "2.02 to 2.13"),
        ((1130.2, 1360.4), f"1{THIN}240", f"1{THIN}130 to 1{THIN}360"),
        ((9.1, 14.2), "12", "9 to 14"),
        ((-1.8, -1.65), "−1.72", "−1.80 to −1.65"),
        ((0.001, 0.4), "0.2", "1e-3 to 0.40"),
        ((2.6e-4, 3.9e-4), "3.1e-4", "2.6e-4 to 3.9e-4"),
        ((-3.3378, 3.4713), "0.0668", "−3.34 to 3.47"),
        ((-math.inf, math.inf), "2.07", "−∞ to ∞"),
    ],
)
def test_intervals_have_the_decimals_of_the_median(interval, like, expected):
    assert text.span(interval, like) == expected.replace("1e-3", text.number(0.001))


def against(factor, interval=None):
    return Against(peer="POT sinkhorn", factor=factor, interval=interval, ahead="faster", behind="slower")


@pytest.mark.parametrize(
    ("factor", "interval", "state", "sentence", "spread"),
    [
        (3.4, (3.1, 3.8), "wins", "3.4× faster than POT sinkhorn", "3.1 to 3.8"),
        (1 / 1.35, (1 / 1.47, 1 / 1.23), "loses", "1.35× slower than POT sinkhorn", "1.23 to 1.47"),
        (13.6, (11.2, 16.4), "wins", "14× faster than POT sinkhorn", "11 to 16"),
        (1.996, (1.5, 2.5), "wins", "2.0× faster than POT sinkhorn", "1.5 to 2.5"),
        (9.97, (8, 12), "wins", "10× faster than POT sinkhorn", "8 to 12"),
        (1240.0, None, "wins", f"1{THIN}240× faster than POT sinkhorn", ""),
        (1.05, (0.91, 1.2), "ties", "no clear difference from POT sinkhorn", "1.05× (0.91 to 1.20)"),
        (0.95, (0.9, 1.0), "ties", "no clear difference from POT sinkhorn", "0.95× (0.90 to 1.00)"),
        (0.5, (0.0, 0.8), "loses", "2.0× slower than POT sinkhorn", "1.2 to ∞"),
        (math.inf, None, "none", "no finite ratio to POT sinkhorn", ""),
        (math.nan, None, "none", "no finite ratio to POT sinkhorn", ""),
    ],
)
def test_a_ratio_is_a_sentence_with_a_direction(factor, interval, state, sentence, spread):
    ratio = text.ratio(against(factor, interval))
    assert (ratio.state, ratio.sentence, ratio.interval) == (state, sentence, spread)


def test_times_and_dates():
    assert text.duration(761) == "12 min 41 s"
    assert text.duration(59.7) == "1 min 0 s"
    assert text.duration(9.96) == "10 s"
    assert text.duration(0.8) == "0.80 s"
    assert text.duration(0.0021) == "2.1 ms"
    assert text.duration(2 * 3600 + 5 * 60) == "2 h 5 min"
    east = datetime(2026, 11, 25, 1, 2, tzinfo=timezone(timedelta(hours=11)))
    assert text.date(east) == "24 Nov 2026, 14:02"
    assert text.day(datetime(2026, 3, 1, tzinfo=UTC)) == "1 Mar 2026"


def test_bounds_units_and_powers():
    assert text.bound("<= 15", "steps") == "≤ 15 steps"
    assert text.bound("< 1e-6") == "< 1e-6"
    assert text.bound("> -0.5", "%") == "> −0.5 %"
    assert text.bound("between(-2.3, -1.7)") == "−2.3 to −1.7"
    assert text.with_unit("22", "x") == "22×"
    assert text.bound(">= 5", "x faster") == "≥ 5× faster"
    assert [text.power(v) for v in (1e-12, 5e-4, 0.005, 1, 1000, 1e5)] == [
        "10⁻¹²",
        "5·10⁻⁴",
        "0.005",
        "1",
        f"1{THIN}000",
        "10⁵",
    ]


def test_a_huge_ratio_is_written_with_a_power():
    found = text.ratio(Against(peer="A", factor=1 / 3.5678e14, interval=(2e-15, 3e-15), ahead="less", behind="more"))
    assert (found.strong, found.interval) == ("3.6e14× more", "3.3e14 to 5e14")
