"""How many images a network is given: whole tiles, or as they come."""
import pytest
import torch

from gradcheck.core import image_generators, randn
from gradcheck.guidance.sampling import UNGUIDED, Guidance, guided_steps, sample
from gradcheck.models.batches import TILE, MicroBatch, as_micro_batch
from gradcheck.models.ddpm import DDPM


class Counting:
    "A denoiser that remembers how many images it was given."
    prediction = "sample"

    def __init__(self): self.sizes = []

    def __call__(self, x, t):
        self.sizes.append(len(x))
        return 0.5 * x


def logits(x): return torch.stack([x.sum((1, 2, 3)), x[:, 0, 0, 0]], 1)


def sizes(n, guidance=UNGUIDED, **asked):
    "The sizes of a denoiser's batches in two steps of n images."
    denoiser, generators = Counting(), image_generators(0, range(n))
    sample(DDPM(T=5), denoiser, guidance, randn((n, 3, 4, 4), generators), generators, steps=2, **asked)
    return denoiser.sizes


@pytest.mark.parametrize("n", [1, 4, 8, 20])
@pytest.mark.parametrize("guidance", [UNGUIDED, Guidance(logits, 0)])
def test_images_go_through_as_they_come_unless_whole_tiles_are_asked_for(n, guidance):
    tiles = -(-n // TILE) * TILE
    assert sizes(n, guidance) == [n, n]
    assert sizes(n, guidance, micro_batch=64) == sizes(n, guidance, micro_batch=MicroBatch()) == [tiles, tiles]


def test_many_images_as_they_come_are_parted_all_the_same():
    assert sizes(150) == [64, 64, 22] * 2


def test_an_own_micro_batch_is_taken_as_it_is():
    mine = MicroBatch(2, tile=2)
    assert as_micro_batch(mine) is mine and sizes(3, micro_batch=mine) == [2, 2, 2, 2]


def test_as_they_come_the_pictures_are_the_same():
    denoiser, generators = Counting(), lambda: image_generators(0, range(5))
    x_T = randn((5, 3, 4, 4), generators())
    loose, whole = (
        list(guided_steps(DDPM(T=5), denoiser, Guidance(logits, 0), x_T, generators(), micro_batch=asked))[-1]
        for asked in (None, 64)
    )
    assert torch.allclose(loose.x_prev, whole.x_prev, atol=1e-6)
