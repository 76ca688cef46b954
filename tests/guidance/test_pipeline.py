"""`ClassifierGuidedPipeline` against diffusers' own `DDPMPipeline` bit for bit, and against our `guided_steps`; loops
written by hand; bad input in one sentence."""
import importlib.util
import json
import sys

import pytest
import torch
from conftest import generator
from torch import nn

from gradcheck.core import UserError, image_generators, seeded
from gradcheck.guidance.samplers import DDIM
from gradcheck.guidance.sampling import UNGUIDED, WHERE, Ancestral, Guidance, Interval, NonFiniteGradient
from gradcheck.guidance.objectives import log_probability
from gradcheck.guidance.sampling import at_x_t, gradient_of, guided_steps
from gradcheck.guidance.scheduled import Guided, Scheduled, gain
from gradcheck.guidance.stabilizers import Adam, make_stabilizer
from gradcheck.models.ddpm import DDPM
from gradcheck.models.exports import save_pipeline
from gradcheck.models.interop import load_pipeline, pipeline_card
from gradcheck.models.unet import UNet, UNetConfig

diffusers = pytest.importorskip("diffusers")
from gradcheck.guidance import pipeline as module                                    # noqa: E402
from gradcheck.guidance.pipeline import ClassifierGuidedPipeline                    # noqa: E402

T = 40


def unet_of(**changes):
    net = dict(sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16),
               down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
               norm_num_groups=4, attention_head_dim=4)
    with seeded(1): return diffusers.UNet2DModel(**net | changes).eval()


def pipeline_of(kind="DDPMScheduler", unet=None, **scheduler):
    made = getattr(diffusers, kind)(num_train_timesteps=T, **scheduler)
    pipeline = ClassifierGuidedPipeline(unet or unet_of(), made)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def theirs_of(pipeline):
    theirs = diffusers.DDPMPipeline(pipeline.unet, type(pipeline.scheduler).from_config(pipeline.scheduler.config))
    theirs.set_progress_bar_config(disable=True)
    return theirs


def classifier_of(classes=4, shape=(3, 8, 8)):
    with seeded(2):
        return nn.Sequential(nn.Conv2d(shape[0], 8, 3), nn.Tanh(), nn.Flatten(),
                             nn.Linear(8 * (shape[1] - 2) * (shape[2] - 2), classes)).eval()


def noise(n=3, shape=(3, 8, 8)): return torch.randn(n, *shape, generator=generator(5))


# --- without guidance: DDPMPipeline ------------------------------------------------------------------

@pytest.mark.parametrize("steps", [T, 7])
@pytest.mark.parametrize("kind, scheduler, net", [
    ("DDPMScheduler", {}, {}),
    ("DDPMScheduler", dict(timestep_spacing="trailing", variance_type="fixed_large"), {}),
    ("DDPMScheduler", dict(timestep_spacing="linspace", prediction_type="v_prediction", clip_sample=False), {}),
    ("DDPMScheduler", dict(prediction_type="sample", clip_sample_range=2.0, variance_type="fixed_small_log"), {}),
    ("DDPMScheduler", dict(beta_schedule="squaredcos_cap_v2", thresholding=True, sample_max_value=2.0), {}),
    ("DDPMScheduler", dict(variance_type="learned_range"), dict(out_channels=6)),
    ("DDPMScheduler", {}, dict(sample_size=(8, 16))),
    ("DDPMScheduler", {}, dict(in_channels=1, out_channels=1)),
    ("DDIMScheduler", dict(clip_sample=False), {}),
])
def test_unguided_is_ddpmpipeline_bit_for_bit(kind, scheduler, net, steps, global_rng_untouched):
    pipeline = pipeline_of(kind, unet_of(**net), **scheduler)
    ours, theirs = generator(3), generator(3)
    a = pipeline(2, ours, steps, "np").images
    b = theirs_of(pipeline)(2, theirs, steps, "np").images
    assert a.dtype == b.dtype and (a == b).all() and b.std() > 0.05
    assert torch.equal(ours.get_state(), theirs.get_state())                         # and so is the next call


