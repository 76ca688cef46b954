"""The oracle: on drawings whose factors are known, and on what is no ball."""

import numpy as np
import pytest
import torch

from gradcheck.core import UserError
from gradcheck.data.sportballs import SportBalls
from gradcheck.pictures import images_to_uint8
from gradcheck.runs.oracle import STEP, oracle, squared_distances, templates


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
