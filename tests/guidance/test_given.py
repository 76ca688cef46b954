"""What a person gives in Python, and cannot be meant, is refused in one sentence before anything is computed."""

import numpy as np
import pytest
import torch
from test_guidance import Logits, Net

from gradcheck.core import UserError, image_generators, own_seeds, randn
from gradcheck.guidance.objectives import OBJECTIVES
from gradcheck.guidance.samplers import DDIM
from gradcheck.guidance.sampling import (
    UNGUIDED,
    WHERE,
    Ancestral,
    Guidance,
    Interval,
    NonFinite,
    guided_steps,
    sample,
    smoothed,
)
from gradcheck.guidance.ways import in_cone, monte_carlo
from gradcheck.models.checkpoints import load_denoiser
from gradcheck.models.ddpm import DDPM
from gradcheck.pictures import image_grid, images_to_uint8, save_png, uint8_to_images
from gradcheck.runs.specs import RunSpec

NAN = float("nan")


def x_T(count=2): return randn((count, 3, 6, 6), torch.Generator().manual_seed(0)).double()


def sampled(denoiser=None, guidance=None, x=None, generator=None, **others):
    "Three steps of something tiny, of which one part is given."
    others = {"steps": 3} | others
    return sample(
        DDPM(),
        denoiser or Net("sample"),
        UNGUIDED if guidance is None else guidance,
        x_T() if x is None else x,
        torch.Generator().manual_seed(1) if generator is None else generator,
        **others,
    )


PARTS = [
    (dict(classifier="laptop/robust"), "classifier is 'laptop/robust'"),
    (dict(objective="logit"), "objective is 'logit'"),
    (dict(objective=None), "objective is None"),
    (dict(where="x_t"), "where is 'x_t'"),
    (dict(scale="1"), "scale is '1'"),
    (dict(scale=None), "scale is None"),
    (dict(scale=True), "scale is True"),
    (dict(scale=1j), "scale is 1j"),
    (dict(scale=[1, 2]), r"scale is \[1, 2\]"),
    (dict(scale=10**400), "scale is 1000"),
    (dict(scale=torch.tensor(NAN)), "scale is nan"),
]


@pytest.mark.parametrize("parts, sentence", PARTS)
def test_a_guidance_of_something_else(parts, sentence):
    with pytest.raises(UserError, match=sentence): Guidance(**{"classifier": Logits(), "target": 0} | parts)


@pytest.mark.parametrize("target, sentence", [
    (-1, "-1 is none of 2 classes; give 0 to 1"),
    (2, "2 is none of 2 classes"),
    ([0, 2], "2 is none of 2 classes"),
    (1.5, "target is 1.5"),
    ("1", "target is '1'"),
    (None, "target is None"),
    (True, "target is True"),
    ([0, 1, 0], r"target is \[0, 1, 0\] for 2 images"),
    ([], r"target is \[\] for 2 images"),
])
@pytest.mark.parametrize("objective", ["log_probability", "logit", "calibrated", "multilabel"])
def test_a_target_that_is_none_of_the_classes(target, sentence, objective):
    guidance = Guidance(Logits(2), target, OBJECTIVES[objective])
    with pytest.raises(UserError, match=sentence): sampled(guidance=guidance)


def test_targets_of_every_kind_of_whole_number():
    same = [1, np.int64(1), torch.tensor(1), [1, 1], np.array([1, 1]), torch.ones(2, dtype=torch.uint8), (1, 1)]
    found = [sampled(guidance=Guidance(Logits(2), target)) for target in same]
    assert all(torch.equal(x, found[0]) for x in found)
    assert not torch.equal(found[0], sampled(guidance=Guidance(Logits(2), [1, 0])))


def test_a_classifier_that_answers_something_else():
    class Odd(Logits):
        def forward(self, x): return super().forward(x)[0]
    with pytest.raises(UserError, match=r"answered 2 images with shape \(2,\)"): sampled(guidance=Guidance(Odd(2), 0))
    for classes, target in ((2, 0), (1, 2), (1, -1)):
        with pytest.raises(UserError, match="one logit per image|none of 2 classes"):
            sampled(guidance=Guidance(Logits(classes), target, OBJECTIVES["binary"]))