def test_unguided_is_ddpmpipeline_with_a_generator_per_image_and_without_any():
    pipeline = pipeline_of()
    a = pipeline(3, image_generators(0, range(3)), 5, "pt").images
    assert torch.equal(a, theirs_of(pipeline)(3, image_generators(0, range(3)), 5, "pt").images)
    with seeded(4): a = pipeline(num_inference_steps=5, output_type="pt").images
    with seeded(4): b = theirs_of(pipeline)(num_inference_steps=5, output_type="pt").images
    assert torch.equal(a, b)


def test_unguided_is_ddpmpipeline_in_half_precision():
    pipeline = pipeline_of().to(torch.bfloat16)
    b = theirs_of(pipeline)(2, generator(), 5, "pt").images
    assert torch.equal(pipeline(2, generator(), 5, "pt").images, b) and b.dtype == torch.bfloat16
    guided = pipeline(2, generator(), 5, "pt", target=1, classifier=classifier_of(), guidance_scale=30.0).images
    assert guided.isfinite().all() and not torch.equal(guided, b)


# --- with it: guided_steps ---------------------------------------------------------------------------

def both(pipeline, sampler, scale, where="x0_hat", stabilizer="adam", target=2, steps=10, prediction="epsilon"):
    "The images of the pipeline and of `guided_steps`, in [0, 1], by the same models from the same noise."
    said, model = pipeline.scheduler.config, classifier_of()
    kind = said.get("variance_type") or "fixed_small"
    ddpm = DDPM(T, said.beta_schedule, said.beta_start, said.beta_end, clip=said.clip_sample, variance=kind)

    def denoiser(x, t): return pipeline.unet(x, t).sample
    denoiser.prediction = prediction
    steady = make_stabilizer(stabilizer).spanning(T / steps)
    guidance = Guidance(model, target, where=WHERE[where], stabilizer=steady, scale=scale)
    *_, last = guided_steps(ddpm, denoiser, guidance, noise(), generator(9), steps, sampler)
    a = pipeline(3, generator(9), steps, "pt", target=target, classifier=model, where=where, stabilizer=stabilizer,
                 guidance_scale=scale, x_T=noise()).images
    plain = pipeline(3, generator(9), steps, "pt", x_T=noise()).images
    return a, (last.x_prev / 2 + 0.5).clamp(0, 1), plain


@pytest.mark.parametrize("where", [w for w in WHERE if w != "unguided"])
@pytest.mark.parametrize("stabilizer", ["none", "adam", "adam_rescaled", "unit"])
def test_guided_is_guided_steps(where, stabilizer):
    a, b, plain = both(pipeline_of(timestep_spacing="trailing"), Ancestral(), 5.0, where, stabilizer)
    assert (a - b).abs().max() < 1e-4 < 1e-3 < (a - plain).abs().max()


@pytest.mark.parametrize("scheduler", [
    dict(variance_type="fixed_large"),
    dict(clip_sample=False, beta_schedule="scaled_linear"),
    dict(prediction_type="v_prediction"),
    dict(prediction_type="sample"),
])
def test_guided_is_guided_steps_under_other_schedulers(scheduler):
    "Down to t = 0, behind which no scheduler of diffusers adds noise; behind other last steps, `fixed_large` does."
    pipeline = pipeline_of(**scheduler)
    a, b, plain = both(pipeline, Ancestral(), 5.0, steps=T, prediction=scheduler.get("prediction_type", "epsilon"))
    assert (a - b).abs().max() < 1e-4 < 1e-3 < (a - plain).abs().max()


def test_guided_is_guided_steps_by_ddim():
    pipeline = pipeline_of("DDIMScheduler", timestep_spacing="trailing", clip_sample=False)
    a, b, plain = both(pipeline, DDIM(), 0.05)
    assert (a - b).abs().max() < 1e-4 < 1e-3 < (a - plain).abs().max()


def test_each_image_has_its_own_target():
    pipeline, model = pipeline_of(), classifier_of()
    asked = dict(classifier=model, guidance_scale=5.0, output_type="pt", num_inference_steps=5)
    a = pipeline(2, image_generators(0, range(2)), target=[3, 1], **asked).images
    for k, target in enumerate((3, 1)):
        b = pipeline(1, image_generators(0, [k]), target=target, **asked).images
        assert torch.allclose(a[k], b[0], atol=1e-4)
    assert torch.equal(pipeline(2, image_generators(0, range(2)), target=torch.tensor([3, 1]), **asked).images, a)


