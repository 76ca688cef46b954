import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from gradcheck.core import UserError
from gradcheck.data.sportballs import CLASSES, HELD_OUT, SportBalls, draw_ball, load_sprites, render_rotations

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def test_an_image_depends_on_its_index_and_the_seed_alone():
    data = SportBalls()
    whole, labels = data.batch(range(20))
    alone, label = data.batch([13])
    assert torch.equal(whole[13], alone[0]) and labels[13] == label[0]
    assert torch.equal(data[13][0], whole[13])
    assert not torch.equal(SportBalls(seed=1)[13][0], whole[13])


def test_published_geometry():
    f = SportBalls().factors(range(20_000))
    assert f["x"].min() == 0 and f["x"].max() == 31 and f["y"].min() == 0 and f["y"].max() == 31
    assert sorted(set(f["size"].flat)) == [10, 13, 16, 19, 22, 26]          # 32 px times 0.3 ... 0.8, in whole pixels
    assert set(f["rotation"].flat) == set(range(360))
    shares = np.bincount(f["label"].ravel()) / 20_000
    assert np.abs(shares - 0.25).max() < 4 * (0.25 * 0.75 / 20_000) ** 0.5


def test_independent_factors_are_independent_and_coupled_ones_are_not():
    def dependence(draws, name):
        "p-value of the independence of class and factor modulo 4 (sizes: their rank)."
        f = SportBalls(draws=draws).factors(range(8000))
        v = np.searchsorted(SportBalls().sizes, f[name].ravel()) if name == "size" else f[name].ravel() % 4
        return stats.chi2_contingency(np.histogram2d(f["label"].ravel(), v, bins=(4, len(set(v))))[0]).pvalue
    assert all(dependence("independent", n) > 1e-4 for n in ("x", "y", "rotation", "size"))
    assert (
        all(dependence("coupled", n) < 1e-100 for n in ("x", "rotation", "size")) and dependence("coupled", "y") > 1e-4
    )


def test_only_the_ball_is_painted():
    data = SportBalls()
    f, images = data.factors(range(50)), data.batch(range(50))[0]
    for n in range(50):
        x, y, s = f["x"][n, 0], f["y"][n, 0], f["size"][n, 0]
        outside = images[n].clone()
        outside[:, y:y + s, x:x + s] = 1
        assert (outside == 1).all() and (images[n] < 0.9).any()
    assert images.min() >= -1 and images.max() <= 1


@pytest.mark.parametrize("balls", [1, 3])
def test_a_mask_is_where_the_picture_is_not_white(balls):
    data = SportBalls(balls=balls)
    masks, images = data.masks(range(50)), data.batch(range(50))[0]
    assert (
        masks.dtype == torch.bool
        and torch.equal(masks, (images < 1).any(1))
        and torch.equal(data.masks([13])[0], masks[13])
    )
    discs = np.pi / 4 * (data.factors(range(50))["size"] + 1) ** 2  # and half a pixel around them
    assert (
        np.allclose(masks.sum((1, 2)), discs[:, 0], rtol=0.15)
        if balls == 1
        else (masks.sum((1, 2)).numpy() <= 1.15 * discs.sum(1)).all()
    )


def test_a_white_sprite_has_a_mask(tmp_path):
    pixels = np.zeros((64, 64, 4), np.uint8)
    # the right half of the square: white, and there
    pixels[:, 32:] = 255
    for name in "ab": Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    data = SportBalls(sprites=tmp_path)
    f, masks = data.factors(range(50)), data.masks(range(50))
    assert (data.batch(range(50))[0] == 1).all() and np.allclose(masks.sum((1, 2)), f["size"][:, 0] ** 2 / 2, rtol=0.35)


@pytest.mark.parametrize("name", CLASSES)
def test_rotations_are_rotations(name):
    turned = render_rotations(draw_ball(name), 26).astype(int)
    assert np.abs(np.rot90(turned[0]) - turned[90]).max() <= 2 or np.abs(np.rot90(turned[0]) - turned[270]).max() <= 2
    a = turned[30][..., 3]
    assert abs(a.sum() / 255 - np.pi * 13**2) < 0.01 * np.pi * 13**2          # the disc keeps its area
    assert ((a > 10) & (a < 245)).sum() > 20                                  # and has an anti-aliased edge


def test_balls_are_told_apart_at_16_px_by_pattern_alone():
    "Grey, with mean and contrast removed, any rotation: the nearest of 24 templates per class names the ball."
    def patterns(angles):
        out = []
        for name in CLASSES:
            grey = render_rotations(draw_ball(name), 16)[angles, 3:13, 3:13, :3].mean(-1).reshape(len(angles), -1)
            out.append((grey - grey.mean(1, keepdims=True)) / grey.std(1, keepdims=True))
        return np.concatenate(out)
    templates, queries = patterns(np.arange(0, 360, 15)), patterns(np.arange(7, 360, 15))
    nearest = (queries @ templates.T).argmax(1) // 24
    assert (nearest == np.repeat(range(4), 24)).mean() > 0.95


def test_older_variant_has_three_balls_and_a_binary_label():
    data = SportBalls(canvas=128, base=64, balls=3, target="contains soccer ball")
    images, labels = data.batch(range(5))                              # more would turn more balls
    assert images.shape == (5, 3, 128, 128) and set(labels.tolist()) == {0, 1}
    drawn = data.factors(range(400))["label"]
    has_one = torch.tensor((drawn == 3).any(1))
    assert torch.equal(labels, has_one[:5].long())
    assert torch.equal(torch.from_numpy(data.labels(drawn[:60])), has_one[:60].long())
    assert abs(has_one.float().mean() - (1 - 0.75**3)) < 0.1


def test_stream_is_resumable_and_parts_do_not_overlap():
    data = SportBalls()
    a, b = data.batches(8, seed=3), data.batches(8, seed=3, start=2)
    next(a), next(a)
    assert torch.equal(next(a)[0], next(b)[0])
    assert set(data.indices).isdisjoint(HELD_OUT)
    assert not torch.equal(data.part(HELD_OUT)[0][0], data[0][0])


def test_user_sprites(tmp_path):
    for name, color in (("a", (255, 0, 0, 255)), ("b", (0, 0, 255, 255))):
        Image.new("RGBA", (40, 40), color).save(tmp_path / f"{name}.png")
    data = SportBalls(sprites=tmp_path)
    assert data.classes == ("a", "b")
    images, labels = data.batch(range(30))
    red_in = (images[:, 0] > images[:, 2] + 1).flatten(1).any(1)
    assert torch.equal(red_in, labels == 0)


def test_sprites_of_one_name_are_refused(tmp_path):
    for kind in ("png", "webp"): Image.new("RGBA", (40, 40), (255, 0, 0, 255)).save(tmp_path / f"ball.{kind}")
    with pytest.raises(UserError, match="sprites 'ball.png' and 'ball.webp' have one name"): load_sprites(tmp_path)


def test_bad_input(tmp_path):
    with pytest.raises(UserError, match="independent"): SportBalls(draws="indepedent")
    with pytest.raises(UserError, match="no sprites"): SportBalls(sprites=tmp_path / "nowhere")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="is RGB, not RGBA"): SportBalls(sprites=tmp_path)
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="cannot be read"): SportBalls(sprites=tmp_path)
    with pytest.raises(IndexError): SportBalls()[100_000]
