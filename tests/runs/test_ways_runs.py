"""The field's ways as runs: two classifiers, other samplers, and the best of N candidates."""
from dataclasses import replace

import pytest
import torch
from tiny import own_models

from gradcheck.core import UserError, seeded
from gradcheck.guidance.gradients import cosine
from gradcheck.guidance.sampling import NonFinite
from gradcheck.guidance.ways import cone
from gradcheck.models.networks import gradient_of
from gradcheck.runs.chunks import probabilities_of
from gradcheck.runs.cluster import portable
from gradcheck.runs.runs import compute, guidance_of, run, steps_of
from gradcheck.runs.specs import RunSpec

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def spec(tmp_path):
    with seeded(0): names = own_models(tmp_path)
    (tmp_path / "other.py").write_text((tmp_path / "mine.py").read_text().replace("ReLU", "Tanh"), encoding="utf-8")
    return RunSpec(**names, judge=None, start="standard", steps=4, count=3, target=1, scale=2.0)


def steps(spec, images=range(3)): return list(steps_of(spec, images))


def test_the_best_of_n_is_the_best_of_an_unguided_run_in_groups(spec):
    unguided = replace(spec, where="unguided")
    best = run(replace(unguided, candidates=3))
    all_of_them = run(replace(unguided, count=9))
    kept = all_of_them.guide[:, 1].view(3, 3).argmax(1) + 3 * torch.arange(3)
    assert torch.equal(best.samples, all_of_them.samples[kept]) and torch.equal(best.guide, all_of_them.guide[kept])
    for name, values in best.trace.items():
        assert values.shape == (4, 3)
        if name != "cosine_null": assert torch.equal(values.nan_to_num(), all_of_them.trace[name][:, kept].nan_to_num())
    assert best.guide[:, 1].mean() > all_of_them.guide[:, 1].mean() and (best.energy == 0).all()
    # in chunks as at once
    alone = compute(replace(unguided, candidates=3), range(1, 2))
    assert torch.equal(alone["samples"], best.samples[1:2])


def test_labels_of_their_own_are_chosen_and_told_each_by_itself(tmp_path):
    "Where the other label grows threefold, the best has the largest sigmoid; a softmax would take the least."
    names = own_models(tmp_path)
    (tmp_path / "mine.py").write_text(LABELS, encoding="utf-8")
    spec = RunSpec(**names, judge=None, start="standard", steps=4, count=6, where="unguided", objective="multilabel")
    best, all_of_them = run(replace(spec, candidates=3, count=2)), run(spec)
    groups = all_of_them.guide[:, 0].view(2, 3)
    assert torch.equal(best.guide[:, 0], groups.max(1).values)
    bright = (all_of_them.samples.float() / 127.5 - 1).mean((1, 2, 3))
    assert torch.allclose(all_of_them.guide[:, 0], (10 * bright).sigmoid(), atol=1e-4)
    assert spec.key != replace(spec, candidates=3).key


LABELS = """import torch
from torch import nn
class Labels(nn.Module):
    def __init__(self):
        super().__init__()
        self.k = nn.Parameter(torch.tensor([10.0, 30.0, 0.0, 0.0]))
    def forward(self, x): return x.mean((1, 2, 3))[:, None] * self.k
def make(): return Labels()
"""
def test_an_answer_that_is_nan_is_a_sentence(spec):
    "At the end, where it would be chosen, and on the way, where its gradient is zero."
    logits = torch.tensor([[0.0, 1.0], [float("nan"), 0.0], [float("inf"), 0.0]])
    with pytest.raises(NonFinite, match="answers pictures that the denoiser makes with NaN"):
        probabilities_of(spec, {"guide": logits[:1], "judge": logits})
    class Dead(torch.nn.Module):
        def forward(self, x): return torch.where(x.mean((1, 2, 3)) > 0, 0 * x.sum((1, 2, 3)), float("nan"))[:, None]
    x = torch.ones(2, 3, 4, 4) * torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    gradient = gradient_of(lambda x: Dead()(x)[:, 0], x)
    assert (gradient[0] == 0).all() and gradient[1].isnan().all()


def test_a_cone_asks_both_classifiers(spec, tmp_path):
    other = f"{tmp_path / 'other.py'}:make"
    both = replace(spec, where="x_t_cone", robust=other)
    turned, plain, robust = (steps(s)[0].gradient for s in (both, spec, replace(spec, classifier=other)))
    assert torch.allclose(turned, cone(plain, robust), atol=1e-6)
    assert not torch.allclose(cosine(turned, plain), torch.ones(3))
    assert set(both.digests) == {"denoiser", "classifier", "judge", "robust"}
    assert portable(both).robust == other and portable(both).key == both.key
    with pytest.raises(UserError, match="the guide itself"): replace(both, robust=spec.classifier)
    assert both.key != spec.key


@pytest.mark.parametrize("fields", [
    dict(where="x0_hat_mean_4", sampler="mpgd"),
    dict(where="x0_hat", sampler="dsg", stabilizer="unit", scale=0.5),
    dict(where="x0_hat_monte_carlo"),
    dict(where="x_t_augmented"),
    dict(where="x0_hat_polyak", scale=0.01),
    dict(where="x0_hat_mean", sampler="mpgd", interval=(40, 20), repeats=2),
], ids=lambda fields: " ".join(map(str, fields.values())))
def test_a_way_runs_and_an_image_is_the_same_in_any_chunk(fields, spec):
    way = replace(spec, **fields)
    whole = run(way, chunk=16)
    assert torch.equal(run(way, chunk=16).samples, whole.samples)
    alone = compute(way, range(2, 3))
    assert torch.equal(alone["samples"], whole.samples[2:]) and whole.energy.isfinite().all()
    assert (whole.energy > 0).all() and not torch.equal(whole.samples, run(replace(spec, where="unguided")).samples)


def test_the_ascent_of_a_run_goes_by_its_scale(spec):
    fast, slow = (replace(spec, where="x0_hat_mean_4", sampler="mpgd", scale=s) for s in (3.0, 0.001))
    once = replace(slow, where="x0_hat_mean")
    first = [steps(s)[0].gradient for s in (fast, slow, once)]
    assert torch.allclose(first[1], 4 * first[2], rtol=1e-2, atol=1e-4)
    assert not torch.allclose(first[0], first[1], rtol=1e-2, atol=1e-4)
    assert guidance_of(fast).scale == 3.0
