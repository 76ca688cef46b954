"""KID: against torchmetrics, unbiased, and a test of differences that is exact for few pictures."""

import numpy as np
import pytest
import torch
from torchmetrics.image.kid import poly_mmd

from gradcheck.core import UserError
from gradcheck.runs.quality import kid, kid_difference


def draw(n, d=64, shift=0.0, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def test_it_is_torchmetrics_for_as_many():
    a, b = draw(30), draw(30, shift=0.2, seed=1)
    assert kid(a, b) == pytest.approx(poly_mmd(b.double(), a.double()).item())


def test_it_has_no_bias_in_the_number_of_pictures():
    real = draw(400, seed=9)
    few = [kid(draw(8, seed=s), draw(50, seed=1000 + s)) for s in range(300)]
    assert abs(np.mean(few)) < 4 * np.std(few) / 300**0.5
    assert kid(draw(400, shift=0.3), real) > 0.02


def test_the_difference_is_that_of_two_kids():
    a, b, real = draw(20, shift=0.3), draw(20, seed=1), draw(60, seed=2)
    difference, p = kid_difference(a, b, real)
    assert difference == pytest.approx(kid(a, real) - kid(b, real), abs=1e-9) and p < 0.05


def test_false_verdicts_with_fewer_pictures_than_features():
    "Pairs that share their noise and differ by chance: 16 pictures, 64 features."
    real, found = draw(200, seed=7), []
    for s in range(200):
        shared = draw(16, seed=10_000 + s)
        a, b = shared + draw(16, seed=20_000 + s), shared + draw(16, seed=30_000 + s)
        found.append(kid_difference(a, b, real, swaps=200)[1] < 0.05)
    assert np.mean(found) <= 0.1                        # 5 % and three standard errors of 200 worlds


def test_bad_input():
    with pytest.raises(UserError, match="at least 2 of each"): kid(draw(1), draw(5))
    with pytest.raises(UserError, match="do not fit"): kid_difference(draw(4), draw(5), draw(6))
    with pytest.raises(UserError, match="at least 2 of each"): kid_difference(draw(1), draw(1), draw(6))
    for k in range(3):
        features = [draw(4), draw(4), draw(6)]
        features[k][0, 0] = float("nan")
        with pytest.raises(UserError, match="NaN or infinite"): kid_difference(*features)
