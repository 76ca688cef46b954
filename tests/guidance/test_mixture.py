"""The world in which all is known: closed forms against autograd and against samples; guided sampling against the exact
conditional."""

from dataclasses import replace

import pytest
import torch
from conftest import generator
from scipy import stats

from gradcheck.core import UserError
from gradcheck.models.ddpm import DDPM
from gradcheck.guidance.objectives import logit
from gradcheck.guidance.sampling import Guidance, at_x0_hat, at_x0_hat_stopped, gradient_of, guided_steps
from gradcheck.guidance.mixture import (
    ExactClassifier,
    ExactDenoiser,
    Mixture,
    gradient_at,
    guided_points,
    interleaved_ring,
    nonrobust_guidance,
    robust_guidance,
    sliced_wasserstein,
)
from gradcheck.guidance.stabilizers import Adam

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

DIFFUSION, RING = DDPM(clip=False), interleaved_ring(std=0.2)
UNEVEN = replace(RING, std=torch.linspace(0.1, 0.4, 6, dtype=torch.float64), labels=torch.tensor([0, 0, 1, 2, 2, 1]))
PAIR = Mixture(
    torch.tensor([[0.5, 0.2], [-0.4, 0.1]]).double(),
    torch.tensor([0.3, 0.3]).double(),
    torch.tensor([0.4, 0.6]).double(),
    torch.tensor([0, 1]),
)
WORLDS = pytest.mark.parametrize("world", [RING, UNEVEN, PAIR], ids=["ring", "uneven", "pair"])
TIMES = pytest.mark.parametrize("t", [0, 50, 200, 399])


# a little off the data
def points(world, t, n=40): return world.sample(n, generator(t), DIFFUSION.abar[t]) * 1.2


@WORLDS
@TIMES
def test_closed_forms_against_autograd(world, t):
    abar, x = DIFFUSION.abar[t], points(world, t)
    score = gradient_of(lambda x: world.log_prob(x, abar), x)
    assert torch.allclose(world.score(x, abar), score, atol=1e-9)
    # Tweedie
    assert torch.allclose(world.posterior_mean(x, abar), (x + (1 - abar) * score) / abar.sqrt(), atol=1e-9)
    for y in range(world.classes):
        robust = gradient_of(lambda x: world.class_logits(x, abar).log_softmax(1)[:, y], x)
        assert torch.allclose(world.guidance(x, y, abar), robust, atol=1e-8)
        # Bayes
        assert torch.allclose(world.given(y).score(x, abar), score + robust, atol=1e-8)
    one_time_each = torch.full((len(x),), t)
    assert torch.allclose(
        ExactDenoiser(world, DIFFUSION)(x.view(-1, 2, 1, 1), one_time_each).flatten(1),
        world.posterior_mean(x, abar),
        atol=1e-12,
    )


def test_the_density_against_torch():
    from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
    abar, x = 0.3, points(UNEVEN, 100)
    noisy = Independent(Normal(abar**0.5 * UNEVEN.means, (abar * UNEVEN.std**2 + 0.7).sqrt()[:, None].expand(-1, 2)), 1)
    assert torch.allclose(
        UNEVEN.log_prob(x, abar), MixtureSameFamily(Categorical(UNEVEN.weights), noisy).log_prob(x), atol=1e-10
    )
    assert torch.allclose(UNEVEN.class_logits(x, abar).logsumexp(1), UNEVEN.log_prob(x, abar), atol=1e-12)


def test_samples_have_the_moments_of_the_mixture():
    n, abar = 100_000, DIFFUSION.abar[60]
    x = UNEVEN.sample(n, generator(1), abar)
    noised = DIFFUSION.q_sample(
        UNEVEN.sample(n, generator(2)), 60, torch.randn(n, 2, generator=generator(3), dtype=torch.float64)
    )
    mean = abar.sqrt() * UNEVEN.weights @ UNEVEN.means
    for sample in (x, noised): assert (sample.mean(0) - mean).abs().max() < 5 * sample.std() / n**0.5
    second = (UNEVEN.weights * (2 * UNEVEN.variances(abar) + abar * (UNEVEN.means**2).sum(1))).sum()
    for sample in (x, noised): assert abs((sample**2).sum(1).mean() - second) < 0.02
    counts = torch.bincount(
        UNEVEN.given(2).sample(n, generator(4)).sub(UNEVEN.given(2).means[:, None]).norm(dim=2).argmin(0)
    )
    # components overlap a little
    assert torch.allclose(counts / n, UNEVEN.given(2).weights.float(), atol=0.1)