def test_one_logit_means_yes_or_no_and_classes_have_names():
    pipeline, one, four = pipeline_of(), classifier_of(1), classifier_of(4)
    four.class_names = ["a", "b", "c", "d"]
    asked = dict(num_inference_steps=5, output_type="pt", guidance_scale=50.0, x_T=noise(1))
    with torch.no_grad():
        no, yes = (one(pipeline(1, generator(), target=k, classifier=one, **asked).images * 2 - 1) for k in range(2))
    assert yes > no
    a, b = (pipeline(1, generator(), target=k, classifier=four, **asked).images for k in ("c", 2))
    assert torch.equal(a, b)


# --- the scheduler that it was given -----------------------------------------------------------------

VARIANCES = ["fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range", None]


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_shift_has_the_variance_of_the_scheduler(variance):
    "Against the numbers that the scheduler itself multiplies its noise with."
    scheduler = diffusers.DDPMScheduler(T, variance_type=variance or "fixed_small")
    if variance is None: scheduler.register_to_config(variance_type=None)
    scheduler.set_timesteps(8)
    output = torch.rand(2, 6, 4, 4, generator=generator()) * 0.9 + 0.05
    diffusion, x = Scheduled(scheduler), torch.zeros(2, 3, 4, 4)
    for t in scheduler.timesteps[:-1]:
        said = scheduler._get_variance(t, output[:, 3:], variance or "fixed_small")
        sigma = said**2 if variance == "fixed_small_log" else said.exp() if variance == "learned_range" else said
        ours = gain(diffusion, output, int(t), x)
        assert torch.allclose(ours + x, sigma + x, rtol=1e-3), (variance, t)
    assert (gain(diffusion, output, int(scheduler.timesteps[-1]), x) + x).abs().max() < 1e-12


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_the_time_steps_are_those_of_the_scheduler(spacing):
    pipeline, times, shifts = pipeline_of(timestep_spacing=spacing, steps_offset=1), [], []

    def keep(pipe, i, t, tensors):
        assert pipe is pipeline and i == len(times)
        times.append(int(t))
        shifts.append(tensors["shift"])
    pipeline(2, generator(), 7, callback_on_step_end=keep, callback_on_step_end_tensor_inputs=["shift"],
             target=0, classifier=classifier_of())
    other = diffusers.DDPMScheduler(T, timestep_spacing=spacing, steps_offset=1)
    other.set_timesteps(7)
    assert times == other.timesteps.tolist() and all(s.any() for s in shifts[:-1]) and not shifts[-1].any()


@pytest.mark.parametrize("said, most", [
    (dict(clip_sample_range=0.5), 0.5), (dict(clip_sample=False), None),
    (dict(thresholding=True, sample_max_value=1.5), 1.0)])
def test_the_classifier_sees_what_the_scheduler_clips(said, most):
    pipeline, seen = pipeline_of(**said), []

    class Looks(nn.Module):
        def forward(self, x):
            seen.append(x.detach())
            return x.flatten(1)[:, :4]
    pipeline(2, generator(), 3, target=0, classifier=Looks().eval(), x_T=9 * noise(2))
    largest = torch.stack([x.abs().max() for x in seen[-3:]])
    assert (largest <= most + 1e-6).all() if most else (largest > 1.5).any()


# --- a loop written by hand --------------------------------------------------------------------------

def test_a_stabilizer_in_a_loop_of_ones_own_takes_three_lines():
    unet, model, scheduler = unet_of(), classifier_of(), diffusers.DDPMScheduler(T)
    target, scale = torch.tensor([2, 2, 2]), 5.0
    scheduler.set_timesteps(10)
    image, draws = noise(), generator(9)
    stabilizer = Adam()                                                                                        # 1
    for t in scheduler.timesteps:
        variance = scheduler._get_variance(t) if t > 0 else 0
        g = stabilizer(gradient_of(lambda x: log_probability(model(x), target), image))                        # 2
        with torch.no_grad(): output = unet(image, t).sample
        image = scheduler.step(output, t, image, generator=draws).prev_sample + scale * variance * g           # 3
    pipeline = ClassifierGuidedPipeline(unet, scheduler)
    b = pipeline(3, generator(9), 10, "pt", target=2, classifier=model, where="x_t", guidance_scale=scale, x_T=noise())
    assert torch.allclose((image / 2 + 0.5).clamp(0, 1), b.images, atol=1e-5)


