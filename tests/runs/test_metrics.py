"""Fréchet distance, precision and recall, and the ball finder against closed forms and the generator's own factors."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import generator
from PIL import Image
from scipy.linalg import sqrtm
from torchmetrics.image.fid import FrechetInceptionDistance

from gradcheck.models.checkpoints import load_classifier
from gradcheck.core import UserError, seeded
from gradcheck.models.catalogue import open_classifier
from gradcheck.models.ddpm import DDPM
from gradcheck.runs import scores
from gradcheck.runs.evaluation import accuracy_by_t
from gradcheck.runs.metrics import (
    FID,
    draws_with_replacement,
    find_balls,
    inception_features,
    inception_path,
    judge_features,
    load_inception,
    precision_recall,
    resampled_fid,
)
from gradcheck.pictures import images_to_uint8
from gradcheck.runs.runs import run
from gradcheck.runs.scores import no_floor, real_floor, references, score
from gradcheck.data.sources import Real
from gradcheck.runs.specs import RunSpec
from gradcheck.data.sportballs import HELD_OUT, SportBalls

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def balls(count): return Real("sportballs", 64, count, "laptop/judge")


def normals(n, d, seed): return torch.randn(n, d, dtype=torch.float64, generator=generator(seed))


def frechet(mean_r, cov_r, mean_f, cov_f):
    return ((mean_r - mean_f) ** 2).sum() + np.trace(cov_r + cov_f - 2 * sqrtm(cov_r @ cov_f).real)


def test_fid_of_gaussians_with_known_distance():
    a, b = np.random.default_rng(0).normal(size=(2, 6, 6))
    shift = np.arange(6) / 2
    real, fake = (
        normals(200_000, 6, 0) @ torch.tensor(a.T),
        normals(200_000, 6, 1) @ torch.tensor(b.T) + torch.tensor(shift),
    )
    expected = frechet(np.zeros(6), a @ a.T, shift, b @ b.T)
    assert abs(FID(real)(fake) / expected - 1) < 0.01
    assert abs(FID(real)(real)) < 1e-6


class Given(torch.nn.Identity):
    "What torchmetrics takes for a network: the features are there already."
    num_features = None


def by_torchmetrics(real, fake):
    network = Given()
    network.num_features = real.shape[1]
    metric = FrechetInceptionDistance(network).set_dtype(torch.float64)
    for features, is_real in ((real, True), (fake, False)): metric.update(features, real=is_real)
    return metric.compute().item()


@pytest.mark.parametrize("n, d", [(20, 50), (200, 8)])
def test_resampled_fid_is_the_fid_of_the_resample_and_that_of_torchmetrics(n, d):
    real, fake = normals(500, d, 2), 1.5 * normals(n, d, 3) + 0.3
    rows, fid = draws_with_replacement(n, 6), FID(real)
    assert (
        (rows[0] == np.arange(n)).all()
        and len({tuple(r) for r in rows}) == 6
        and (draws_with_replacement(n, 6) == rows).all()
    )
    found = resampled_fid(fid, fake, rows)
    assert np.allclose(found, [fid(fake[r]) for r in rows], rtol=1e-6)
    assert np.allclose(found, [by_torchmetrics(real, fake[r]) for r in rows], rtol=1e-4)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_images_have_no_distance(n):
    real = normals(50, 5, 6)
    assert np.isnan(FID(real)(real[:n]))
    assert np.isnan(resampled_fid(FID(real), real[:n], np.zeros((3, n), int))).all()


def test_features_that_are_not_finite_have_no_distance():
    real = normals(50, 5, 7)
    for broken in (float("nan"), float("inf")):
        fake = real.clone()
        fake[3, 2] = broken
        assert np.isnan(FID(real)(fake))
        assert np.isnan(resampled_fid(FID(real), fake, draws_with_replacement(50, 3))).all()


@pytest.mark.parametrize("count", [1, 2, 3, 10**6])
def test_a_floor_of_few_or_too_many_images(count):
    floor = real_floor(balls(60), 0, count)
    assert np.isnan(floor["FID (judge), all"]) == (count in (1, 10**6))


def test_a_floor_is_of_as_many_images_and_holds_them_against_others():
    real = balls(120)
    n = len(references(real, 0)["judge"].held_out["target"])
    pair, one, many = (real_floor(real, 0, count) for count in (n // 2, n // 2 + 1, n + 1))
    assert no_floor(pair, n // 2) == "" and no_floor(many, n + 1) == (
        f"No floor: the data hold back fewer than {n + 1} pictures of this class."
    )
    assert no_floor(real_floor(real, 0, 1), 1) == "No floor: one image has no distance."
    precision, distance = "precision (judge)", "FID (judge), target"
    assert np.isfinite([pair[precision], pair[distance], one[distance]]).all()
    assert np.isnan([one[precision], one["recall (judge)"]]).all()
    assert np.isnan([*many.values()]).all() and many.keys() == pair.keys()


def test_a_floor_of_no_images_is_refused():
    for count in (0, -1):
        with pytest.raises(UserError, match="at least 1"): real_floor(balls(60), 0, count)


COLOURS = """
import torch
class Mean(torch.nn.Module):
    class_names = {names}
    def forward(self, x): return x.mean((2, 3))
