"""Looks at a gradient before sampling: the chain rule against the sampler's own gradients, closed cases, and files."""

import numpy as np
import pandas as pd
import pytest
import torch

from gradcheck.core import UserError
from gradcheck.guidance.objectives import OBJECTIVES
from gradcheck.guidance.sampling import WHERE, Guidance
from gradcheck.models.batches import as_micro_batch
from gradcheck.models.ddpm import DDPM
from gradcheck.paper import measured
from gradcheck.paper.measured import COLUMNS, LOOKS, MEASURES, Looks, logit_gradients, look, guides_of, measures
from gradcheck.paper.measured import numbers, pictures, plan_measures, points_at, read_measures, robust_beside, shown
from gradcheck.paper.measured import told_apart, towards, write_measures
from gradcheck.paper.study import FULL, Study, cells_of, spec_of
from gradcheck.runs.runs import models

TINY = Looks(times=(200, 50), each=1, draws=2, places=("x_t",))
ONE = Study(replicates=1, protocols=("ours",))

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


@pytest.mark.parametrize("place", ["x_t", "x0_hat"])
@pytest.mark.parametrize("objective", ["log_probability", "logit"])
def test_gradients_are_the_samplers(place, objective):
    spec = spec_of(cells_of(FULL)[0], 1.0, FULL)
    denoiser, classifier, _ = models(spec)
    x, _ = points_at(spec.diffusion, pictures(1)[0][:2], 150, 1)
    seen = logit_gradients(classifier, *shown(spec.diffusion, denoiser, x.clone(), 150, place))
    guidance = Guidance(classifier, 2, OBJECTIVES[objective], WHERE[place])
    _, g = guidance.evaluate(spec.diffusion, denoiser, x, 150, as_micro_batch())
    assert (towards(OBJECTIVES[objective], *seen, 2) - g).norm() < 1e-4 * g.norm() and g.norm() > 0


def test_as_many_pictures_of_each_class_and_where_their_balls_are():
    x0, labels, masks = pictures(3)
    assert labels.bincount().tolist() == [3] * 4 and x0.shape == (12, 3, 64, 64) and masks.shape == (12, 64, 64)
    assert (x0.permute(0, 2, 3, 1)[~masks] == 1).all()                          # white where there is no ball


def test_one_step_on_is_under_the_same_noise_and_after_a_step():
    ddpm, x0 = DDPM(), torch.zeros(300, 1, 4, 4)
    here, on = points_at(ddpm, x0, 200, 2)
    first = here.unflatten(0, (300, 2))[:, 0]
    assert here.shape == (600, 1, 4, 4) and on.shape == (600, 1, 4, 4)
    assert torch.allclose(ddpm.eps_from(first, 200, x0), ddpm.eps_from(on[:300], 199, x0), atol=1e-5)
    for part in on.split(300):                                                  # both lie where x_t lies one step on
        assert part.std().item() == pytest.approx((1 - ddpm.abar[199]).sqrt().item(), rel=0.05)
    assert not torch.allclose(on[:300], on[300:], atol=1e-2)


def test_numbers_of_known_gradients():
    masks = torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[:, :8] = True
    flat = torch.ones(4, 3, 16, 16) * masks.repeat_interleave(2, 0)[:, None]
    got = numbers(flat, flat, flat, masks, 0.5)
    assert got["ball"] == 1 and got["vanishing"] == 0 and got["told"] == 0.5 and got["low"] > 0.8
    assert [got[name] for name in ("steady", "path", "signal", "agreement")] == pytest.approx([1] * 4)
    turned = numbers(flat, torch.cat([flat[:2], -flat[2:]]), -flat, masks, 0.0)
    assert [turned[name] for name in ("steady", "path", "agreement")] == pytest.approx([1, -1, -1])
    nothing = numbers(0 * flat, 0 * flat, flat, masks, 0.0)
    assert nothing.pop("vanishing") == 1 and set(nothing.values()) == {0.0}


def test_a_class_told_apart():
    logits = torch.tensor([[50.0, 0], [50, 0], [0, 50], [50, 0]])
    labels = torch.tensor([0, 0, 1, 1])
    assert told_apart(logits, labels, 0) == pytest.approx(0.5) and told_apart(logits, labels, 1) == pytest.approx(0.5)


def test_which_robust_classifier_is_beside():
    guides = [("nonrobust", 0), ("nonrobust", 3), ("robust", 0), ("robust", 1), ("nonrobust", 1)]
    beside = {guide: robust_beside(guide, guides) for guide in guides}
    assert beside[("nonrobust", 1)] == ("robust", 1) and beside[("nonrobust", 3)] == ("robust", 0)
    assert beside[("robust", 1)] == ("robust", 0) and beside[("robust", 0)] == ("robust", 1)


def test_looks_are_finite_and_resumed(monkeypatch):
    table = measures(TINY, ONE)
    assert len(table) == 2 * 2 * 4 and np.isfinite(table[[*MEASURES]].to_numpy()).all()
    assert not table[["kind", "target", "t"]].duplicated().any() and set(table["protocol"]) == {"ours"}
    monkeypatch.setattr(measured, "look", lambda *args: pytest.fail("a finished look is taken again"))
    assert measures(TINY, ONE).equals(table)


def test_a_look_stands_for_itself():
    "No number depends on which other objectives are asked for."
    guides, objectives = guides_of(Study(replicates=1))
    both = look(guides, objectives, "x_t", 50, TINY, FULL)
    ours = look(guides, {"ours": objectives["ours"]}, "x_t", 50, TINY, FULL)
    assert both[both["protocol"] == "ours"].reset_index(drop=True).equals(ours)


ROW = dict.fromkeys(COLUMNS, 0.5) | dict(protocol="ours", kind="robust", place="x_t")


def test_files_and_what_is_said_of_damaged_ones(tmp_path):
    table = pd.DataFrame([ROW])
    path = write_measures(table, tmp_path)
    assert read_measures(tmp_path).equals(table) and path.name == "measures.csv.gz"
    for damaged in (b"", path.read_bytes()[:-9]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="similarity_and_success --full"): read_measures(tmp_path)


def test_the_command_takes_the_looks_and_nothing_else(cli, monkeypatch, tmp_path):
    monkeypatch.setattr("gradcheck.paper.full.full", lambda *args, **how: pytest.fail("the study was not asked for"))
    monkeypatch.setattr(measured, "measures", lambda: pd.DataFrame([ROW]))
    monkeypatch.setattr(measured, "plan_measures", lambda: "a plan")
    assert cli("reproduce", "similarity_and_success", "--full", "--plan")[1] == "a plan\n"
    assert cli("reproduce", "similarity_and_success", "--full", "--out", tmp_path)[0] == 0
    assert len(read_measures(tmp_path / "study")) == 1
    for option in (("--memory", "foo"), ("--checkpointing",), ("--dask", "local"), ("--device", "cuda")):
        code, _, err = cli("reproduce", "similarity_and_success", "--full", "--out", tmp_path, *option)
        assert code == 2 and f"{option[0]} was given" in err and err.count("\n") == 1


def test_the_plan_counts_the_gradients():
    text = plan_measures(TINY, ONE)
    assert "2 looks at 2 classifiers" in text and f"{2 * 4 * 4 * 4 * 2:,} gradients" in text
    assert len(LOOKS.times) * len(LOOKS.places) == 16