def test_guidance_beside_a_scheduler_takes_three_lines():
    unet, model, scheduler = unet_of(), classifier_of(), diffusers.DDPMScheduler(T)
    scheduler.set_timesteps(10)
    image, draws = noise(), generator(9)
    guided = Guided(unet, scheduler, Guidance(model, 2, where=at_x_t, stabilizer=Adam(), scale=5.0))            # 1
    for t in scheduler.timesteps:                                                                              # 2
        image = guided.step(image, t, draws).x_prev                                                            # 3
    b = ClassifierGuidedPipeline(unet, scheduler)(
        3, generator(9), 10, "pt", target=2, classifier=model, where="x_t", guidance_scale=5.0, x_T=noise())
    assert torch.equal((image / 2 + 0.5).clamp(0, 1), b.images)


def test_a_schedule_that_is_off_leaves_the_scheduler_alone():
    pipeline, kept = pipeline_of(), {}
    def keep(name): return lambda pipe, i, t, tensors: kept.setdefault(name, []).append(tensors["x_prev"])
    asked = dict(target=1, classifier=classifier_of(), guidance_scale=Interval(9.0, 19))
    pipeline(2, generator(), callback_on_step_end=keep("guided"), **asked)
    pipeline(2, generator(), callback_on_step_end=keep("plain"))
    equal = [torch.equal(a, b) for a, b in zip(kept["guided"], kept["plain"])]
    assert equal == [True] * 20 + [False] * 20


def test_memory_that_runs_out_halves_the_batch_and_changes_nothing(capsys):
    pipeline, model = pipeline_of(), classifier_of()
    asked = dict(target=1, classifier=model, guidance_scale=5.0, x_T=noise(4), num_inference_steps=4, output_type="pt")
    whole, forward = pipeline(4, generator(), **asked).images, pipeline.unet.forward

    def small(x, *args, **kwargs):
        if len(x) > 2: raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return forward(x, *args, **kwargs)
    pipeline.unet.forward = small
    assert torch.allclose(pipeline(4, generator(), **asked).images, whole, atol=1e-4)
    assert "from here on 2 images" in capsys.readouterr().err


# --- in diffusers' habits ----------------------------------------------------------------------------

def test_it_saves_and_loads_as_all_do(tmp_path):
    pipeline = pipeline_of(variance_type="fixed_large")
    diffusers.DDPMPipeline(pipeline.unet, pipeline.scheduler).save_pretrained(tmp_path / "theirs")
    first = ClassifierGuidedPipeline.from_pretrained(tmp_path / "theirs")
    first.save_pretrained(tmp_path / "ours")
    again = ClassifierGuidedPipeline.from_pretrained(tmp_path / "ours")
    back = diffusers.DDPMPipeline.from_pretrained(tmp_path / "ours")
    for each in (first, again, back): each.set_progress_bar_config(disable=True)
    asked = dict(target=1, classifier=classifier_of(), guidance_scale=5.0)
    a, b, c = (p(2, generator(), 5, "pt", **asked).images for p in (pipeline, first, again))
    assert torch.equal(a, b) and torch.equal(a, c)
    assert torch.equal(again(2, generator(), 5, "pt").images, back(2, generator(), 5, "pt").images)
    assert json.loads((tmp_path / "ours" / "model_index.json").read_text())["_class_name"] == "ClassifierGuidedPipeline"
    assert pipeline_card(tmp_path / "ours")["sha256"] == pipeline_card(tmp_path / "theirs")["sha256"]


