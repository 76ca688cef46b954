"""The claim machinery on planted truth: it must find what is there, not find what is not, and say when it is the other
way round."""
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gradcheck.paper.claims import CLAIMS, QUALITY, Evidence
from gradcheck.runs.tradeoff import trade_off
from gradcheck.runs.verdicts import Claim, decide, target_probability, verdict
from gradcheck.runs.tradeoff import fid_effect
from gradcheck.runs.effects import Effect, paired_effect
from gradcheck.paper.presets import get_preset
from gradcheck.paper.settings import spec_for
from gradcheck.runs.metrics import FID, draws_with_replacement, judge_features, resampled_fid
from gradcheck.pictures import uint8_to_images
from gradcheck.runs.runs import RunResult, models
from gradcheck.runs.records import read_claims
from gradcheck.runs.scores import references
from gradcheck.data.sources import Real
from gradcheck.paper.tables import as_html, as_latex, as_markdown, clear_best, resampled

IMAGES = 64
REAL = Real("sportballs", 64, 300, "laptop/judge")


def planted_run(similarity, probability=0.5, seed=0, **changes):
    """A `RunResult` whose images have given mean similarities and target probabilities (numbers, or (N,)); samples are
    noise."""
    spec = spec_for("smoke", "nonrobust", "plain", steps=3, count=IMAGES, **changes)
    row = torch.as_tensor(np.broadcast_to(similarity, IMAGES).copy()).float()
    curve = torch.stack([torch.full_like(row, torch.nan), row - 0.01, row + 0.01])
    p = torch.as_tensor(np.broadcast_to(probability, IMAGES).copy()).float()
    judge = torch.stack([p, 1 - p, 0 * p, 0 * p], 1)
    samples = torch.randint(
        0, 256, (IMAGES, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    return RunResult(
        spec,
        samples,
        {k: curve for k in ("cosine", "cosine_raw", "cosine_null")} | {"energy": torch.ones(3, IMAGES)},
        torch.tensor([399, 266, 133]),
        judge,
        judge,
    )


def evidence(robust, nonrobust):
    "Evidence with planted similarities of the two plain runs."
    return Evidence(
        get_preset("smoke"),
        {"robust, no modification": planted_run(robust), "non-robust, no modification": planted_run(nonrobust)},
    )


@pytest.mark.parametrize("effect, expected", [(0.1, "holds"), (-0.1, "does not hold"), (0.0, "undecided")])
def test_planted_similarity_through_a_real_claim(effect, expected):
    rng = np.random.default_rng(3)
    base = rng.normal(0.5, 0.1, IMAGES)
    row = decide(CLAIMS[:1], evidence(base + effect + rng.normal(0, 0.1, IMAGES), base)).iloc[0]
    assert (
        row["verdict"] == expected and row["low"] <= row["effect"] <= row["high"] and abs(row["effect"] - effect) < 0.05
    )


def planted_verdicts(effect, simulations, n=48, seed=0):
    rng = np.random.default_rng(seed)
    claim = Claim("planted", "here", "mean difference", lambda d: paired_effect(d, 0 * d, resamples=500))
    return [decide([claim], rng.normal(effect, 1, n))["verdict"][0] for _ in range(simulations)]


def test_a_planted_null_is_undecided_at_the_nominal_rate():
    share = np.mean([v == "undecided" for v in planted_verdicts(0, 300)])
    # 95 % +- 3 standard errors, and BCa's small shortfall
    assert 0.91 <= share <= 0.985


def test_planted_effects_are_found_with_their_sign():
    assert planted_verdicts(1, 20) == ["holds"] * 20 and planted_verdicts(-1, 20) == ["does not hold"] * 20


@pytest.mark.slow
@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_bootstrap_covers_at_the_nominal_rate(draw):
    rng, n, simulations = np.random.default_rng(11), 64, 1000
    samples = (
        rng.normal(0.3, 1, (simulations, n))
        if draw == "normal"
        else rng.uniform(0.3 - 3**0.5, 0.3 + 3**0.5, (simulations, n))
    )
    intervals = [paired_effect(d, np.zeros(n), seed=k) for k, d in enumerate(samples)]
    assert 0.93 <= np.mean([e.low <= 0.3 <= e.high for e in intervals]) <= 0.97


@pytest.mark.slow
def test_fid_differences_cover_at_the_nominal_rate():
    "The truth is the expected difference at this number of images, from the mean over all simulations."
    rng, real, rows, effects = (
        np.random.default_rng(5),
        torch.randn(4000, 6, generator=torch.Generator().manual_seed(1)).double(),
        draws_with_replacement(40, 150),
        [],
    )
    for _ in range(300):
        common = rng.normal(size=(40, 6))
        a, b = (torch.as_tensor(s * common + m + rng.normal(0, 0.3, (40, 6))) for s, m in ((1.0, 0.5), (1.3, 0.0)))
        effects.append(resampled(*(resampled_fid(FID(real), x, rows) for x in (a, b)), 1))
    truth = np.mean([e.mean for e in effects])
    assert 0.91 <= np.mean([e.low <= truth <= e.high for e in effects]) <= 0.98


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0.1, 0.3, "holds"),
        (-0.3, -0.1, "does not hold"),
        (-0.1, 0.3, "undecided"),
        (0.0, 0.3, "undecided"),
        (np.nan, np.nan, "undecided"),
    ],
)
def test_verdicts(low, high, expected): assert verdict(Effect((low + high) / 2, low, high)) == expected


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_of_few_images_that_agree_nothing_is_decided(n):
    "Without an effect n differences have one sign with probability 2^(1-n), which is below 5 % from six on."
    claim = Claim("planted", "here", "mean", lambda d: paired_effect(d, 0 * d), beside=lambda d: "more")
    for d in (np.linspace(0.1, 0.2, n), np.full(n, 0.1)):
        row, = decide([claim], d).to_dict("records")
        assert (row["verdict"] == "holds") == (n == 6)
        assert row["beside"] == ("more" if n == 6 else "so few images decide nothing; more")
        assert ("so few images" in str(paired_effect(d, 0 * d))) == (n < 6)


