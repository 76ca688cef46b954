"""The oracle: on drawings whose factors are known, and on what is no ball."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gradcheck.core import UserError
from gradcheck.data.sportballs import SportBalls
from gradcheck.pictures import images_to_uint8, uint8_to_images
from gradcheck.runs.oracle import STEP, oracle, periods, templates


def squared_distances(darkness, balls):
    """The least squared distance over all places, (N, templates), from pictures (N, 3, H, W) to templates
    (templates, 3, s, s), both as darkness; and the index of that place."""
    inner = F.conv2d(darkness, balls).flatten(2)
    best = inner.max(2)
    whole = darkness.square().sum((1, 2, 3))[:, None] + balls.square().sum((1, 2, 3))
    return whole - 2 * best.values, best.indices


@pytest.fixture(scope="module")
def drawn():
    data = SportBalls().held_out
    images, labels = data.batch(range(40))
    return images_to_uint8(images), labels.numpy(), data.factors(range(40))["size"][:, 0]


def test_it_knows_every_drawing(drawn):
    samples, labels, sizes = drawn
    seen = oracle(samples)
    assert (seen["label"] == labels).all() and (seen["size"] == sizes).all()
    assert np.allclose(seen["rms"], seen[[f"rms {k}" for k in range(4)]].min(axis=1))


def test_it_knows_place_and_turn(drawn):
    factors = {name: v[:, 0] for name, v in SportBalls().held_out.factors(range(40)).items()}
    seen = oracle(drawn[0])
    assert (seen["x"] == factors["x"]).all() and (seen["y"] == factors["y"]).all()
    period = np.array(periods())[drawn[1]]
    apart = np.abs((seen["rotation"] - factors["rotation"] + period / 2) % period - period / 2)
    assert apart.max() <= 3                                   # degrees: neighbours are nearly the same picture
    assert np.allclose(seen["strength"], 1, atol=0.02) and seen["tint"].max() < 0.01 and seen["off"].max() < 0.05


def test_looking_for_the_place_first_finds_what_looking_everywhere_does(drawn):
    "On noisy, pale and blended pictures, against every rotation at every place."
    data = SportBalls()
    rng = torch.Generator().manual_seed(0)
    noisy = drawn[0][:8].float() * 0.7 + drawn[0][8:16].float() * 0.3 + 15 * torch.randn(8, 3, 64, 64, generator=rng)
    samples = noisy.clamp(0, 255).round().byte()
    darkness = (1 - uint8_to_images(samples)) / 2
    everywhere = [squared_distances(darkness, templates(None, s))[0].unflatten(1, (4, -1)).amin(2) for s in data.sizes]
    least = torch.stack(everywhere).amin(0)
    seen = oracle(samples)
    assert seen["label"].tolist() == least.argmin(1).tolist()
    rms = (least.amin(1) / darkness[0].numel()).sqrt() * 255
    assert (seen["rms"].to_numpy() <= 1.01 * rms.numpy()).all()


def test_pale_and_tinted_balls_are_told(drawn):
    pale = (255 - (255 - drawn[0][:6].float()) * 0.7).round().byte()
    seen = oracle(pale)
    assert np.allclose(seen["strength"], 0.7, atol=0.03) and seen["tint"].max() < 0.02
    red = drawn[0][:6].clone()
    red[:, 0] = (255 - (255 - red[:, 0].float()) * 0.6).round().byte()
    assert oracle(red)["tint"].min() > 0.05


def test_pictures_as_small_as_the_largest_ball_and_oblong_ones():
    data = SportBalls()
    ball = templates(None, max(data.sizes))[5]
    for height, width in ((26, 26), (26, 40), (27, 26)):
        picture = torch.zeros(1, 3, height, width)
        picture[0, :, height - 26:, width - 26:] = ball
        seen = oracle(images_to_uint8(1 - 2 * picture)).iloc[0]
        assert (seen["label"], seen["size"], seen["y"], seen["x"]) == (0, 26, height - 26, width - 26)
        assert seen["rotation"] % 180 == 50


def test_at_a_template_the_distance_is_zero_and_elsewhere_that_of_the_pixels():
    balls = templates(None, 16)
    picture = torch.zeros(1, 3, 32, 32)
    picture[0, :, 5:21, 9:25] = balls[7]
    distance, place = squared_distances(picture, balls)
    assert distance[0, 7] < 1e-3 and place[0, 7] == 5 * 17 + 9
    other = torch.zeros(1, 3, 32, 32)
    k = place[0, 100].item()
    other[0, :, k // 17:k // 17 + 16, k % 17:k % 17 + 16] = balls[100]
    assert torch.isclose(distance[0, 100], (picture - other).square().sum(), rtol=1e-4)


def test_a_blank_and_a_broken_picture_are_far_from_every_drawing(drawn):
    samples = drawn[0]
    blank = torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
    torn = samples[:1].clone()
    torn[:, :, :, ::2] = 255
    whole = oracle(samples)["rms"].max()
    assert oracle(torn)["rms"][0] > whole and oracle(blank)["rms"][0] > whole


def test_turns_between_templates_cost_little(drawn):
    assert oracle(drawn[0], step=STEP)["rms"].max() < 15


def test_small_pictures_are_refused():
    with pytest.raises(UserError, match="its balls are up to"):
        oracle(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