def test_a_denoiser_of_patches_is_read_and_written_with_its_patch(tmp_path):
    with seeded(1):
        unet = UNet(UNetConfig(size=16, patch=2, widths=(8, 16), attention=(False, True), layers=1, groups=4)).eval()
    save_pipeline(unet, DDPM(T), tmp_path / "a")
    pipeline = ClassifierGuidedPipeline.from_pretrained(tmp_path / "a")
    pipeline.set_progress_bar_config(disable=True)
    x_T = noise(2, (3, 16, 16))
    *_, last = guided_steps(DDPM(T), load_pipeline(tmp_path / "a"), UNGUIDED, x_T, generator(9), 10)
    a = pipeline(2, generator(9), 10, "pt", x_T=x_T).images
    assert torch.allclose(a, (last.x_prev / 2 + 0.5).clamp(0, 1), atol=1e-4) and a.shape == (2, 3, 16, 16)
    pipeline.save_pretrained(tmp_path / "b")
    again = ClassifierGuidedPipeline.from_pretrained(tmp_path / "b")
    assert pipeline_card(tmp_path / "b")["patch"] == 2 == again.config.patch


def test_pictures_are_what_was_asked_for():
    pipeline = pipeline_of()
    tensors = pipeline(2, generator(), 3, "pt").images
    arrays, = pipeline(2, generator(), 3, "np", return_dict=False)
    pictures = pipeline(2, generator(), 3).images
    assert tensors.shape == (2, 3, 8, 8) and arrays.shape == (2, 8, 8, 3) and pictures[1].size == (8, 8)
    assert (tensors.permute(0, 2, 3, 1).numpy() == arrays).all() and arrays.min() >= 0 and arrays.max() <= 1
    grey = pipeline_of(unet=unet_of(in_channels=1, out_channels=1))(1, generator(), 3).images
    assert grey[0].mode == "L"


def test_what_a_callback_returns_goes_on():
    pipeline, seen = pipeline_of(), []

    def zeroed(pipe, i, t, tensors):
        seen.append(tensors["x_t"])
        return {"x_prev": torch.zeros_like(tensors["x_prev"])}
    a = pipeline(1, generator(), 3, "pt", callback_on_step_end=zeroed,
                 callback_on_step_end_tensor_inputs=["x_t", "x_prev"]).images
    assert seen[0].any() and not seen[1].any() and torch.equal(a, torch.full_like(a, 0.5))


def test_a_class_conditional_unet_draws_the_class_that_is_named():
    "Against a loop over the U-Net itself."
    pipeline = pipeline_of(unet=unet_of(num_class_embeds=3))
    pictures = [pipeline(2, generator(9), 5, "pt", class_label=k, x_T=noise(2)).images for k in range(3)]
    assert not torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[1], pictures[2])
    image, draws, scheduler = noise(2), generator(9), pipeline.scheduler
    scheduler.set_timesteps(5)
    for t in scheduler.timesteps:
        with torch.no_grad(): output = pipeline.unet(image, t, class_labels=torch.tensor([2, 2])).sample
        image = scheduler.step(output, t, image, generator=draws).prev_sample
    assert torch.equal(pictures[2], (image / 2 + 0.5).clamp(0, 1))
    asked = dict(target=1, classifier=classifier_of(), guidance_scale=5.0, class_label=2)
    guided = pipeline(2, generator(9), 5, "pt", x_T=noise(2), **asked).images
    assert not torch.allclose(guided, pictures[2], atol=1e-3)


# --- bad input ---------------------------------------------------------------------------------------

class Answers(nn.Module):
    "A classifier by a function of the images."
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x): return self.answer(x)


def answering(answer): return dict(classifier=Answers(answer).eval(), target=0)
def few(x): return x.flatten(1)[:, :4]