def test_planted_fid_difference():
    rng = np.random.default_rng(2)
    p = np.tile([0.3, 0.5, 0.8], (200, 1))
    noise = rng.normal(0, 0.2, (200, 3))
    base, better = (
        (p, np.array([10, 12, 15]) + noise),
        (p, np.array([10, 9, 11]) + noise + rng.normal(0, 0.2, (200, 3))),
    )
    assert verdict(fid_effect(base, better)) == "holds" and verdict(fid_effect(better, base)) == "does not hold"
    assert (
        verdict(fid_effect(base, (p, base[1] + rng.normal(0, 0.2, (200, 3)) - rng.normal(0, 0.2, (1, 3)))))
        == "undecided"
    )


def test_an_fid_of_few_images_decides_nothing():
    "Resamples of four images scatter less than four new ones would, however many they are."
    p, noise = np.tile([0.3, 0.5, 0.8], (200, 1)), np.random.default_rng(2).normal(0, 0.2, (200, 3))
    curves = (p, np.array([10, 12, 15]) + noise), (p, np.array([10, 9, 11]) - noise)
    assert [verdict(fid_effect(*curves, images)) for images in (4, 5, 6, 64)] == ["undecided"] * 2 + ["holds"] * 2
    assert "so few images" in str(fid_effect(*curves, 5))
    asked = Evidence(get_preset("smoke"), {"no guidance, respaced": planted_run(0.1)})
    asked.trade_off = {"plain": (p, curves[0][1], curves[0][1]), "x0_hat": (p, curves[1][1], curves[1][1])}
    assert QUALITY[0].measure(asked).pairs == IMAGES