@pytest.mark.parametrize("scale", [-1.0, NAN, float("inf"), "1", [1]])
def test_a_schedule_of_scales_that_are_none(scale):
    with pytest.raises(UserError, match="scale at time step 399 is"):
        sampled(guidance=Guidance(Logits(2), 0, scale=lambda t: scale))


@pytest.mark.parametrize("args", [
    (1.0, 100, 300), (-1.0, 300, 100), (NAN, 300), (1.0, 300, -1), (1.0, "300"), (1.0, 9.5),
])
def test_an_interval_that_holds_nothing(args):
    with pytest.raises(UserError, match="; give a "): Interval(*args)


@pytest.mark.parametrize("given, sentence", [
    (dict(steps=0), "0 sampling steps"),
    (dict(steps=401), "401 sampling steps"),
    (dict(steps=2.0), "2.0 sampling steps"),
    (dict(steps="2"), "'2' sampling steps"),
    (dict(repeats=0), "visits of each step is 0"),
    (dict(repeats=1.5), "visits of each step is 1.5"),
    (dict(micro_batch=0), "micro-batch is 0"),
    (dict(micro_batch=-1), "micro-batch is -1"),
    (dict(micro_batch="64"), "micro-batch is '64'"),
    (dict(sampler="ddim"), "sampler is 'ddim'"),
    (dict(sampler=DDIM), "sampler is <class"),
    (dict(generator=3), "generator is 3"),
    (dict(generator=[0, 1]), r"generator is \[0, 1\]"),
    (dict(generator=image_generators(0, range(3))), "3 generators were given for 2 images"),
    (dict(x=torch.zeros(3, 4, 4)), r"x_T is float32 of shape \(3, 4, 4\)"),
    (dict(x=x_T(0)), r"x_T is float64 of shape \(0, 3, 6, 6\)"),
    (dict(x=torch.zeros(2, 3, 4, 4, dtype=torch.uint8)), r"x_T is uint8 of shape \(2, 3, 4, 4\)"),
    (dict(x=np.zeros((2, 3, 4, 4))), r"x_T is float64 of shape"),
    (dict(x=torch.full((2, 3, 4, 4), NAN)), "x_T holds NaN"),
    (dict(guidance=Logits()), r"guidance is Logits\("),
    (dict(guidance=0), "guidance is 0"),
    (dict(denoiser=Net("eps")), "unknown prediction of a denoiser 'eps'; choose one of epsilon, sample, v_prediction"),
    (dict(guidance=Guidance(torch.nn.BatchNorm2d(3), 0)), r"classifier is in training mode; call its eval\(\)"),
    (dict(guidance=Guidance(torch.nn.Sequential(torch.nn.Dropout(0.1)), 0)), "classifier is in training mode"),
    (dict(denoiser=torch.nn.Sequential(Net(), torch.nn.Dropout(0.1))), "denoiser is in training mode"),
])
def test_what_cannot_be_sampled_with(given, sentence):
    with pytest.raises(UserError, match=sentence): sampled(**given)


def test_one_generator_or_one_per_image_and_numbers_of_numpy():
    assert torch.equal(sampled(steps=np.int64(3), micro_batch=torch.tensor(16)), sampled(micro_batch=16))
    few = tuple(image_generators(0, range(2)))
    assert torch.equal(sampled(generator=few), sampled(generator=image_generators(0, range(2))))
    with pytest.raises(UserError, match="generator is"): own_seeds("0", 2)


def test_a_state_that_is_not_finite_is_told_at_its_step():
    "Also after the last step, whose gradient is still finite; clamped, infinity would be a white picture."
    class Loud(Logits):
        def forward(self, x): return 1e300 * super().forward(x)
    with pytest.raises(NonFinite, match=r"image 0 .* after time step 399 \(scale 1e\+300\); lower the scale"):
        sampled(guidance=Guidance(Loud(2), 0, OBJECTIVES["logit"], scale=1e300))

    class Breaks(Net):
        def forward(self, x, t): return torch.where(t[0] < 200, torch.nan, super().forward(x, t))
    with pytest.raises(NonFinite, match=r"after time step 133 \(scale None\); check the denoiser"):
        sampled(Breaks("sample"))
    steps = guided_steps(DDPM(), Breaks("sample"), UNGUIDED, x_T(), torch.Generator(), 3)
    assert [next(steps).t for _ in range(2)] == [399, 266]