def posterior_covariance(world, x, abar):
    "Cov[x0 | x_t], (N, 2, 2): within the components and between them."
    r, v = world.log_joint(x, abar).softmax(1), world.variances(abar)
    # (N, K, 2)
    m = world.means + (abar.sqrt() * world.std**2 / v)[:, None] * (x[:, None] - abar.sqrt() * world.means)
    m, within = m - world.posterior_mean(x, abar)[:, None], (r * world.std**2 * (1 - abar) / v).sum(1)
    return torch.einsum("nk,nki,nkj->nij", r, m, m) + within[:, None, None] * torch.eye(2)


@WORLDS
@TIMES
def test_guidance_through_the_denoiser_in_closed_form(world, t):
    "The Jacobian of x0-hat is sqrt(abar) / (1 - abar) Cov[x0 | x_t]; with it stopped, what is left is 1 / sqrt(abar)."
    abar, x = DIFFUSION.abar[t], points(world, t)
    # of p(y | x0), at x0-hat
    at_x0 = world.guidance(world.posterior_mean(x, abar), 0)
    through = abar.sqrt() / (1 - abar) * torch.einsum("nij,nj->ni", posterior_covariance(world, x, abar), at_x0)
    assert torch.allclose(
        gradient_at(world, DIFFUSION, nonrobust_guidance(world, 0, where=at_x0_hat), x, t),
        through,
        rtol=1e-6,
        atol=1e-8,
    )
    stopped = gradient_at(world, DIFFUSION, nonrobust_guidance(world, 0, where=at_x0_hat_stopped), x, t)
    assert torch.allclose(stopped, at_x0 / abar.sqrt(), rtol=1e-6, atol=1e-8)
    assert torch.allclose(
        gradient_at(world, DIFFUSION, nonrobust_guidance(world, 0), x, t), world.guidance(x, 0), atol=1e-8
    )
    assert torch.allclose(
        gradient_at(world, DIFFUSION, robust_guidance(world, 0), x, t), world.guidance(x, 0, abar), atol=1e-8
    )


@TIMES
def test_where_x0_hat_is_exact(t):
    """One Gaussian, and a log-likelihood linear in x0: then log E[exp(a x0) | x_t] and a x0-hat(x_t) differ by a
    constant."""
    one, abar, a = PAIR.given(0), DIFFUSION.abar[t], torch.tensor([[2.0], [-1.0]]).double()
    class Linear(ExactClassifier):
        def forward(self, x): return x.flatten(1) @ a
    exact = abar.sqrt() * one.std**2 / one.variances(abar) * a.T
    gradient = gradient_at(one, DIFFUSION, Guidance(Linear(one), 0, logit, at_x0_hat), points(one, t), t)
    assert torch.allclose(gradient, exact.expand_as(gradient), atol=1e-10)


# --- sampling
# -------------------------------------------------------------------------------------------------------------
N, REPEATS = 2000, 3


def distances(guidance, scale, seed):
    "Of REPEATS sets of N points from the exact conditional of class 0."
    g = generator(seed)
    x_T = RING.sample(REPEATS * N, g, DIFFUSION.abar[-1])
    x = guided_points(RING, DIFFUSION, guidance, x_T, torch.full((len(x_T),), scale), g, steps=200)
    return sliced_wasserstein(x.view(REPEATS, N, 2), RING.given(0).sample(REPEATS * N, g).view(REPEATS, N, 2))


