"""Quality on features that know no class: on real pictures, on broken ones, and each factor on planted shifts."""
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import wasserstein_distance

from gradcheck.core import UserError
from gradcheck.data.sportballs import SportBalls
from gradcheck.pictures import images_to_uint8
from gradcheck.runs.oracle import broken_pictures, periods, whole_limit
from gradcheck.runs.quality import Quality, circular_distance, factor_distances, kid_difference, quality_of
from gradcheck.runs.quality import quality_row, real_quality, to_scale, turns


@pytest.fixture(scope="module")
def real():
    return real_quality(0, 160)


@pytest.fixture(scope="module")
def pictures():
    images, labels = SportBalls().held_out.batch(range(1000, 1060))
    return images_to_uint8(images), labels.numpy()


def test_a_picture_has_its_numbers_whatever_lies_beside_it(pictures):
    samples = pictures[0][:3]
    together = quality_of(samples, 0)
    alone = [quality_of(samples[i:i + 1], 0) for i in range(3)]
    assert torch.equal(together.codes, torch.cat([q.codes for q in alone]))
    for column in ("label", "size", "x", "y", "rotation", "whole", "hit"):
        assert together.seen[column].tolist() == [q.seen[column][0] for q in alone]
    assert np.allclose(together.seen["off"], [q.seen["off"][0] for q in alone], atol=1e-3)


def test_real_pictures_are_whole_and_hits_are_the_targets(pictures):
    samples, labels = pictures
    q = quality_of(samples, 2)
    assert q.seen["whole"].all() and (q.seen["hit"] == (labels == 2)).all()
    assert len(q.hits) == (labels == 2).sum() and q.hits.codes.shape == (len(q.hits), 64)


def test_new_real_pictures_are_near_and_broken_ones_are_not(pictures, real):
    samples, labels = pictures
    near = quality_row(quality_of(samples, 0), real)
    sets = broken_pictures(SportBalls(), 24, seed=5)
    broken = {name: quality_row(quality_of(x, 0), real) for name, x in sets.items()}
    for name, row in broken.items():
        assert row["KID, all"] > 5 * abs(near["KID, all"]) and row["whole"] < 0.3, name
        assert row["Fréchet, all"] > near["Fréchet, all"], name
    assert np.isnan(broken["noise"]["KID among hits"]) and np.isnan(broken["noise"]["size off"])


def test_the_limit_lets_few_broken_pictures_pass_and_all_real_ones(pictures):
    passed = [(quality_of(x, 0).seen["whole"]).mean() for x in broken_pictures(SportBalls(), 24, seed=3).values()]
    assert np.mean(passed) <= 0.15 and quality_of(pictures[0], 0).seen["off"].max() < whole_limit() / 10


def test_a_planted_difference_is_found_and_none_is_not(pictures, real):
    samples, labels = pictures
    pale = (255 - (255 - samples.float()) * 0.6).round().byte()
    scale = real["all"].codes
    a, b, there = (to_scale(q.codes, scale) for q in (quality_of(pale, 0), quality_of(samples, 0), real["all"]))
    difference, p = kid_difference(a, b, there, swaps=300)
    assert difference > 0 and p < 0.05
    assert kid_difference(b, b, there, swaps=50) == (0, 1)


def table(**columns):
    seen = pd.DataFrame(columns).assign(whole=True, hit=True)
    return Quality(torch.zeros(len(seen), 64), seen)


def test_each_factor_is_a_distance_in_its_own_unit():
    rng = np.random.default_rng(0)
    base = dict(x=rng.integers(0, 32, 200), y=rng.integers(0, 32, 200), size=rng.choice([10, 13, 16], 200),
                strength=np.ones(200), tint=np.zeros(200), rotation=rng.integers(0, 360, 200), label=np.zeros(200, int))
    shifted = base | dict(x=base["x"] + 3, strength=0.8 * base["strength"])
    off = factor_distances(table(**shifted), table(**base))
    assert off["x off"] == pytest.approx(3) and off["strength off"] == pytest.approx(0.2)
    assert off["y off"] == off["size off"] == off["turn off"] == 0


def test_a_circle_has_no_end():
    rng = np.random.default_rng(1)
    a, b = rng.random(100), rng.random(80)
    assert circular_distance(a, a) == pytest.approx(0) and circular_distance((a + 0.4) % 1, (a + 0.4) % 1) < 1e-12
    assert circular_distance(a, b) == pytest.approx(circular_distance((a + 0.3) % 1, (b + 0.3) % 1))
    assert circular_distance(np.array([0.99]), np.array([0.01])) == pytest.approx(0.02)
    narrow = 0.4 + 0.1 * a, 0.45 + 0.1 * b
    assert circular_distance(*narrow) == pytest.approx(wasserstein_distance(*narrow))
    assert circular_distance(np.zeros(1), np.arange(1000) / 1000) == pytest.approx(0.25, abs=0.01)


def test_turns_are_told_up_to_symmetry():
    assert periods() == (180, 180, 120, 72)
    seen = pd.DataFrame(dict(label=[0, 0, 3, 3], rotation=[45, 225, 36, 108]))
    assert turns(seen).tolist() == pytest.approx([0.25, 0.25, 0.5, 0.5])


def test_bad_input(pictures):
    samples = pictures[0][:2]
    with pytest.raises(UserError, match="from 0 to 3"): quality_of(samples, 4)
    with pytest.raises(UserError, match="at least one"): quality_of(samples[:0], 0)
    with pytest.raises(UserError, match="takes float32 images"): quality_of(torch.zeros(2, 3, 96, 96).byte(), 0)
    with pytest.raises(UserError, match=r"\(N, 3, 64, 64\)"): quality_of(torch.zeros(2, 3, 8, 8).byte(), 0)