def test_trade_off_starts_with_the_sample_itself():
    runs = [planted_run(0.5, p, seed) for seed, p in enumerate((0.3, np.linspace(0, 1, IMAGES)))]
    probability, target, whole = trade_off(runs, REAL, resamples=5)
    assert probability.shape == target.shape == whole.shape == (5, 2)
    assert (
        probability[0].tolist() == pytest.approx([target_probability(r).mean() for r in runs])
        and probability[1:, 1].std() > 0
    )
    reference = references(REAL, 0)["judge"]
    features = judge_features(models(runs[1].spec, "cpu")[2], uint8_to_images(runs[1].samples))
    assert target[0, 1] == pytest.approx(FID(reference.data["target"])(features), rel=1e-4)


def test_every_claim_has_a_place_a_statistic_and_a_text_of_its_own():
    assert len({c.text for c in CLAIMS}) == len(CLAIMS) >= 16
    for c in CLAIMS: assert c.where and c.statistic
    assert not any("T = " in c.text + c.short for c in CLAIMS)               # true in however many steps
    known = read_claims(Path(__file__).parents[2] / "data" / "reference" / "laptop" / "claims.csv")
    assert [*known["claim"]] == [c.text for c in CLAIMS] and [*known["short"]] == [c.short for c in CLAIMS]


def test_probability_at_equal_energy_is_interpolated_in_what_was_injected():
    "The smoke preset wants energies 6 and 60; a planted run has an energy of three times its steps' one."
    def at(energy, p): return replace(planted_run(0.1, p), trace={"energy": torch.full((3, IMAGES), energy / 3)})

    runs = {
        "robust, ADAM · energy 6": at(60.0**0.5 * 6**0.5, 0.2),
        "robust, ADAM · energy 60": at(60.0, 0.4),
        "robust, ADAM": at(1.0, 0.9),
        "non-robust, ADAM · energy 6": at(1.0, 0.8),
    }
    e = Evidence(get_preset("smoke"), runs)
    # 6 lies below what was injected
    assert len(e.along_energy("robust", "adam")) == 2 and np.allclose(e.probability("robust", "adam"), (0.2 + 0.4) / 2)
    e.runs["robust, ADAM · energy 6"] = at(0.6, 0.2)
    # halfway in log energy
    assert np.allclose(e.probability("robust", "adam"), (0.3 + 0.4) / 2)


def test_only_what_is_clearly_best_is_marked():
    rng = np.random.default_rng(0)
    a = rng.normal(0, 1, 64)
    column = {"a": a, "b": a + 0.5 + rng.normal(0, 0.2, 64), "c": a + 0.4}
    assert clear_best(column) is None or clear_best(column) == "b"
    assert (
        clear_best({"a": a, "b": a + 0.5 + rng.normal(0, 0.2, 64)}) == "b"
        and clear_best({"a": a, "b": a + 0.5}, higher=False) == "a"
    )
    assert clear_best({"a": a, "b": a}) is None
    resamples = {"a": np.r_[5, a + 5], "b": np.r_[9, a + 9.0]}
    assert [clear_best(resamples, higher=False, images=n) for n in (5, 6)] == [None, "a"]
    header, rows = ["variant", "x̂₀ & p"], [["a_1", "0.5 ± 0.1"], ["b", "–"]]
    assert as_markdown(header, rows, {(0, 1)}).splitlines()[2] == "| a_1 | **0.5 ± 0.1** |"
    tex = as_latex(header, rows, {(0, 1)}, "A 100 % caption")
    assert (
        r"\toprule" in tex
        and r"\textbf{0.5 $\pm$ 0.1}" in tex
        and r"a\_1" in tex
        and r"100 \% caption" in tex
        and r"$\hat x_0$ \& p" in tex
    )
    assert "<b>0.5 ± 0.1</b>" in as_html(header, rows, {(0, 1)}) and "x̂₀ &amp; p" in as_html(header, rows, set())