OK = dict(classifier=classifier_of(), target=0)
BAD = [
    (dict(target=0), "needs both a classifier and a target"),
    (dict(classifier=classifier_of()), "needs both a classifier and a target"),
    (OK | dict(target=4), "the classes are 0"),
    (OK | dict(target="cat"), "cat"),
    (OK | dict(target=[0, 1, 2]), "3 targets were given for 2 images"),
    (OK | dict(where="x0hat"), "x0_hat"),
    (OK | dict(stabilizer="adma"), "adam"),
    (OK | dict(stabilizer=3), "the stabilizer is a int"),
    (OK | dict(objective="binary"), "does not fit a classifier with 4 logits"),
    (dict(classifier=classifier_of(1), target=0, objective="logit"), "does not fit a classifier with 1 logits"),
    (OK | dict(guidance_scale=-1.0), "the guidance scale is -1.0"),
    (OK | dict(guidance_scale=float("nan")), "the guidance scale is nan"),
    (OK | dict(guidance_scale="1"), "the guidance scale is '1'"),
    (OK | dict(classifier=7), "the classifier is a int"),
    (OK | dict(classifier="nobody/knows"), "nobody/knows"),
    (OK | dict(classifier="laptop/nonrobust"), r"for the same images|takes images"),
    (OK | dict(classifier=classifier_of(shape=(3, 16, 16))), "fails on images of shape"),
    (OK | dict(classifier=classifier_of().train()), "training mode; call its eval"),
    (answering(lambda x: few(x).softmax(1)), "returns probabilities"),
    (answering(lambda x: few(x) * float("nan")), "returns NaN or infinity"),
    (answering(lambda x: few(x).detach()), "gives no gradient"),
    (answering(lambda x: few(x) + torch.rand(len(x), 4)), "differently each time"),
    (answering(lambda x: few(x) - few(x).mean(0)), "differently beside others"),
    (answering(lambda x: x), "must return logits"),
    (answering(lambda x: torch.fft.fft(few(x))), "must return logits .* complex numbers"),
    (dict(batch_size=0), "batch_size is 0"),
    (dict(batch_size=True), "batch_size is True"),
    (dict(num_inference_steps=T + 1), f"num_inference_steps is {T + 1}"),
    (dict(num_inference_steps=0), "num_inference_steps is 0"),
    (dict(generator=image_generators(0, range(3))), "3 generators were given for 2 images"),
    (dict(output_type="png"), "output_type|output type"),
    (dict(callback_on_step_end_tensor_inputs=["latents"]), "latents"),
    (dict(x_T=noise(1)), r"x_T has shape \(1, 3, 8, 8\)"),
    (dict(class_label=1), "knows no class"),
]


@pytest.mark.parametrize("asked, message", BAD)
def test_what_cannot_be_is_said_in_a_sentence(asked, message):
    asked = dict(batch_size=2, num_inference_steps=2) | asked
    with pytest.raises(UserError, match=message) as e: pipeline_of()(**asked)
    assert "\n" not in str(e.value) and len(str(e.value)) < 400


@pytest.mark.parametrize("made, asked, message", [
    (lambda: pipeline_of("PNDMScheduler"), {}, "the scheduler is a PNDMScheduler"),
    (lambda: pipeline_of(variance_type="fixed_large_log"), {}, "variance_type is 'fixed_large_log'"),
    (lambda: pipeline_of(unet=unet_of(in_channels=4, out_channels=4)), {}, "no latents"),
    (lambda: pipeline_of(unet=unet_of(sample_size=None)), {}, "no sample_size"),
    (lambda: pipeline_of(unet=unet_of(dropout=0.5).train()), {}, "training mode and drops"),
    (lambda: pipeline_of(unet=unet_of(num_class_embeds=3)), {}, "class_label is None; .* 0 to 2"),
    (lambda: pipeline_of(unet=unet_of(num_class_embeds=3)), dict(class_label=3), "class_label is 3"),
    (lambda: pipeline_of(unet=unet_of(class_embed_type="timestep")), {}, "class_embed_type 'timestep'"),
])
def test_what_cannot_be_guided_is_said_in_a_sentence(made, asked, message):
    with pytest.raises(UserError, match=message): made()(num_inference_steps=2, **asked)


def test_a_gradient_that_is_not_finite_stops_with_the_step():
    def breaks(x): return few(x) * torch.where(x.abs().amax((1, 2, 3)) > 5, float("nan"), 1.0)[:, None]
    with pytest.raises(NonFiniteGradient, match=f"time step {T - 1} for image 0"):
        pipeline_of(timestep_spacing="trailing")(
            1, generator(), 4, classifier=Answers(breaks).eval(), target=0, where="x_t", x_T=9 * noise(1))


def test_without_diffusers_it_imports_and_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    spec = importlib.util.spec_from_file_location("gradcheck.guidance.pipeline_alone", module.__file__)
    alone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alone)
    for make in (lambda c: c(None, None), lambda c: c.from_pretrained("folder")):
        with pytest.raises(UserError, match=r"pip install 'gradcheck\[diffusers\]'"):
            make(alone.ClassifierGuidedPipeline)
