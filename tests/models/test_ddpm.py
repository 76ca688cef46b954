"""Oracle: diffusers' schedulers, whole trajectories under the same noise and the same stand-in for a network."""
import pytest
import torch
from conftest import generator

from gradcheck.core import UserError, image_generators, randn
from gradcheck.models.ddpm import DDPM, GaussianStart
from gradcheck.guidance.samplers import DDIM
from gradcheck.guidance.sampling import Ancestral
from gradcheck.data.sportballs import SportBalls

diffusers = pytest.importorskip("diffusers")
SCHEDULE = dict(
    num_train_timesteps=400, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", timestep_spacing="trailing"
)
SHAPE = (3, 3, 16, 16)


def network(x, t):
    "Any smooth function of x and t will do."
    return torch.tanh(1.3 * x.roll(1, -1) - 0.4 * x) * (0.5 + t / 800)


def ours(ddpm, sampler, prediction, steps, x, noises):
    for (t, t_prev), noise in zip(ddpm.timesteps(steps), noises):
        x0 = ddpm.clip_x0(ddpm.x0_from(x, t, network(x, t), prediction))
        x = sampler.step(ddpm, x, x0, t, t_prev, noise, push=0.0)
    return x


def theirs(scheduler, steps, x, noises, monkeypatch, **step_arguments):
    scheduler.set_timesteps(steps)
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    for t, noise in zip(scheduler.timesteps, noises):
        monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: noise)
        x = scheduler.step(network(x, t.item()), t, x, **step_arguments).prev_sample
    return x


def start(steps):
    return randn(SHAPE, generator(0)), [randn(SHAPE, generator(k + 1)) for k in range(steps)]


@pytest.mark.parametrize("steps", [400, 100, 8])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_ancestral_trajectory(steps, clip, prediction, monkeypatch):
    x_T, noises = start(steps)
    scheduler = diffusers.DDPMScheduler(
        **SCHEDULE, clip_sample=clip, prediction_type=prediction, variance_type="fixed_small"
    )
    a, b = (
        ours(DDPM(clip=clip), Ancestral(), prediction, steps, x_T, noises),
        theirs(scheduler, steps, x_T, noises, monkeypatch),
    )
    assert (a - b).abs().max() <= 1e-4 * max(1, b.abs().max())


@pytest.mark.parametrize("steps", [400, 50])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_trajectory(steps, eta, monkeypatch):
    x_T, noises = start(steps)
    scheduler = diffusers.DDIMScheduler(**SCHEDULE, clip_sample=True, prediction_type="epsilon", set_alpha_to_one=True)
    a = ours(DDPM(), DDIM(eta), "epsilon", steps, x_T, noises)
    b = theirs(scheduler, steps, x_T, noises, monkeypatch, eta=eta, use_clipped_model_output=True)
    assert (a - b).abs().max() <= 1e-4


def test_q_sample_and_timesteps():
    scheduler = diffusers.DDPMScheduler(**SCHEDULE)
    x0, eps, t = randn(SHAPE, generator(0)), randn(SHAPE, generator(1)), torch.tensor([0, 200, 399])
    assert torch.allclose(DDPM().q_sample(x0, t, eps), scheduler.add_noise(x0, eps, t), atol=1e-5)
    for steps in (1, 8, 50, 100, 400):
        scheduler.set_timesteps(steps)
        assert [t for t, _ in DDPM().timesteps(steps)] == scheduler.timesteps.tolist()


def test_x0_and_eps_are_inverse():
    ddpm, x_t, x0 = DDPM(), randn(SHAPE, generator(0)).double(), randn(SHAPE, generator(1)).double()
    for t in (0, 57, 399):
        eps = ddpm.eps_from(x_t, t, x0)
        abar = ddpm.abar_at(t, x0)
        assert torch.allclose(ddpm.x0_from(x_t, t, eps, "epsilon"), x0)
        assert torch.allclose(ddpm.x0_from(x_t, t, abar.sqrt() * eps - (1 - abar).sqrt() * x0, "v_prediction"), x0)


def test_matched_start_has_the_moments_that_training_has():
    ddpm, data = DDPM(), SportBalls().batch(range(600))[0]
    start = GaussianStart.fit(data, rank=40)
    x_T = start(ddpm, generator(0), count=3000)
    trained = ddpm.q_sample(SportBalls().batch(range(2000, 5000))[0], 399, randn((3000, 3, 64, 64), generator(1)))
    assert (x_T.mean() - trained.mean()).abs() < 0.002
    # where a ball lies, it is darker
    brightness = lambda x: x[:, :, 8:40, 8:40].mean((1, 2, 3))
    assert abs(brightness(x_T).std() / brightness(trained).std() - 1) < 0.1
    assert brightness(randn((3000, 3, 64, 64), generator(2))).std() < 0.8 * brightness(trained).std()


def test_the_last_step_is_unguided():
    ddpm, x, x0 = DDPM(), randn(SHAPE, generator(0)), randn(SHAPE, generator(1))
    assert torch.equal(
        Ancestral().step(ddpm, x, x0, 0, -1, 0.0, push=1e6), Ancestral().step(ddpm, x, x0, 0, -1, 0.0, push=0.0)
    )


def test_one_stream_per_image():
    assert torch.equal(randn((5, 4), image_generators(3, range(5)))[2:4], randn((2, 4), image_generators(3, [2, 3])))
    states = [g.get_state().numpy().tobytes() for s in range(300) for g in image_generators(s, [0, 1, 49_999])]
    assert len(set(states)) == len(states)


def test_bad_input():
    with pytest.raises(UserError, match="between 1 and T = 400"): DDPM().timesteps(401)
    with pytest.raises(UserError, match="'linear'"): DDPM(schedule="linaer")
    with pytest.raises(UserError, match="one per image"): randn((3, 4), image_generators(0, range(2)))
