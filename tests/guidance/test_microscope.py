"""The gradient microscope against closed cases: shares of known gradients, a known signal in known noise, linear
classifiers, and paths whose law is known."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import generator
from test_guidance import Logits, Net

from gradcheck.core import UserError, image_generators, norm
from gradcheck.models.ddpm import DDPM
from gradcheck.guidance.gradients import cosine
from gradcheck.guidance.microscope import (
    Lens,
    Memory,
    cosine_between,
    low_frequencies,
    low_frequency_share,
    magnify,
    masked_share,
    microscope,
    noisy_paths,
    sensitivity,
    snr,
)
from gradcheck.models.ddpm import predict
from gradcheck.models.batches import MicroBatch
from gradcheck.guidance.stabilizers import make_stabilizer

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def normal(*shape, seed=0): return torch.randn(*shape, generator=generator(seed))


# --- where the power is
# ------------------------------------------------------------------------------------------------
def test_share_on_a_mask():
    g, mask = normal(400, 3, 16, 16), torch.zeros(400, 16, 16, dtype=torch.bool)
    mask[:200, :4], mask[200:, 3:9, 5:13] = True, True
    share, area = masked_share(g, mask), mask.float().mean((1, 2))
    for part in (slice(0, 200), slice(200, 400)):
        std = (2 * area[part][0] * (1 - area[part][0]) / 768) ** 0.5                       # of a ratio of chi-squares
        assert abs(share[part].mean() - area[part][0]) < 4 * std / 200**0.5 and abs(share[part].std() / std - 1) < 0.25
    assert masked_share(g * mask[:, None], mask).eq(1).all() and masked_share(g * ~mask[:, None], mask).eq(0).all()
    # a vanishing gradient still has a place
    assert torch.allclose(masked_share(1e-30 * g, mask), share) and masked_share(0 * g, mask).isnan().all()
    two = torch.ones(1, 1, 2, 2) * torch.tensor([[1.0, 2], [3, 4]])
    assert masked_share(two, torch.tensor([[[False, True], [False, True]]])).item() == pytest.approx(20 / 30)


def test_share_in_low_frequencies():
    g = normal(400, 3, 16, 16, seed=1)
    low = low_frequencies(16, 16, 3)
    assert low.sum() == sum(u * u + v * v <= 9 for u in range(-8, 8) for v in range(-8, 8)) == 29
    assert abs(low_frequency_share(g, 3).mean() / low.float().mean() - 1) < 0.02
    assert torch.allclose(low_frequency_share(torch.ones(2, 3, 16, 16), 0), torch.ones(2))
    x = torch.arange(16) * (2 * torch.pi / 16)
    # one wave across, and one along, at one frequency
    for cycles in range(1, 8):
        for wave in ((cycles * x).cos().expand(1, 3, 16, 16), (cycles * x).sin()[:, None].expand(1, 3, 16, 16)):
            assert low_frequency_share(wave, cycles).item() == pytest.approx(1) and low_frequency_share(
                wave, cycles - 0.5
            ).item() == pytest.approx(0, abs=1e-9)


# --- signal and noise
# ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("repeats", [2, 3, 10])
@pytest.mark.parametrize("level", [0.0, 0.2, 1.0])
def test_the_ratio_of_a_known_signal_to_known_noise(level, repeats):
    signal = normal(500, 1, 3, 8, 8, seed=2)
    signal = signal / signal.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1) * level * 192**0.5
    found = snr(signal + 3 * normal(500, repeats, 3, 8, 8, seed=3))                         # noise power 9 * 192
    assert abs(found.mean() - level**2 / 9) < 5 * found.std() / 500**0.5 and found.std() < 0.1
    # unbiased: below zero as often as above
    assert level > 0 or (found < 0).any()


def test_cosine_between_draws():
    g = normal(6, 4, 3, 5, 5, seed=6)
    pairs = torch.stack([cosine(g[:, a], g[:, b]) for a in range(4) for b in range(a)])
    assert torch.allclose(cosine_between(g), pairs.mean(0), atol=1e-6)
    lengths = torch.tensor([1.0, 1e-12, 1e6, 3]).view(1, 4, 1, 1, 1)
    assert torch.allclose(cosine_between(lengths * g), cosine_between(g), atol=1e-6) and torch.allclose(
        cosine_between(lengths * g[:, :1]), torch.ones(6)
    )
    assert cosine_between(0 * g).isnan().all()


def test_a_ratio_needs_two_draws():
    with pytest.raises(UserError, match="at least 2"): snr(normal(3, 1, 5))


# --- sensitivity
# --------------------------------------------------------------------------------------------------------
def test_sensitivity_of_constant_and_linear_functions():
    x, y, A = normal(6, 3, 4, 4), normal(6, 3, 4, 4, seed=1), normal(5, 48, seed=2)
    assert sensitivity(torch.ones(6, 4), torch.ones(6, 4), x, y).eq(0).all()
    assert torch.allclose(sensitivity(2 * x, 2 * y, x, y), torch.full((6,), 2.0))
    d = (x - y).flatten(1)
    assert torch.allclose(
        sensitivity(x.flatten(1) @ A.T + 1, y.flatten(1) @ A.T + 1, x, y),
        (d @ A.T).norm(dim=1) / d.norm(dim=1),
        rtol=1e-5,
    )


# --- the paths
# ----------------------------------------------------------------------------------------------------------
def test_paths_follow_the_forward_process_and_end_in_x0():
    # the posterior is the posterior, whatever the sampler's variance
    ddpm, x0, n = DDPM(T=40, beta_end=0.2, variance="fixed_large"), normal(2, 1, 4, 4).clamp(-1, 1).double(), 4000
    for steps in (40, 7):
        path = list(noisy_paths(ddpm, x0, image_generators(0, range(2)), steps, n))
        assert [t for t, _ in path] == [t for t, _ in ddpm.timesteps(steps)] and path[0][1].shape == (2, n, 1, 4, 4)
        eps = {t: (x_t - ddpm.abar[t].sqrt() * x0[:, None]) / (1 - ddpm.abar[t]).sqrt() for t, x_t in path}
        for (t, e), (t_next, f) in zip(eps.items(), list(eps.items())[1:]):
            assert abs(e.mean()) < 5 / e.numel() ** 0.5 and abs(e.var() - 1) < 5 * (2 / e.numel()) ** 0.5
            # q: x_t = sqrt(a/b) x_next + noise, so eps and eps_next correlate by
            a, b = ddpm.abar[t], ddpm.abar[t_next]
            known = (a / b).sqrt() * ((1 - b) / (1 - a)).sqrt()
            assert abs((e * f).mean() - known) < 5 * ((1 + known**2) / e.numel()) ** 0.5
        assert (eps[t_next][:, 0] - eps[t_next][:, 1]).abs().max() > 0.5  # paths of their own
    assert (list(noisy_paths(ddpm, x0, image_generators(0, range(2)), 40, 9))[-1][1] - x0[:, None]).abs().max() < 5 * (
        1 - ddpm.abar[0]
    ).sqrt()


def test_a_path_does_not_depend_on_the_batch():
    x0 = normal(3, 3, 4, 4)
    alone = list(noisy_paths(DDPM(), x0[2:], image_generators(5, [2]), 6, 2))
    for (t, a), (u, b) in zip(noisy_paths(DDPM(), x0, image_generators(5, range(3)), 6, 2), alone):
        assert t == u and torch.equal(a[2:], b)


# --- the table
# ----------------------------------------------------------------------------------------------------------
class Linear(torch.nn.Module):
    "Logits W x: their gradient is known."
    def __init__(self, w):
        super().__init__()
        self.w = w
    def forward(self, x): return x.flatten(1) @ self.w.T


def first_logit(logits, target): return logits[:, 0]


@pytest.fixture(scope="module")
def world():
    smooth, straight = Logits(), Linear(normal(4, 108, seed=9).double())
    lenses = dict(
        robust=Lens(smooth),
        plain=Lens(straight, objective=first_logit),
        x0_hat=Lens(smooth, "x0_hat"),
        stopped=Lens(smooth, "x0_hat_stopped"),
        adam=Lens(smooth, "x_t", "adam"),
        both=Lens(smooth, "x0_hat", "adam"),
    )
    x0, target, mask = 0.5 * normal(5, 3, 6, 6).double(), torch.tensor([0, 1, 2, 3, 0]), normal(5, 6, 6, seed=4) > 0.3

    def look(part=slice(0, 5), **changes):
        return microscope(
            **dict(
                lenses=lenses,
                ddpm=DDPM(),
                denoiser=Net(),
                x0=x0[part],
                target=target[part],
                mask=mask[part],
                images=range(5)[part],
                steps=8,
                repeats=3,
                lag=3,
                cutoff=1.5,
                seed=1,
            )
            | changes
        )
    return lenses, straight, x0, target, mask, look


def test_one_row_per_lens_step_and_image(world):
    lenses, _, x0, target, mask, look = world
    table = look()
    assert len(table) == len(lenses) * 8 * 5 == len(table[["lens", "t", "image"]].drop_duplicates()) and set(
        table["lens"]
    ) == set(lenses)
    assert (
        sorted(set(table["t"]), reverse=True) == [t for t, _ in DDPM().timesteps(8)]
        and (table.groupby("t")["step"].nunique() == 1).all()
    )
    for column in ("cosine", "cosine_lag", "agreement"): assert table[column].dropna().abs().max() <= 1 + 1e-6
    for column in ("ball", "low", "saturated"): assert table[column].between(0, 1).all()
    assert (table["cosine"].isna() == (table["step"] < 1)).all() and (
        table["cosine_lag"].isna() == (table["step"] < 3)
    ).all()
    assert table.drop(columns=["cosine", "cosine_lag"]).notna().all(axis=None)
    assert np.allclose(table["area"], mask.float().mean((1, 2))[table["image"]])


def test_pictures_belong_to_their_rows(world):
    lenses, _, x0, target, mask, _ = world
    few = {name: lenses[name] for name in ("robust", "adam")}
    steps = list(magnify(few, DDPM(), Net(), x0, target, mask, range(5), steps=4, repeats=2))
    for (x_t, guidance, rows), (t, paths) in zip(
        steps, noisy_paths(DDPM(), x0, image_generators(0, range(5)), 4, 2), strict=True
    ):
        assert torch.equal(x_t, paths[:, 0]) and set(rows["t"]) == {t} and len(rows) == 10
        for name, g in guidance.items():
            assert np.allclose(rows[rows["lens"] == name]["norm"], norm(g).float()) and np.allclose(
                rows[rows["lens"] == name]["ball"], masked_share(g, mask)
            )


def test_rows_are_what_the_pure_functions_say(world):
    lenses, _, x0, target, mask, look = world
    table, ddpm, past = look(), DDPM(), {}
    paths = list(noisy_paths(ddpm, x0, image_generators(1, range(5)), 8, 3))
    for name in ("robust", "x0_hat", "stopped"):
        for step, (t, x_t) in enumerate(paths):
            gs = torch.stack(
                [lenses[name].look(ddpm, Net(), x_t[:, k], t, target, MicroBatch(2)).gradient for k in range(3)], 1
            )
            near = ddpm.abar_at(t - 1, x0).sqrt() * x0 + (1 - ddpm.abar_at(t - 1, x0)).sqrt() * ddpm.eps_from(
                x_t[:, 0], t, x0
            )
            a, b = (
                lenses[name].look(ddpm, Net(), x, u, target, MicroBatch())
                for x, u in ((x_t[:, 0], t), (near, max(t - 1, 0)))
            )
            g, past[name, step] = gs[:, 0], gs[:, 0]
            known = dict(
                norm=norm(g),
                snr=snr(gs),
                cosine_draws=cosine_between(gs),
                ball=masked_share(g, mask),
                low=low_frequency_share(g, 1.5),
                agreement=cosine(g, past["robust", step]),
                S_l=norm(a.logits - b.logits) / norm(x_t[:, 0] - near),
                S_g=norm(a.gradient - b.gradient) / norm(x_t[:, 0] - near),
            )
            if step >= 1: known["cosine"] = cosine(g, past[name, step - 1])
            if step >= 3: known["cosine_lag"] = cosine(g, past[name, step - 3])
            rows = table[(table["lens"] == name) & (table["t"] == t)]
            for column, values in known.items():
                assert np.allclose(rows[column], values.float(), rtol=2e-3, atol=1e-5), (name, t, column)


def test_a_linear_classifier_under_the_microscope(world):
    _, straight, x0, _, mask, look = world
    rows = look().query("lens == 'plain'")
    # one gradient everywhere
    assert rows["cosine"].dropna().sub(1).abs().max() < 1e-5 and rows["cosine_lag"].dropna().sub(1).abs().max() < 1e-5
    assert (
        np.allclose(rows["norm"], straight.w[0].norm())
        and rows["S_g"].abs().max() < 1e-5
        and (rows["snr"] > 1e10).all()
    )
    still = look(lenses=dict(robust=Lens(Linear(0 * straight.w), objective=first_logit)))
    assert (
        still["S_l"].eq(0).all()
        and still["S_g"].eq(0).all()
        and still["ball"].isna().all()
        and still["agreement"].isna().all()
    )
    known = []
    # W d / |d|, d along the path of one noise
    for t, x_t in noisy_paths(DDPM(), x0, image_generators(1, range(5)), 8, 3):
        near = DDPM().q_sample(x0, t - 1, DDPM().eps_from(x_t[:, 0], t, x0))
        d = (x_t[:, 0] - near).flatten(1)
        known.append((d @ straight.w.T).norm(dim=1) / d.norm(dim=1))
    assert np.allclose(rows["S_l"], torch.cat(known), rtol=1e-3)


@pytest.mark.parametrize("where", ["x_t", "x_t_smooth", "x0_hat", "x0_hat_stopped"])
def test_a_lens_shows_what_its_classifier_says_of_what_it_sees(world, where):
    lenses, _, x0, target, _, _ = world
    classifier, x_t = lenses["robust"].classifier, 3 * x0
    sight = Lens(classifier, where).look(DDPM(), Net(), x_t, 100, target, MicroBatch(2))
    x0_hat = predict(DDPM(), Net(), x_t, 100)
    assert torch.equal(sight.logits, classifier(x_t if where.startswith("x_t") else x0_hat.clamp(-1, 1)))
    assert torch.allclose(sight.x0_raw, x0_hat)
    assert (x0_hat.abs() > 1).any()                                          # the clip matters


def test_a_stabilised_lens_has_a_state_per_path(world):
    lenses, _, x0, target, _, look = world
    table, steps, outputs, sensitivities = look(), [], [], []
    adam, beside = make_stabilizer("adam"), make_stabilizer("adam")
    for t, x_t in noisy_paths(DDPM(), x0, image_generators(1, range(5)), 8, 3):
        gradients = torch.stack(
            [lenses["robust"].look(DDPM(), Net(), x_t[:, k], t, target, MicroBatch()).gradient for k in range(3)], 1
        )
        outputs.append(adam(gradients.flatten(0, 1)).unflatten(0, (5, 3)))
        steps.append(snr(outputs[-1]))
        near = DDPM().q_sample(x0, t - 1, DDPM().eps_from(x_t[:, 0], t, x0))
        neighbour = beside(lenses["robust"].look(DDPM(), Net(), near, max(t - 1, 0), target, MicroBatch()).gradient)
        sensitivities.append(norm(outputs[-1][:, 0] - neighbour) / norm(x_t[:, 0] - near))
    rows = table.query("lens == 'adam'")
    assert np.allclose(rows["snr"], torch.cat(steps), rtol=1e-3) and np.allclose(
        rows["norm"], torch.cat([norm(o[:, 0]) for o in outputs]).float(), rtol=1e-4
    )
    assert np.allclose(rows["S_l"], table.query("lens == 'robust'")["S_l"]) and np.allclose(
        rows["S_g"], torch.cat(sensitivities).float(), rtol=2e-3
    )


def test_a_row_does_not_depend_on_the_batch_or_the_other_lenses(world):
    lenses, _, _, _, _, look = world
    whole = look().query("image == 3").reset_index(drop=True)
    pd.testing.assert_frame_equal(look(slice(3, 4)), whole, rtol=1e-5)
    few = look(lenses={"robust": lenses["robust"], "both": lenses["both"]}).query("image == 3").reset_index(drop=True)
    pd.testing.assert_frame_equal(few, whole[whole["lens"].isin(["robust", "both"])].reset_index(drop=True), rtol=1e-5)
    assert not np.allclose(look(seed=2).query("image == 3")["norm"], whole["norm"])


def test_lagged_cosines_by_hand():
    memory, g = Memory(Lens(None), 2), [normal(4, 3, 2, 2, seed=k) for k in range(4)]
    rows = [memory.cosines(x) for x in g]
    assert rows[0]["cosine"].isnan().all() and rows[1]["cosine_lag"].isnan().all()
    for k in (1, 2, 3): assert torch.equal(rows[k]["cosine"], cosine(g[k], g[k - 1]))
    for k in (2, 3): assert torch.equal(rows[k]["cosine_lag"], cosine(g[k], g[k - 2]))


def test_a_memory_is_rescaled_to_what_a_step_spans(world):
    "As in runs: steps of a quarter of the diffusion are seen with the memory that they have there."
    lenses, *_, look = world
    adam = {name: Lens(lenses["robust"].classifier, "x_t", name) for name in ("adam", "adam_rescaled")}
    table = look(lenses={"robust": lenses["robust"]} | adam, steps=4, repeats=2)
    last = table[table["step"] == 3].groupby("lens")["cosine"].mean()
    assert last["adam"] != last["adam_rescaled"]
    assert Memory(adam["adam_rescaled"], 2, stride=8).here.beta1 == 0.9**8
    with pytest.raises(UserError, match="sampling steps"): look(steps=0)


def test_unknown_names(world):
    lenses, *_, look = world
    with pytest.raises(UserError, match="robust"): look(reference="robast")
    with pytest.raises(UserError, match="x0_hat"): look(lenses=dict(robust=Lens(lenses["robust"].classifier, "x0hat")))
    with pytest.raises(UserError, match="adam"):
        look(lenses=dict(robust=Lens(lenses["robust"].classifier, "x_t", "adm")))
    with pytest.raises(UserError, match="at least 2"): look(repeats=1)