def make(): return Mean()
"""


def coloured(folder, names, count=20):
    "Pictures of pure colours in a folder per class, and a classifier whose logits are red, green and blue."
    for k, name in enumerate(("red", "green", "blue")):
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(count):
            colour = tuple(100 + 5 * i if c == k else 0 for c in range(3))
            Image.new("RGB", (16, 16), colour).save(folder / "pictures" / name / f"{i}.png")
    (folder / "own.py").write_text(COLOURS.format(names=names), encoding="utf-8")
    return Real(str(folder / "pictures"), 16, 60, f"{folder}/own.py:make")


def test_distances_are_to_the_class_of_that_name_whatever_the_folders_order(tmp_path):
    real = coloured(tmp_path, ["red", "green", "blue"])
    assert list(real.open().label_names) == ["blue", "green", "red"]
    for k in range(3):
        features = references(real, k)["judge"].data["target"]
        assert len(features) > 1 and (features.argmax(1) == k).all()
    table = accuracy_by_t(
        {"mean": open_classifier(real.judge)}, DDPM(), real.open(), times=(-1,), classes=["red", "green", "blue"]
    )
    assert table.loc[-1, "mean"] == 1


def test_classes_that_data_do_not_have_are_refused(tmp_path):
    real = coloured(tmp_path, ["red", "green", "yellow"])
    with pytest.raises(UserError, match="same classes, called the same"): references(real, 0)


def test_a_class_with_too_few_pictures_is_named(tmp_path):
    real = replace(coloured(tmp_path, ["red", "green", "blue"]), count=1)
    with pytest.raises(UserError, match="too few for a Fréchet distance"): references(real, 0)


def test_fid_keeps_its_reference_between_calls():
    fid, fake = FID(normals(300, 5, 4)), normals(50, 5, 5)
    assert fid(fake) == fid(fake) and fid(fake + 3) > fid(fake) + 40


def test_precision_and_recall_on_a_line():
    real = torch.arange(10.0)[:, None]                                     # nearest neighbours are 1 apart
    assert precision_recall(real, real, k=1) == (1, 1)
    fake = torch.tensor([[0.5], [9.9], [12.0], [13.0]])                    # two within reach of a real one, two not
    precision, recall = precision_recall(real, fake, k=1)
    assert precision == 0.5
    # 0.5 reaches 9.4 far, down to 0; 9.9 reaches up from 7.8
    assert recall == 1.0
    collapsed = torch.tensor([[4.0], [4.1], [4.2]])
    assert precision_recall(real, collapsed, k=1) == (1.0, 0.1)            # all real, but one place only
    assert all(np.isnan(v) for v in precision_recall(real[:2], fake[:2], k=3))


def test_balls_where_the_generator_put_them():
    data = SportBalls(HELD_OUT)
    known, found = data.factors(range(400)), find_balls(images_to_uint8(data.batch(range(400))[0]))
    assert found["one_ball"].all() and (found["patches"] == 1).all()
    for name, true in (
        ("size", known["size"]),
        ("x", known["x"] + known["size"] / 2),
        ("y", known["y"] + known["size"] / 2),
    ):
        assert np.abs(found[name] - true[:, 0]).max() < 1.5, name


def test_what_is_not_one_ball():
    yy, xx = np.mgrid[:64, :64]
    def picture(*balls):
        image = np.full((3, 64, 64), 255, np.uint8)
        for x, y, r in balls: image[:, (xx - x) ** 2 + (yy - y) ** 2 <= r**2] = 40
        return image
    bar = picture()
    bar[:, 30:34, 5:60] = 40
    faint = picture((30, 30, 8)).astype(int)
    pictures = [
        picture(),
        picture((20, 20, 8)),
        picture((16, 16, 8), (45, 45, 6)),
        bar,
        np.maximum(faint, 240).astype(np.uint8),
        picture((20, 20, 2)),
    ]
    found = find_balls(torch.from_numpy(np.stack(pictures)))
    assert found["one_ball"].tolist() == [False, True, False, False, False, False]
    assert (
        found["patches"].tolist() == [0, 1, 2, 1, 0, 0]
        and abs(found["size"][1] - 16) < 1
        and abs(found["x"][2] - 16.5) < 0.6
    )


def test_judge_features_are_what_its_last_layers_see():
    judge, x = load_classifier("laptop/judge"), SportBalls().batch(range(20))[0]
    features = judge_features(judge, x, batch=7)
    assert features.shape == (20, 576) and torch.allclose(judge.classifier(features), judge(x), atol=1e-3)


class Net(torch.nn.Module):
    "A classifier with parts that it calls as `called` says: a function of it and images."
    def __init__(self, called):
        super().__init__()
        self.features = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 4, 4), torch.nn.Flatten())
        self.head = torch.nn.Linear(5, 2)
        self.spare = torch.nn.Linear(9, 9)
        self.called = called

    def forward(self, x): return self.called(self, x)


JUDGES = {   # what it calls -> (how, the width of its features)
    "features that are flat": (lambda net, x: net.head(net.features(x)), 5),
    "features of normalised images": (lambda net, x: net.head(net.features(x / 2 + 3)), 5),
    "its head for each quarter": (lambda net, x: net.head(torch.cat([net.features(x)] * 4)).view(4, -1, 2).mean(0), 2),
    "its head twice": (lambda net, x: net.head(net.features(x)) + net.head(net.features(-x)), 2),
    "no linear layer": (lambda net, x: x.flatten(1)[:, :3], 3),
}


@pytest.mark.parametrize("what", JUDGES)
def test_features_of_a_judge_of_yours_are_what_its_last_linear_layer_was_given(what):
    called, width = JUDGES[what]
    with seeded(0): net = Net(called)
    x = torch.rand(5, 3, 4, 4, generator=generator()) * 2 - 1
    features = judge_features(net, x, batch=2)
    assert features.shape == (5, width)
    assert torch.allclose(net.head(features) if width == 5 else features, net(x), atol=1e-6)
    assert not any(m._forward_pre_hooks for m in net.modules())


class Stub(torch.nn.Module):
    "The interface of inception-2015-12-05.pt, with features that are easy to check."
    def forward(self, images: torch.Tensor, return_features: bool = False):
        return images.float().mean((2, 3)).repeat(1, 4) if return_features else images.float()


@pytest.fixture
def inception(tmp_path, monkeypatch):
    torch.jit.script(Stub()).save(str(tmp_path / "inception.pt"))
    monkeypatch.setenv("GRADCHECK_INCEPTION", str(tmp_path / "inception.pt"))
    scores._references.cache_clear()
    yield tmp_path / "inception.pt"
    scores._references.cache_clear()


def test_inception_stands_in_columns_of_its_own(inception):
    x = SportBalls().batch(range(5))[0]
    assert torch.allclose(
        inception_features(load_inception(), x, batch=2)[:, :3], ((x + 1) * 127.5).mean((2, 3)), atol=0.01
    )
    row = score(run(RunSpec(steps=2, count=4), 4), balls(200))
    assert {"FID (judge), all", "FID (judge), target", "FID (Inception), all", "FID (Inception), target"} <= set(
        row
    ) and not any(k.startswith("FID,") or k == "FID" for k in row)
    assert row["FID (Inception), all"] != row["FID (judge), all"] and set(real_floor(balls(200), 0, 4)) >= {
        "FID (Inception), all",
        "FID (judge), target",
    }


def test_inception_sees_numbers_beyond_one_as_one(inception):
    features = inception_features(load_inception(), torch.tensor([-1.05, 1.05])[:, None, None, None].expand(2, 1, 8, 8))
    assert (features[0] == 0).all() and (features[1] == 255).all()


def test_inception_is_looked_for_where_the_command_is_given(tmp_path, monkeypatch):
    "A figure's notebook runs elsewhere."
    for name in ("command", "notebook"): (tmp_path / name).mkdir()
    (tmp_path / "command" / "inception.pt").write_text("")
    monkeypatch.setenv("GRADCHECK_INCEPTION", "inception.pt")
    monkeypatch.setenv("GRADCHECK_FOLDER", str(tmp_path / "command"))
    monkeypatch.chdir(tmp_path / "notebook")
    assert inception_path() == tmp_path / "command" / "inception.pt"


def test_inception_files_that_are_none(tmp_path, monkeypatch):
    monkeypatch.delenv("GRADCHECK_INCEPTION", raising=False)
    assert load_inception(folder=tmp_path) is None
    (tmp_path / "x.pt").write_text("no network")
    for path in (tmp_path / "x.pt", tmp_path / "nowhere.pt"):
        with pytest.raises(UserError, match="TorchScript"): load_inception(path)


def test_a_row_of_scores(tmp_path):
    r = run(RunSpec(classifier="laptop/robust", where="x0_hat", steps=6, count=8), 8)
    row = score(r, balls(400))
    assert (
        row["energy"] == pytest.approx(r.trace["energy"].sum(0).mean().item())
        and 0 <= row["recall (judge)"] <= 1
        and 0 <= row["one ball"] <= 1
    )
    assert row["accuracy (judge)"] == (r.judge.argmax(1) == 0).double().mean().item() and row["FID (judge), target"] > 0
    low, high = real_floor(balls(400), 0, 8), real_floor(balls(1000), 0, 64)
    assert 0 < high["FID (judge), target"] < low["FID (judge), target"]                    # fewer images, higher floor
