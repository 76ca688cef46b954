"""Guidance against finite differences, closed forms and torch.optim."""
import math

import pytest
import torch
from conftest import generator

from gradcheck.core import UserError, image_generators, norm, randn
from gradcheck.models.ddpm import DDPM
from gradcheck.guidance.samplers import DDIM
from gradcheck.guidance.sampling import Ancestral
from gradcheck.guidance.gradients import collect, cosine, cosine_in_random_order, measure, saturated_share
from gradcheck.models.ddpm import predict
from gradcheck.guidance.objectives import OBJECTIVES
from gradcheck.guidance.sampling import (
    UNGUIDED,
    WHERE,
    Guidance,
    Interval,
    NonFiniteGradient,
    at_x0_hat,
    check_gradient,
    guided_steps,
    sample,
)
from gradcheck.models.batches import MicroBatch
from gradcheck.guidance.stabilizers import STABILIZERS, Adam, make_stabilizer

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


class Net(torch.nn.Module):
    "A small smooth denoiser in float64."
    def __init__(self, prediction="sample"):
        super().__init__()
        self.prediction = prediction
        self.w = torch.nn.Parameter(torch.randn(3, 3, 3, 3, generator=generator(5)).double() * 0.2, requires_grad=False)

    def forward(self, x, t):
        return torch.tanh(torch.nn.functional.conv2d(x, self.w, padding=1)) * (1 + t.view(-1, 1, 1, 1) / 400)


class Logits(torch.nn.Module):
    "A small smooth classifier in float64."
    def __init__(self, classes=4):
        super().__init__()
        self.w = torch.nn.Parameter(
            torch.randn(classes, 3 * 36, generator=generator(6)).double() * 0.3, requires_grad=False
        )

    def forward(self, x): return torch.tanh(x.flatten(1)) @ self.w.T


def images(n=2, seed=0): return torch.randn(n, 3, 6, 6, generator=generator(seed)).double()


