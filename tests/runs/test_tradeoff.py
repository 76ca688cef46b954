"""Quality at equal probability: the way up of a curve, and what decides nothing."""
import numpy as np
import pytest

from gradcheck.runs.tradeoff import fid_at, fid_effect, gain_at_equal_probability, measured, not_compared, rising
from gradcheck.runs.verdicts import verdict

BACK_AGAIN = np.array([0.3, 0.5, 0.9, 0.6]), np.array([10.0, 12.0, 20.0, 11.0])


def test_what_lies_behind_the_turn_is_no_offer():
    wanted = np.array([0.3, 0.4, 0.7, 0.9, 0.95])
    assert fid_at(*BACK_AGAIN, wanted).tolist() == pytest.approx([10, 11, 16, 20, np.inf])
    assert [x.tolist() for x in rising(*BACK_AGAIN)] == [[0.3, 0.5, 0.9], [10, 12, 20]]


def test_of_a_branch_that_wavers_the_first_passage_counts():
    p, fid = np.array([0.3, 0.6, 0.4, 0.8]), np.array([10.0, 13.0, 2.0, 4.0])
    assert fid_at(p, fid, np.array([0.5])).tolist() == pytest.approx([12])


def test_a_gain_in_closed_form():
    p, fid = BACK_AGAIN
    assert gain_at_equal_probability(BACK_AGAIN, (p, fid - 3)) == pytest.approx(3)


def test_guidance_that_only_hurts_is_one_point():
    never = np.array([0.3, 0.2, 0.1, 0.25]), BACK_AGAIN[1]
    assert [x.tolist() for x in rising(*never)] == [[0.3], [10]]
    assert gain_at_equal_probability(never, BACK_AGAIN) == pytest.approx(0)
    assert "lie 0 runs" in not_compared(never, BACK_AGAIN)
    assert fid_at(np.array([0.3, 0.3]), np.array([5.0, 4.0]), np.array([0.3])).tolist() == [5]


def test_a_curve_that_jumps_over_the_range_decides_nothing():
    plain = np.array([0.3, 0.35, 0.4, 0.45]), np.array([10.0, 11, 12, 13])
    jump = np.array([0.3, 0.42, 0.9, 0.95]), np.array([10.0, 4, 5, 6])
    assert measured(jump, 0.3, 0.45) == 1 and measured(plain, 0.3, 0.45) == 3
    said = not_compared(plain, jump)
    assert "3 runs without modification and 1 of this" in said and "\n" not in said
    noise = np.random.default_rng(0).normal(0, 0.01, (50, 4))
    curves = [(np.tile(p, (50, 1)), f + noise) for p, f in (plain, jump)]
    effect = fid_effect(*curves)
    assert np.isnan([effect.mean, effect.low, effect.high]).all() and verdict(effect) == "undecided"
    assert fid_effect(curves[0], (curves[0][0], curves[0][1] - 2 + noise[::-1])).mean == pytest.approx(2, abs=0.1)


def test_runs_behind_the_turn_are_not_counted():
    turned = np.array([0.3, 0.9, 0.5, 0.4]), np.array([10.0, 20, 5, 4])
    plain = np.array([0.3, 0.5, 0.7, 0.9]), np.array([10.0, 12, 14, 16])
    assert "1 of this" in not_compared(plain, turned) and not not_compared(plain, plain)
