"""A data set of somebody's own: each batch is looked at before anything is made of it."""
import numpy as np
import pytest
import torch

from gradcheck.core import UserError
from gradcheck.data.sources import open_data

OWN = """import numpy as np
import torch
from gradcheck.data.images import ImageData

class Mine(ImageData):
    canvas, label_names, identity = 16, ("a", "b"), {}
    indices = np.arange(6)
    held_out = property(lambda self: self.part(np.arange(4)))

    def batch(self, i):
        n = len(i)
        x, y = torch.linspace(-1, 1, n * 3 * 256).view(n, 3, 16, 16), torch.arange(n) % 2
        return ...
"""
FAULTS = {
    "x * 127.5 + 127.5, y": "values from 0 to 255; give numbers in .-1, 1.",
    "x * float('nan'), y": "images with NaN or infinity",
    "((x + 1) * 127).to(torch.uint8), y": "images of torch.uint8; give floats",
    "x.numpy(), y": "images as a ndarray; give a tensor",
    "x[:, :1], y": r"images of shape \(4, 1, 16, 16\); give \(4, 3, 16, 16\)",
    "x[:1], y": r"images of shape \(1, 3, 16, 16\)",
    "x, y + 1": "labels from 1 to 2; there are 2 classes, from 0",
    "x, y - 1": "labels from -1 to 0",
    "x, y.float()": "labels of torch.float32; give integers",
    "x, list(y)": "labels as a list",
    "x, y[:, None]": r"labels of shape \(4, 1\); give \(4,\)",
    "x": "failed .*ValueError.*",
    "{}['lost']": "failed .KeyError: 'lost', .*mine.py, line 13",
    "exit(3)": "failed .SystemExit: 3",
}


@pytest.fixture
def mine(tmp_path):
    "A data set whose batches are an expression of x and y."
    def make(returned):
        (tmp_path / "mine.py").write_text(OWN.replace("...", returned), encoding="utf-8")
        return open_data(f"{tmp_path}/mine.py:Mine", 16)
    return make


@pytest.mark.parametrize("returned", FAULTS)
@pytest.mark.parametrize("part", ["images", "held out"])
def test_a_batch_that_is_none_is_a_sentence(mine, returned, part):
    data = mine(returned)
    with pytest.raises(UserError, match=f"mine.py:Mine' .*{FAULTS[returned]}"):
        (data if part == "images" else data.held_out).batch(range(4))


@pytest.mark.parametrize("returned", ["x, y", "x.double(), y.int()", "x * 1.05, y.bool()", "x.half(), y"])
def test_what_can_be_read_as_it_was_meant_is(mine, returned):
    data = mine(returned)
    assert data.label_names == ("a", "b") and len(data) == 6 and len(data.held_out) == 4
    for part in (data, data.held_out):
        images, labels = part.batch(np.arange(2))
        assert images.dtype == torch.float32 and labels.dtype == torch.int64
        assert labels.tolist() == [0, 1] and images.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("held, message", [
    ("None", "mine.py:Mine' has no held_out; give the images that are held out"),
    ("[1, 2]", "held_out of the data set .*mine.py:Mine' is a list; give an ImageData"),
    ("self.part(np.arange(0))", "has no held-out images"),
])
def test_what_is_held_out_is_looked_at(tmp_path, held, message):
    text = OWN.replace("...", "x, y").replace("self.part(np.arange(4))", held)
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message): open_data(f"{tmp_path}/mine.py:Mine", 16)
