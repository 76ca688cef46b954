"""A denoiser of one channel: its samples are scored against colour pictures, seen in grey."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import own_models

from gradcheck.data.images import Grey, ImageFolder
from gradcheck.data.sources import Real
from gradcheck.runs.runs import run
from gradcheck.runs.scores import real_floor, score
from gradcheck.runs.specs import RunSpec


@pytest.fixture
def pictures(tmp_path):
    "Two classes of 40 noisy pictures, 16 x 16, in colour."
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(40):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{k}.png")
    return tmp_path / "data"


def test_colour_in_grey(pictures):
    data = ImageFolder(pictures, 16)
    grey, labels = Grey(data).batch(range(6))
    colour, same = data.batch(range(6))
    assert grey.shape == (6, 1, 16, 16) and torch.equal(labels, same)
    assert torch.allclose(grey[:, 0], colour.mean(1))
    assert len(Grey(data).held_out) == len(data.held_out)
    assert Grey(data).held_out.batch([0])[0].shape == (1, 1, 16, 16)


def test_grey_samples_have_a_row_of_table_1(pictures, tmp_path):
    mine = own_models(tmp_path, channels=1, names=("cat", "dog"))
    judge = mine["classifier"]
    spec = RunSpec(**mine, judge=judge, start="standard", steps=3, count=4)
    real = Real(str(pictures), 16, 40, judge, channels=spec.shape[0])
    row = score(run(spec, 4), real)
    floor = real_floor(real, 0, 4)
    assert np.isfinite([row["FID (judge), all"], row["precision (judge)"], floor["FID (judge), all"]]).all()
    assert np.isnan(floor["precision (judge)"])                             # four are kept back of the class