@pytest.mark.parametrize("prediction", ["sample", "epsilon"])
@pytest.mark.parametrize("where", ["x_t", "x0_hat", "x0_hat_stopped"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradient_against_finite_differences(objective, where, prediction):
    ddpm, net, classifier, t, x = DDPM(), Net(prediction), Logits(1 if objective == "binary" else 4), 120, images()
    target = torch.tensor([1, 0]) if objective == "binary" else torch.tensor([1, 3])
    # held constant where the Jacobian is stopped
    eps = ddpm.eps_from(x, t, predict(ddpm, net, x, t))
    def seen(x):
        if where == "x_t": return x
        if where == "x0_hat": return ddpm.clip_x0(predict(ddpm, net, x, t))
        return ddpm.clip_x0((x - (1 - ddpm.abar[t]).sqrt() * eps) / ddpm.abar[t].sqrt())
    def value(x): return OBJECTIVES[objective](classifier(seen(x)), target)
    guidance = Guidance(classifier, target, OBJECTIVES[objective], WHERE[where])
    _, gradient = guidance.evaluate(ddpm, net, x, t, MicroBatch(1))
    h = 1e-6
    for k in torch.randperm(108, generator=generator(7))[:25].tolist():
        step = torch.zeros(108, dtype=torch.float64)
        step[k] = h
        step = step.view(1, 3, 6, 6)
        difference = (value(x + step) - value(x - step)) / (2 * h)
        assert torch.allclose(gradient.flatten(1)[:, k], difference, rtol=1e-5, atol=1e-7)
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("where", ["x_t", "x0_hat", "x0_hat_smooth"])
@pytest.mark.parametrize("objective, classes, message", [
    (OBJECTIVES["binary"], 4, r"with shape \(1, 4\); binary_log_probability needs one logit per image"),
    (lambda logits, target: logits, 4, r"shape \(1, 4\) for 1 images"),
    (lambda logits, target: logits.sum(), 4, r"shape \(\) for 1 images"),
    (OBJECTIVES["log_probability"], 1, "one logit is always the most likely"),
])
def test_an_objective_that_makes_no_number_for_each_image(where, objective, classes, message):
    "Some would broadcast, and guide by the sum of all classes; one probability of one class is 1 everywhere."
    guidance = Guidance(Logits(classes), 0, objective, WHERE[where])
    with pytest.raises(UserError, match=message):
        guidance.evaluate(DDPM(), Net("sample"), images()[:1], 120, MicroBatch(1, tile=1))


def test_clip_masks_the_gradient():
    class Loud(Net):
        def forward(self, x, t): return 3 * x
    x = images()
    x0, gradient = at_x0_hat(DDPM(), Loud(), x, 10, lambda x0: x0.flatten(1).sum(1))
    assert torch.equal(gradient == 0, x0.abs() > 1)
    assert torch.allclose(saturated_share(x0), (gradient == 0).flatten(1).float().mean(1))


# --- a Gaussian world in which everything is known
# ------------------------------------------------------------------------
WORLD, TAU2, Y = DDPM(T=400, beta_end=0.05, clip=False), 0.5, 1.5


class Exact:
    prediction = "sample"
    # E[x0 | x_t] for x0 ~ N(0, 1)
    def __call__(self, x, t): return WORLD.abar_at(t, x).sqrt() * x


def exact_where(ddpm, denoiser, x, t, value):
    "The exact robust classifier p(y | x_t), y = x0 + N(0, tau^2)."
    abar = ddpm.abar_at(t, x)
    return predict(ddpm, denoiser, x, t), (Y - abar.sqrt() * x) * abar.sqrt() / (1 - abar + TAU2)


@pytest.mark.parametrize("sampler, steps", [(Ancestral(), 400), (DDIM(), 400), (DDIM(eta=1.0), 400)])
def test_guided_sampling_of_a_gaussian(sampler, steps):
    n = 20_000
    g = generator(3)
    x_T = randn((n, 1, 1, 1), g).double()
    for step in guided_steps(
        WORLD, Exact(), Guidance(None, 0, where=exact_where), x_T, g, steps, sampler, micro_batch=n
    ):
        pass
    x, mean, var = step.x_prev.flatten(), Y / (1 + TAU2), TAU2 / (1 + TAU2)
    # of 400 discrete steps: exact moments in the test below
    bias = 0.02
    assert abs(x.mean() - mean) < 4 * (var / n) ** 0.5 + bias
    assert abs(x.var() - var) < 4 * var * (2 / n) ** 0.5 + bias


def test_guided_gaussian_without_monte_carlo():
    "The chain is linear, so its moments follow in closed form; they approach the exact conditional as steps are added."
    errors = []
    for T in (100, 400, 1600):
        ddpm = DDPM(T=T, beta_end=0.05 * 400 / T, beta_start=1e-4 * 400 / T, clip=False)
        mean, var = 0.0, 1.0
        for t, t_prev in ddpm.timesteps():
            def move(x, noise):
                x = torch.full((1, 1, 1, 1), float(x), dtype=torch.float64)
                abar = ddpm.abar_at(t, x)
                push = (Y - abar.sqrt() * x) * abar.sqrt() / (1 - abar + TAU2)
                return Ancestral().step(ddpm, x, abar.sqrt() * x, t, t_prev, noise, push).item()
            b, sd = move(0, 0), move(0, 1) - move(0, 0)
            a = move(1, 0) - b
            mean, var = a * mean + b, a**2 * var + sd**2
        errors.append(max(abs(mean - Y / (1 + TAU2)), abs(var - TAU2 / (1 + TAU2))))
    # first order in the step size
    assert errors[1] < 0.02 and all(3 < a / b < 5 for a, b in zip(errors, errors[1:]))


# --- how much guidance there was
# ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sampler", [Ancestral(), DDIM(), DDIM(eta=1.0)], ids=str)
def test_the_shift_is_what_guidance_adds(sampler):
    ddpm, x = DDPM(), images()
    for t, t_prev in [(399, 391), (200, 199), (1, 0), (0, -1)]:
        x0, push, noise = images(seed=3), images(seed=4), images(seed=5)
        added = sampler.step(ddpm, x, x0, t, t_prev, noise, push) - sampler.step(
            ddpm, x, x0, t, t_prev, noise, 0 * push
        )
        assert torch.allclose(sampler.gain(ddpm, t, t_prev, x) * push, added, rtol=1e-8, atol=1e-11)


def test_energy_is_the_norm_of_scale_times_variance_times_guidance():
    ddpm, guidance = DDPM(), Guidance(Logits(), 1, where=at_x0_hat, stabilizer=Adam(), scale=0.3)
    rows = list(measure(guided_steps(ddpm, Net(), guidance, images(), generator(0), steps=5)))
    for (step, row), (t, t_prev) in zip(rows, ddpm.timesteps(5)):
        assert step.t == t and torch.allclose(
            row["energy"], norm(0.3 * Ancestral().variance(ddpm, t, t_prev, step.x_t) * step.guidance).float()
        )
    # the last step has no variance
    assert rows[0][1]["energy"].min() > 0 and rows[-1][1]["energy"].max() == 0
    assert all(
        row["energy"].sum() == 0
        for _, row in measure(guided_steps(ddpm, Net(), UNGUIDED, images(), generator(0), steps=3))
    )


def test_shuffled_gradients():
    g = [torch.zeros(3, 1, 2, 4) for _ in range(8)]
    for k in range(8): g[k].view(3, 8)[:, k] = 1.0                                             # orthogonal in time
    nulls = cosine_in_random_order(g, make_stabilizer("none"), 0, range(3))
    assert nulls.shape == (8, 3) and nulls[0].isnan().all() and (nulls[1:] == 0).all()
    constant = cosine_in_random_order([g[0]] * 8, make_stabilizer("adam"), 0, range(3))
    assert torch.allclose(constant[1:], torch.ones(7, 3))
    random = [torch.randn(4, 3, 4, 4, generator=generator(k)) for k in range(20)]
    whole = cosine_in_random_order(random, make_stabilizer("adam"), 7, range(4))
    alone = cosine_in_random_order([r[2:3] for r in random], make_stabilizer("adam"), 7, range(2, 3))
    # an image's order is its own
    assert torch.allclose(whole[1:, 2], alone[1:, 0], atol=1e-6)
    assert not torch.allclose(whole[1:], cosine_in_random_order(random, make_stabilizer("adam"), 8, range(4))[1:])


# --- stabilizers
# ------------------------------------------------------------------------------------------------------------
def gradients(n=30, seed=1):
    return [torch.randn(2, 3, 4, 4, generator=generator(seed + k)).double() * 0.1 for k in range(n)]


def test_adam_is_torchs_adam():
    parameter = torch.zeros(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    optimizer, adam = torch.optim.Adam([parameter], lr=1.0, eps=1e-8), make_stabilizer("adam_corrected")
    for g in gradients():
        before = parameter.detach().clone()
        # torch descends, guidance climbs
        parameter.grad = -g
        optimizer.step()
        assert torch.allclose(adam(g), parameter.detach() - before, rtol=1e-9, atol=1e-12)


def test_paper_adam_is_the_formula():
    adam, m, v = Adam(), 0.0, 0.0
    for g in gradients():
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        assert torch.allclose(adam(g), m / (v.sqrt() + 1e-4))


@pytest.mark.parametrize("name", STABILIZERS)
def test_state_is_per_image_and_reset(name):
    together, alone, gs = make_stabilizer(name), make_stabilizer(name), gradients()
    for g in gs: a, b = together(g), alone(g[1:])
    assert torch.allclose(a[1:], b)
    together.reset()
    assert torch.equal(together(gs[0]), make_stabilizer(name)(gs[0]))


def test_unit_norm_and_ema():
    g = gradients()[0]
    assert torch.allclose(make_stabilizer("unit")(g).flatten(1).norm(dim=1), torch.ones(2, dtype=torch.float64))
    assert (make_stabilizer("unit")(0 * g) == 0).all()
    ema = make_stabilizer("ema")
    assert torch.allclose(ema(g), g) and torch.allclose(ema(0 * g), 0.9 * g)


def test_rms_is_rmsprop():
    rms, v = make_stabilizer("rms"), 0.0
    for k, g in enumerate(gradients(), 1):
        v = 0.999 * v + 0.001 * g**2
        assert torch.allclose(rms(g), g / (v / (1 - 0.999**k)).sqrt(), rtol=1e-3)


class Quadratic(torch.nn.Module):
    "Logits whose gradient is linear in the image: averaging over noise adds the mean of the noise."
    def forward(self, x): return torch.stack([(x**2).sum((1, 2, 3)), 0 * x.sum((1, 2, 3))], 1)


@pytest.mark.parametrize("where", ["x_t", "x0_hat"])
def test_averaging_over_noise(where):
    x, value = torch.randn(3, 3, 6, 6, generator=generator()).double(), lambda image: Quadratic()(image)[:, 0]
    x0, plain = WHERE[where](DDPM(clip=False), Net(), x, 50, value)
    x0_smooth, smooth = WHERE[f"{where}_smooth"](DDPM(clip=False), Net(), x, 50, value)
    noise = torch.randn((8, 3, 6, 6), generator=generator(50)).double()
    _, shifted = WHERE[where](DDPM(clip=False), Net(), x, 50, lambda image: value(image + 0.3 * noise.mean(0)))
    assert torch.equal(x0, x0_smooth) and torch.allclose(smooth, shifted) and not torch.allclose(smooth, plain)
    assert torch.allclose(WHERE[f"{where}_smooth"](DDPM(clip=False), Net(), x[1:2], 50, value)[1], smooth[1:2])


def test_recurrence_goes_back_to_the_noise_of_its_step():
    ddpm, x0 = DDPM(), torch.zeros(4000, 1, 1, 1).double()
    x_prev = ddpm.q_sample(x0 + 0.5, 99, randn(x0.shape, generator(1)).double())
    x_t = ddpm.renoise(x_prev, 99, 200, randn(x0.shape, generator(2)).double())
    abar = ddpm.abar[200]
    assert abs(x_t.mean() - 0.5 * abar.sqrt()) < 0.05 and abs(x_t.var() - (1 - abar)) < 0.05
    assert ddpm.visits(2, 2) == [(399, 199, True), (399, 199, False), (199, -1, True), (199, -1, False)] and [
        v[:2] for v in ddpm.visits(7)
    ] == ddpm.timesteps(7)


# --- the loop
# ---------------------------------------------------------------------------------------------------------------
def run(n=4, steps=20, micro_batch=64, generators=None, guidance=None, x_T=None):
    generators = generators or image_generators(0, range(n))
    guidance = guidance or Guidance(Logits(), 2, where=WHERE["x0_hat"], stabilizer=Adam(), scale=0.3)
    x_T = randn((len(generators), 3, 6, 6), generators).double() if x_T is None else x_T
    return list(guided_steps(DDPM(), Net(), guidance, x_T, generators, steps, micro_batch=micro_batch))


def test_an_image_does_not_depend_on_its_neighbours_or_the_micro_batch():
    whole, split, alone = (
        run()[-1].x_prev,
        run(micro_batch=3)[-1].x_prev,
        run(generators=image_generators(0, [2]))[-1].x_prev,
    )
    assert torch.allclose(whole, split, atol=1e-9) and torch.allclose(whole[2:3], alone, atol=1e-9)


def test_guidance_is_reset_for_each_generation():
    guidance = Guidance(Logits(), 2, stabilizer=Adam(), scale=0.3)
    assert torch.equal(run(guidance=guidance)[-1].x_prev, run(guidance=guidance)[-1].x_prev)


def test_guidance_raises_its_objective():
    guided, free = run(guidance=Guidance(Logits(), 2, where=WHERE["x0_hat"], scale=20.0)), run(guidance=UNGUIDED)
    value = lambda steps: OBJECTIVES["log_probability"](Logits()(steps[-1].x_prev), torch.full((4,), 2)).mean()
    assert value(guided) > value(free)


def test_one_target_per_image():
    both = run(n=2, guidance=Guidance(Logits(), torch.tensor([0, 3]), scale=5.0))[-1].x_prev
    only = run(generators=image_generators(0, [1]), guidance=Guidance(Logits(), 3, scale=5.0))[-1].x_prev
    assert torch.allclose(both[1:], only, atol=1e-9)


def test_outside_an_interval_no_gradient_is_computed():
    class Counting(Logits):
        calls = 0
        def forward(self, x):
            Counting.calls += 1
            return super().forward(x)
    steps = run(guidance=Guidance(Counting(), 0, scale=Interval(2.0, first=300, last=100)))
    inside = [s for s in steps if 300 >= s.t >= 100]
    assert Counting.calls == len(inside) > 0
    assert all((s.gradient == 0).all() == (s not in inside) for s in steps)


def test_finite_gradients_whose_sum_is_not_pass():
    guidance, huge = Guidance(Logits(), 0), torch.full((2, 3, 2, 2), 3e38)
    assert not huge.sum().isfinite() and check_gradient(huge, 5, guidance) is None
    huge[1, 0, 0, 0], huge[1, 0, 0, 1] = float("inf"), -float("inf")
    with pytest.raises(NonFiniteGradient, match="time step 5 for image 1 "): check_gradient(huge, 5, guidance)


def test_non_finite_gradient_names_step_image_and_setting():
    class Broken(Logits):
        def forward(self, x):
            return super().forward(x) * torch.where(torch.arange(len(x)) % 2 == 1, math.nan, 1.0)[:, None]

    with pytest.raises(NonFiniteGradient, match=r"time step 399 for image 1 .*Adam, scale 0.3"):
        run(n=2, guidance=Guidance(Broken(), 2, stabilizer=Adam(), scale=0.3))


@pytest.mark.parametrize("scale", [math.nan, math.inf, -1.0])
def test_bad_scale(scale):
    with pytest.raises(UserError, match="finite number >= 0"): Guidance(Logits(), 0, scale=scale)


# --- measures
# ---------------------------------------------------------------------------------------------------------------
def test_cosine_closed_forms():
    a = torch.randn(500, 3, 8, 8, generator=generator(0))
    assert torch.allclose(cosine(a, 2 * a), torch.ones(500)) and torch.allclose(cosine(a, -a), -torch.ones(500))
    c = cosine(a, torch.randn(500, 3, 8, 8, generator=generator(1)))
    assert abs(c.mean()) < 5 * (192 * 500) ** -0.5 and abs(c.std() * 192**0.5 - 1) < 0.15
    assert cosine(a, 0 * a).isnan().all()


def test_measure_leaves_out_the_first_step_and_passes_steps_through():
    steps = run()
    pairs = list(measure(iter(steps)))
    assert [s for s, _ in pairs] == steps
    trace = collect([row for _, row in pairs])
    assert (
        trace["cosine"].shape == (20, 4) and trace["cosine"][0].isnan().all() and trace["cosine"][1:].isfinite().all()
    )
    assert torch.allclose(trace["cosine"][5], cosine(steps[5].guidance, steps[4].guidance))
    assert torch.allclose(trace["norm_raw"][3].double(), steps[3].gradient.flatten(1).norm(dim=1), rtol=1e-6)


def test_sample_is_the_exhausted_stream():
    x_T = randn((2, 3, 6, 6), image_generators(0, range(2))).double()
    gens = lambda: image_generators(1, range(2))
    final = sample(DDPM(), Net(), UNGUIDED, x_T, gens(), steps=5)
    assert torch.equal(final, run(generators=gens(), guidance=UNGUIDED, steps=5, x_T=x_T)[-1].x_prev.clamp(-1, 1))
