"""A denoiser of one channel: its samples are scored against colour pictures, seen in grey."""

import numpy as np
import pytest
import torch
from PIL import Image

from gradcheck.data.images import Grey, ImageFolder
from gradcheck.data.sources import Real
from gradcheck.runs.runs import run
from gradcheck.runs.scores import real_floor, score
from gradcheck.runs.specs import RunSpec

CLASSIFIER = """
import torch

def make():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, 2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
                              torch.nn.Flatten(), torch.nn.Linear(8, 2))
    net.class_names = ["cat", "dog"]
    return net
"""


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
    diffusers = pytest.importorskip("diffusers")
    net = diffusers.UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=10)
    diffusers.DDPMPipeline(net, scheduler).save_pretrained(tmp_path / "pipeline", safe_serialization=True)
    (tmp_path / "mine.py").write_text(CLASSIFIER, encoding="utf-8")
    mine = f"{tmp_path / 'mine.py'}:make"
    spec = RunSpec(denoiser=str(tmp_path / "pipeline"), classifier=mine, judge=mine, start="standard", steps=3, count=4)
    real = Real(str(pictures), 16, 40, mine, channels=spec.shape[0])
    row = score(run(spec, 4), real)
    floor = real_floor(real, 0, 4)
    for column in ("FID (judge), all", "precision (judge)"): assert np.isfinite([row[column], floor[column]]).all()