@pytest.mark.parametrize("given, sentence", [
    (dict(T=0), "T is 0"),
    (dict(T=2.5), "T is 2.5"),
    (dict(T="400"), "T is '400'"),
    (dict(beta_start=0), "beta_start is 0"),
    (dict(beta_end=1.0), "beta_end is 1.0"),
    (dict(beta_end=-0.02), "beta_end is -0.02"),
    (dict(beta_start=None), "beta_start is None"),
    (dict(clip="no"), "clip is 'no'"),
    (dict(clip=None), "clip is None"),
])
def test_a_diffusion_that_is_none(given, sentence):
    with pytest.raises(UserError, match=sentence): DDPM(**given)
    DDPM(schedule="cosine", beta_start=None, beta_end=None)
    if given.keys() == {"clip"} and given["clip"]:
        with pytest.raises(UserError, match=sentence): RunSpec(**given)


@pytest.mark.parametrize("make", [
    lambda: smoothed(WHERE["x_t"], count=0),
    lambda: smoothed(WHERE["x_t"], count=2.5),
    lambda: monte_carlo(WHERE["x0_hat"], count="10"),
    lambda: in_cone(WHERE["x_t"], Logits(), degrees=90),
    lambda: in_cone(WHERE["x_t"], Logits(), degrees=-5),
    lambda: in_cone(WHERE["x_t"], Logits(), degrees="30"),
    lambda: image_generators(0, 3),
    lambda: image_generators(0, None),
])
def test_ways_and_streams_of_something_else(make):
    with pytest.raises(UserError, match="; give "): make()


@pytest.mark.parametrize("make, sentence", [
    (lambda p: images_to_uint8(torch.zeros(3, 4, 4, dtype=torch.uint8)), r"are uint8 of shape \(3, 4, 4\)"),
    (lambda p: images_to_uint8(torch.full((3, 4, 4), NAN)), "hold NaN or infinity"),
    (lambda p: images_to_uint8(torch.full((3, 4, 4), float("inf"))), "hold NaN or infinity"),
    (lambda p: uint8_to_images(torch.zeros(3, 4, 4)), r"are float32 of shape \(3, 4, 4\)"),
    (lambda p: image_grid(torch.zeros(3, 4, 4, dtype=torch.uint8)), r"uint8 of shape \(3, 4, 4\)"),
    (lambda p: image_grid(x_T()), r"float64 of shape \(2, 3, 6, 6\)"),
    (lambda p: image_grid(torch.zeros(2, 2, 4, 4, dtype=torch.uint8)), r"uint8 of shape \(2, 2, 4, 4\)"),
    (lambda p: save_png(x_T()[0], p), r"float64 of shape \(3, 6, 6\)"),
    (lambda p: save_png(np.zeros((3, 4, 4), np.uint8), p), r"uint8 of shape \(3, 4, 4\)"),
    (lambda p: save_png("x.png", p), "picture is"),
])
def test_pictures_of_something_else(make, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence): make(tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_a_sampler_made_by_its_class_is_taken():
    assert torch.equal(sampled(sampler=Ancestral()), sampled())


def test_curves_are_drawn_without_a_window():
    "Whatever a module of yours asked matplotlib for; and no figure stays open."
    import pandas as pd
    from matplotlib import pyplot as plt

    from gradcheck.paper.plots import cosines_png
    before = plt.get_fignums()
    plt.switch_backend("svg")
    table = pd.DataFrame({"curve": ["run"] * 3, "t": [2, 1, 0], "mean": [NAN, 0.5, 0.6], "std": 0.1, "nothing": 0.0})
    assert cosines_png(table, {"run": "blue"}, "three steps").startswith(b"\x89PNG")
    assert plt.get_backend() == "agg" and plt.get_fignums() == before


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "cpu:1", 0])
def test_weights_are_loaded_onto_a_device_that_is_there(device):
    with pytest.raises(UserError, match="device"): load_denoiser("laptop/ddpm", device)
