"""What the cache keeps is the same to the bit on one core and on two, in a last chunk of a few images too."""
import pytest
import torch

from gradcheck.models.networks import use_threads
from gradcheck.paper.settings import spec_for
from gradcheck.runs.runs import compute


@pytest.mark.parametrize("images", [range(16), range(16, 19)])
def test_a_chunk_is_the_same_bits_in_one_thread_and_in_two(images):
    spec = spec_for("laptop", "nonrobust", "plain", steps=2, count=19)
    made = []
    for threads in (1, 2):
        with use_threads(threads): made.append(compute(spec, images))
    one, two = made
    assert [k for k in one if not torch.equal(one[k].nan_to_num(9), two[k].nan_to_num(9))] == []