def test_exact_guidance_samples_the_exact_conditional():
    truth, g = RING.given(0), generator(7)
    floor = sliced_wasserstein(*(truth.sample(60 * N, g).view(60, N, 2) for _ in range(2)))
    tolerance = 4 * floor.std() * (1 / REPEATS + 1 / 60) ** 0.5
    assert abs(distances(robust_guidance(RING, 0), 1.0, 1).mean() - floor.mean()) < tolerance
    for scale in (0.0, 0.5, 4.0): assert distances(robust_guidance(RING, 0), scale, 2).mean() > floor.mean() + tolerance
    assert distances(nonrobust_guidance(RING, 0), 1.0, 3).mean() > floor.mean() + tolerance


def test_each_point_has_its_scale():
    x_T, guidance = (
        RING.sample(6, generator(0), DIFFUSION.abar[-1]).repeat(2, 1),
        nonrobust_guidance(RING, 0, where=at_x0_hat, stabilizer=Adam(), scale=9.0),
    )
    run = lambda scales: guided_points(RING, DIFFUSION, guidance, x_T, torch.tensor(scales), generator(1), steps=5)
    mixed, half, none = run([0.5] * 6 + [0.0] * 6), run([0.5] * 12), run([0.0] * 12)
    assert torch.equal(mixed, torch.cat([half[:6], none[6:]])) and not torch.equal(half, none)
    *_, step = guided_steps(
        DIFFUSION, ExactDenoiser(RING, DIFFUSION), replace(guidance, scale=0.5), x_T.view(-1, 2, 1, 1), generator(1), 5
    )
    assert torch.allclose(half, step.x_prev.flatten(1), atol=1e-12)
    free = guided_points(RING, DIFFUSION, robust_guidance(RING, 1), x_T, torch.zeros(12), generator(1), steps=5)
    assert torch.equal(none, free)


def test_sliced_wasserstein_against_scipy():
    a, b = torch.randn(50, 2, generator=generator(0)).double(), torch.rand(50, 2, generator=generator(1)).double()
    assert sliced_wasserstein(a, b, 1).item() == pytest.approx(stats.wasserstein_distance(a[:, 0], b[:, 0]))
    assert sliced_wasserstein(a, b, 2).item() == pytest.approx(
        sum(stats.wasserstein_distance(a[:, i], b[:, i]) for i in range(2)) / 2
    )
    assert sliced_wasserstein(a, a.flip(0)) < 1e-14 and sliced_wasserstein(a, b) > 0.1
    shift = torch.tensor([3.0, 4.0]).double()
    # the mean of |cos|
    assert sliced_wasserstein(a, a + shift, 2000).item() == pytest.approx(5 * 2 / torch.pi, rel=1e-3)
    assert torch.allclose(
        sliced_wasserstein(torch.stack([a, b]), b), torch.stack([sliced_wasserstein(a, b), torch.tensor(0.0).double()])
    )


# --- bad input
# --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "change, message",
    [
        (dict(means=torch.zeros(6, 3)), "shapes"),
        (dict(std=torch.ones(5)), "shapes"),
        (dict(weights=torch.ones(6)), "these sum to 6"),
        (dict(weights=torch.tensor([2.0, -1, 0, 0, 0, 0])), "positive"),
        (dict(std=torch.zeros(6)), "standard deviations"),
        (dict(labels=torch.tensor([0, 2, 0, 2, 0, 2])), "labels"),
        (dict(labels=torch.tensor([0, -1, 0, 1, 0, 1])), "labels"),
    ],
    ids=str,
)
def test_a_mixture_that_is_none(change, message):
    with pytest.raises(UserError, match=message): replace(RING, **change)


def test_bad_input_is_told():
    for y in (2, -1):
        with pytest.raises(UserError, match=f"there is no class {y}; choose one of 0..1"): RING.given(y)
    with pytest.raises(UserError, match="points"): RING.score(torch.zeros(3, 5).double())
    with pytest.raises(UserError, match="points"): RING.log_prob(torch.zeros(2).double())
    with pytest.raises(UserError, match="one per point"):
        guided_points(RING, DIFFUSION, robust_guidance(RING, 0), torch.zeros(3, 2).double(), torch.ones(2), generator())
    for a, b in (((4, 2), (5, 2)), ((4, 3), (4, 3))):
        with pytest.raises(UserError, match="as many points"): sliced_wasserstein(torch.zeros(a), torch.zeros(b))
