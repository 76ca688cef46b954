"""The field's ways against closed forms: a Gaussian world, linear classifiers, and the ring of Gaussians."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import generator
from torch import nn

from gradcheck.core import UserError, image_generators, own_seeds, randn
from gradcheck.guidance.mixture import ExactClassifier, ExactDenoiser, interleaved_ring
from gradcheck.guidance.objectives import OBJECTIVES, Value, calibrated, log_probability
from gradcheck.guidance.samplers import DDIM, MeanShift, Spherical
from gradcheck.guidance.sampling import WHERE, Ancestral, Guidance, at_x0_hat, at_x_t, guided_steps, smoothed
from gradcheck.guidance.stabilizers import UnitNorm, make_stabilizer
from gradcheck.guidance.ways import (
    ascended,
    augmented,
    best_of,
    changed,
    check_ways,
    cone,
    in_cone,
    interpolation,
    monte_carlo,
    places,
    polyak,
)
from gradcheck.models.batches import MicroBatch
from gradcheck.models.ddpm import DDPM
from gradcheck.runs.specs import RunSpec

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

# x0 ~ N(0, 1) per pixel; y = x0 + N(0, tau^2)
WORLD, TAU2, Y = DDPM(T=400, beta_end=0.05, clip=False), 0.5, 1.5
RING, DIFFUSION = interleaved_ring(), DDPM(clip=False)


class Exact:
    prediction = "sample"
    def __call__(self, x, t): return WORLD.abar_at(t, x).sqrt() * x


class Gaussian(nn.Module):
    "log p(y | x0) as the logit of class 0; class 1 has logit 0."
    def forward(self, x): return torch.cat([-((x - Y) ** 2).flatten(1) / (2 * TAU2), 0 * x.flatten(1)], 1)


def likelihood(logits, target): return logits[:, 0]


def evaluate(where, x, t, objective=likelihood, classifier=None, seeds=None):
    guidance = Guidance(classifier or Gaussian(), 0, objective, where)
    guidance.reset(seeds)
    return guidance.evaluate(WORLD, Exact(), x, t, MicroBatch(len(x), tile=1))[1]


def points(n=40, seed=0): return randn((n, 1, 1, 1), generator(seed)).double()


def images(n=4, seed=0): return randn((n, 3, 8, 8), generator(seed)).double()


# --- Monte Carlo likelihood
@pytest.mark.parametrize("t", [20, 120, 300])
def test_monte_carlo_is_the_exact_guidance_of_a_gaussian(t):
    # many images with draws of their own: their mean error is that of many more draws
    x, abar = torch.full((400, 1, 1, 1), 0.7).double(), WORLD.abar[t]
    exact = (Y - abar.sqrt() * 0.7) * abar.sqrt() / (1 - abar + TAU2)
    many = evaluate(monte_carlo(at_x0_hat, 100), x, t, seeds=torch.arange(400))
    assert abs(many.mean() - exact) < 0.03 and many.std() > 0
    assert t == 20 or abs(evaluate(at_x0_hat, x, t).mean() - exact) > 0.1


def test_monte_carlo_is_a_log_of_a_mean_of_probabilities():
    x, t, seeds = points(3), 100, torch.tensor([5, 6, 7])
    sigma, x0 = (1 - WORLD.abar[t]).sqrt(), WORLD.abar[t].sqrt() * x
    draws = Value(likelihood, Gaussian(), 0, seeds).generators(t)
    noise = randn((3, 4, 1, 1, 1), draws).double().transpose(0, 1)
    around = x0 + sigma * noise
    p = (-((around - Y) ** 2) / (2 * TAU2)).exp()
    slope = (p * (Y - around) / TAU2).sum(0) / p.sum(0) * WORLD.abar[t].sqrt()
    assert torch.allclose(evaluate(monte_carlo(at_x0_hat, 4), x, t, seeds=seeds), slope)


# --- draws of an image's own
@pytest.mark.parametrize("way", [monte_carlo, augmented])
def test_an_image_draws_the_same_whatever_its_neighbours(way):
    class Shifted(nn.Module):
        def forward(self, x): return torch.tanh(x.flatten(1)) @ torch.randn(192, 3, generator=generator(2)).double()
    def run(which, **how):
        guidance = Guidance(Shifted(), 1, where=way(at_x0_hat), scale=3.0)
        x_T = images(4)[which]
        return [s.gradient for s in guided_steps(WORLD, Exact(), guidance, x_T, image_generators(1, which), 3, **how)]
    whole, part = run([0, 1, 2, 3], micro_batch=MicroBatch(2, tile=1)), run([1, 3])
    for a, b in zip(whole, part): assert torch.allclose(a[[1, 3]], b)
    assert not torch.allclose(run([0, 1])[0][0], run([0, 1])[0][1])


def test_draws_leave_the_samplers_noise_as_it_is():
    one, two = image_generators(3, range(2)), image_generators(3, range(2))
    own_seeds(one, 2)
    assert torch.equal(randn((2, 3), one), randn((2, 3), two))
    assert torch.equal(own_seeds(generator(4), 3), own_seeds(generator(4), 3))
    value = Value(None, None, None, torch.tensor([1, 2]))
    assert torch.equal(randn((2, 5), value.generators(7)), randn((2, 5), value.generators(7)))
    assert not torch.equal(randn((2, 5), value.generators(7)), randn((2, 5), value.generators(8)))


# --- random augmentation
def test_augmentation_is_the_mean_over_transposed_transforms():
    w, x, t = randn((3, 8, 8), generator(1)).double(), images(), 50
    turns = [lambda x, k=k: k * x.roll(k, 3).flip(2) for k in (1, 2, 5)]
    calls = iter(turns)
    class Linear(nn.Module):
        def forward(self, x): return (x * w).sum((1, 2, 3))[:, None]
    g = evaluate(augmented(at_x_t, lambda x, generators: next(calls)(x), 3), x, t, classifier=Linear())
    transposed = sum(k * w.flip(1).roll(-k, 2) for k in (1, 2, 5)) / 3
    assert torch.allclose(g, transposed.expand_as(g))


def test_transforms_keep_what_they_should():
    x = images(6)
    out = changed(x, image_generators(0, range(6)))
    assert out.shape == x.shape and torch.equal(out[2:4], changed(x[2:4], image_generators(0, [2, 3])))
    still, moved = interpolation(8, torch.ones(2), torch.tensor([0.0, 0.25])).double()
    assert torch.equal(still @ x, x) and torch.equal((moved @ x)[:, :, 2:], x[:, :, :6])
    assert torch.equal((moved @ x)[:, :, 0], x[:, :, 0])                     # beyond the edge the edge goes on
    ramp = torch.arange(8.0).view(1, 1, 8, 1)
    half = (interpolation(8, torch.tensor([0.5]), torch.zeros(1)) @ ramp).flatten()
    assert half.tolist() == [0, 0, 0.5, 2.5, 4.5, 6.5, 7, 7]
    # so many pixels are cut from a picture of ones, but for its colours
    one = torch.ones(50, 1, 8, 8)
    assert ((changed(one, image_generators(1, range(50))) == 0).sum((1, 2, 3)) == 4).all()


# --- Polyak
def test_polyak_is_the_formula_and_a_zero_gradient_stays_zero():
    x, t = images(), 80
    class Sum(nn.Module):
        def forward(self, x): return torch.stack([(x**3).sum((1, 2, 3)), 0 * x.sum((1, 2, 3))], 1)
    g, eps = evaluate(at_x_t, x, t, classifier=Sum()), WORLD.eps_from(x, t, WORLD.abar[t].sqrt() * x)
    def squares(v): return v.square().sum((1, 2, 3), keepdim=True)
    assert torch.allclose(evaluate(polyak(at_x_t), x, t, classifier=Sum()), squares(eps).sqrt() / squares(g) * g)
    # a maximum of the likelihood
    assert (evaluate(polyak(at_x_t), torch.full((2, 1, 1, 1), Y).double(), t) == 0).all()


# --- cone
def angle(a, b): return torch.rad2deg(torch.acos(torch.cosine_similarity(a.flatten(1), b.flatten(1)).clamp(-1, 1)))


def test_cone_turns_by_the_angle_and_no_more():
    g = torch.tensor([[2.0, 0, 0]] * 4).double().view(4, 3, 1, 1)
    towards = torch.tensor([0.0, 20, 80, 170]).deg2rad().double()
    r = 7 * torch.stack([towards.cos(), 0 * towards, towards.sin()], 1).view(4, 3, 1, 1)
    out = cone(g, r)
    assert torch.allclose(angle(out, g), torch.tensor([0.0, 0, 30, 30]).double(), atol=1e-5)
    assert torch.allclose(angle(out, r), torch.tensor([0.0, 20, 50, 140]).double(), atol=1e-5)
    lengths = out.flatten(1).norm(dim=1)
    wide = 1 / math.cos(math.radians(30))
    assert torch.allclose(lengths, torch.tensor([1, 1, wide, wide]).double())
    assert (cone(0 * g, 0 * r) == 0).all() and cone(g, 0 * r).isfinite().all()
    # as directions, however small: in float32 their squares are nothing
    g, r = g.float(), r.float()
    for small in (cone(1e-25 * g, r), cone(g, 1e-25 * r), cone(1e-30 * g, 1e-30 * r)):
        assert torch.allclose(small, out.float(), atol=1e-5)


@pytest.mark.parametrize("where", [at_x_t, at_x0_hat])
def test_cone_takes_the_robust_gradient_of_the_same_target(where):
    t, target = 150, torch.tensor([0, 1] * 10)
    x = RING.sample(20, generator(1), DIFFUSION.abar[t]).view(-1, 2, 1, 1)
    robust = ExactClassifier(RING, DIFFUSION.abar[t])
    def gradient(where):
        guidance = Guidance(ExactClassifier(RING), target, where=where)
        return guidance.evaluate(DIFFUSION, ExactDenoiser(RING, DIFFUSION), x, t, MicroBatch(8, tile=1))[1]
    exact = torch.stack([RING.guidance(p.flatten()[None], y, DIFFUSION.abar[t])[0] for p, y in zip(x, target.tolist())])
    assert torch.allclose(gradient(in_cone(where, robust)), cone(gradient(where), exact.view_as(x)), atol=1e-6)


# --- mean guidance
@pytest.mark.parametrize("where", [
    smoothed(in_cone(at_x_t, Gaussian())),
    in_cone(smoothed(at_x_t), Gaussian()),
    augmented(monte_carlo(at_x0_hat, 2), count=2),
    monte_carlo(augmented(at_x0_hat, count=2), 2),
    smoothed(augmented(in_cone(at_x0_hat, Gaussian()), count=2)),
])
def test_ways_stand_in_each_other_in_any_order(where):
    x = randn((3, 1, 4, 4), generator())
    class First(nn.Module):
        def forward(self, x): return x.flatten(1)
    gradient = evaluate(where, x, 100, classifier=First(), seeds=torch.arange(3))
    assert gradient.shape == x.shape and gradient.isfinite().all() and gradient.abs().max() > 0


def test_a_cone_in_a_smooth_way_turns_to_the_robust_gradient_as_smooth():
    x = points(5)
    class Cubic(nn.Module):
        def forward(self, x): return x.flatten(1) ** 3
    way = smoothed(in_cone(at_x_t, Cubic(), degrees=89.0), sigma=2.0)
    seen = []
    def first(g, robust, degrees):
        seen.append(robust)
        return g
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradcheck.guidance.ways.cone", first)
        evaluate(way, x, 100, seeds=torch.arange(5))
    noise = randn((8, 1, 1, 1), torch.Generator().manual_seed(100)).double()
    assert torch.allclose(seen[0], (3 * (x + 2 * noise[:, None]) ** 2).mean(0))


@pytest.mark.parametrize("count", [1, 3])
def test_mean_guidance_climbs_the_likelihood_of_x0_hat(count):
    x, t, s = points(), 90, 0.2
    x0 = WORLD.abar[t].sqrt() * x
    left = (1 - s / TAU2) ** count                                          # each ascent shortens the way to Y so
    assert torch.allclose(x0 + s * evaluate(ascended(s, count), x, t), Y + left * (x0 - Y))
    assert torch.allclose(evaluate(ascended(lambda t: s, count), x, t), evaluate(ascended(s, count), x, t))


def test_mean_guidance_moves_x0_hat_and_holds_the_noise():
    x, noise, push, x0 = images(), images(seed=1), 0.3 * images(seed=2), images(seed=3).clamp(-1, 1)
    t, t_prev = 200, 120
    abar_prev, sampler = WORLD.abar[t_prev], MeanShift(DDIM(eta=0.7))
    sigma2 = sampler.sampler.variance(WORLD, t, t_prev, x)
    eps = WORLD.eps_from(x, t, x0)
    expected = abar_prev.sqrt() * (x0 + push) + (1 - abar_prev - sigma2).sqrt() * eps + sigma2.sqrt() * noise
    out = sampler.step(WORLD, x, x0, t, t_prev, noise, push)
    assert torch.allclose(out, expected)
    still = sampler.step(WORLD, x, x0, t, t_prev, noise, 0 * push)
    assert torch.allclose(out - still, sampler.gain(WORLD, t, t_prev, x) * push)


def test_mean_guidance_reaches_a_gaussian_conditional():
    "By the way of E[x0 | x_t, y] - E[x0 | x_t], times what a shift of x0-hat is worth where the noise is not held."
    x_T = points(5000)
    class Best(Guidance):
        def evaluate(self, ddpm, denoiser, x_t, t, micro_batch):
            abar, abar_prev = WORLD.abar_at(t, x_t), WORLD.abar_at(t - 1, x_t)
            x0, left = abar.sqrt() * x_t, 1 - abar
            return x0, (1 - abar / abar_prev) / left * left / (left + TAU2) * (Y - x0)
    # to the end of 400 steps, one after the other
    for last in guided_steps(WORLD, Exact(), Best(None, 0), x_T, generator(9), sampler=MeanShift(DDIM(eta=1.0))): pass
    assert abs(last.x_prev.mean() - Y / (1 + TAU2)) < 0.04 and abs(last.x_prev.var() - TAU2 / (1 + TAU2)) < 0.04


# --- DSG
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_dsg_is_the_formula_and_stays_on_the_sphere(share):
    x, noise, g, x0 = images(), images(seed=1), images(seed=2), images(seed=3)
    t, t_prev, n = 200, 120, 192
    plain, sampler = Ancestral(), Spherical(Ancestral())
    sigma = plain.variance(WORLD, t, t_prev, x).sqrt()
    def unit(v): return v / v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    d, goal = sigma * noise, n**0.5 * sigma * unit(g)
    mean = plain.mean(WORLD, x, x0, t, t_prev)
    out = sampler.step(WORLD, x, x0, t, t_prev, noise, share * UnitNorm()(g))
    assert torch.allclose(out, mean + n**0.5 * sigma * unit(d + share * (goal - d)))
    assert torch.allclose((out - mean).flatten(1).norm(dim=1), (n**0.5 * sigma).expand(4))
    assert torch.allclose(sampler.gain(WORLD, t, t_prev, x), n**0.5 * sigma)


@pytest.mark.parametrize("size", [1e-40, 1e-24, 1e-15, 1e-9, 1.0, 1e15])
def test_unit_norm_is_one_however_small_or_large(size):
    "A sure classifier's gradients are so small that their squares are none in single precision."
    g = images().float()
    assert torch.allclose(UnitNorm()(size * g), UnitNorm()(g), rtol=1e-4, atol=1e-4)
    assert torch.allclose(UnitNorm()(g).flatten(1).norm(dim=1), torch.ones(4)) and not UnitNorm()(0 * g).any()


def test_dsg_ends_at_the_mean():
    x, x0 = images(), images(seed=3)
    assert torch.allclose(Spherical(Ancestral()).step(WORLD, x, x0, 3, -1, images(seed=1), 0.2 * x), x0)


# --- objective, stabilizer, control
def test_calibrated_objective():
    logits, target = torch.randn(5, 3, generator=generator()), torch.tensor([0, 2, 1, 1, 0])
    f_y = logits[range(5), target]
    assert torch.allclose(calibrated(logits, target), (f_y.exp() / (logits / 2).exp().sum(1)).log(), atol=1e-6)
    assert torch.allclose(calibrated(logits, target, 1.0, 1.0), log_probability(logits, target), atol=1e-6)
    assert OBJECTIVES["calibrated"] is calibrated


def test_first_norm_is_one_factor_for_each_image():
    first, gs = make_stabilizer("first_norm"), [images(seed=k) for k in range(4)]
    gs[0][2] = 0
    factors = [gs[0][i].norm() if i != 2 else 1.0 for i in range(4)]
    for g in gs: assert torch.allclose(first(g), torch.stack([g[i] / factors[i] for i in range(4)]))


def test_best_of_takes_the_largest_of_each_group():
    values = torch.tensor([0.1, 0.5, 0.5, 0.9, 0.2, 0.3])
    assert best_of(values, 3).tolist() == [1, 3] and best_of(values, 1).tolist() == list(range(6))
    with pytest.raises(UserError, match="0 candidates were asked for; give at least 1"): best_of(values, 0)


def test_no_way_of_nothing():
    for make in (lambda: monte_carlo(at_x0_hat, 0), lambda: augmented(at_x_t, count=0), lambda: ascended(1.0, 0)):
        with pytest.raises(UserError, match="^0 .* were asked for; give at least 1.$"): make()


def test_a_way_by_name_is_named_after_what_it_shows():
    for name, make in places(WHERE).items():
        where = make(0.5, Gaussian())
        known = ("x_t", "x0_hat", "x0_hat_stopped", "x0_hat_mean")
        assert where.__name__.startswith(("unguided", *(f"at_{at}" for at in known)))
        gradient = evaluate(where, points(3), 100, seeds=torch.arange(3))
        assert gradient.isfinite().all() and (gradient != 0).any() == (name != "unguided")


# --- what has no meaning
BAD = {
    "takes two classifiers; give the robust one": dict(where="x_t_cone"),
    "but where 'x_t' takes one": dict(robust="laptop/robust"),
    "takes a mean of probabilities, and objective 'logit'": dict(where="x0_hat_monte_carlo", objective="logit"),
    "takes a mean of probabilities, and objective 'cal": dict(where="x0_hat_monte_carlo", objective="calibrated"),
    "sets the length of a gradient and stabilizer 'unit'": dict(where="x_t_polyak", stabilizer="unit"),
    "where 'x0_hat_mean' does not go with sampler 'ancestral'": dict(where="x0_hat_mean"),
    "where 'x_t' does not go with sampler 'mpgd'": dict(sampler="mpgd"),
    "behind an ascent in four steps": dict(where="x0_hat_mean_4", sampler="mpgd", stabilizer="adam"),
    "was given stabilizer 'none' and scale 0.5": dict(sampler="dsg", scale=0.5),
    "was given stabilizer 'unit' and scale 10": dict(sampler="dsg", stabilizer="unit"),
    "no float16 state": dict(sampler="dsg", stabilizer="unit", scale=0.5, state="float16"),
    "best of 4 candidates guides without a gradient, so where 'x_t'": dict(candidates=4),
    "and stabilizer 'adam' have no meaning": dict(candidates=4, where="unguided", stabilizer="adam"),
    "0 candidates for each image were asked for; give a number from 1": dict(candidates=0),
    "candidates is 1.5; give a whole number": dict(candidates=1.5),
    "objective 'binary' does not fit a classifier with 4 logits": dict(objective="binary"),
}


@pytest.mark.parametrize("said", BAD)
def test_what_has_no_meaning_is_refused_in_a_sentence(said):
    with pytest.raises(UserError) as e: RunSpec(**BAD[said])
    assert said in str(e.value) and str(e.value).count("\n") == 0


def test_what_has_a_meaning_has_a_key_of_its_own():
    plain = RunSpec()
    good = [
        dict(objective="calibrated"),
        dict(stabilizer="first_norm"),
        dict(where="x_t_cone", robust="laptop/robust"),
        dict(where="x0_hat_cone", robust="laptop/judge"),
        dict(where="x0_hat_cone", robust="laptop/robust"),
        dict(where="x0_hat_mean", sampler="mpgd"),
        dict(where="x0_hat_mean_4", sampler="mpgd"),
        dict(sampler="dsg", stabilizer="unit", scale=0.3),
        dict(where="unguided", candidates=4),
        dict(where="unguided", candidates=2),
        dict(where="unguided"),
        *(dict(where=name) for name in ("x_t_augmented", "x0_hat_augmented", "x0_hat_monte_carlo", "x0_hat_polyak")),
    ]
    keys = {replace(plain, **fields).key for fields in good}
    assert len(keys | {plain.key}) == len(good) + 1
    assert replace(plain, candidates=1, robust=None).key == plain.key
    for fields in good: check_ways(replace(plain, **fields))
