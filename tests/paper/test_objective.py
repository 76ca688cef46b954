"""What a figure's guidance is the gradient of: the logit in Figures 1 to 3 and Table 1, else the log-probability."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gradcheck.core import UserError
from gradcheck.paper.curves import class_labels, unmodified
from gradcheck.paper.figures import FIGURES, curves_of, figure_specs
from gradcheck.paper.plan import needed_runs
from gradcheck.paper.plots import ALIKE, BY_ENERGY, cosine_table, figure_bytes, means_in_words
from gradcheck.paper.plots import means_table, plot_cosines
from gradcheck.paper.presets import get_preset
from gradcheck.paper.saved import uncalibrated
from gradcheck.paper.settings import folder_of, known_scale, preset_for, setting_of, spec_for
from gradcheck.paper.variants import SCALES, VARIANTS
from gradcheck.runs.scales import PILOTS
from gradcheck.runs.specs import PROBE


NOTEBOOKS = Path(__file__).parents[2] / "nbs" / "figures"


def as_it_is(spec, energies): return [spec.scale for _ in energies]


def objectives(figure, **asked):
    specs = figure_specs(figure, "smoke", as_it_is, **asked)
    return {spec.objective for spec in specs.values() if spec.where != "unguided"}


def test_the_cosines_and_table_1_follow_the_logit_and_the_others_the_log_probability():
    found = {figure: objectives(figure) for figure in FIGURES}
    logit = {figure for figure in found if "logit" in found[figure]}
    assert logit == {"figure_1", "figure_2", "figure_3", "table_1", "claims"}
    assert found["claims"] == {"logit", "log_probability"} and found["figure_5"] == {"log_probability"}
    assert objectives("figure_2", objective="log_probability") == {"log_probability"}
    assert {s.objective for s in figure_specs("figure_5", preset_for("smoke", mode="paper"), as_it_is).values()} == {
        "logit"
    }


def test_scales_are_known_by_objective():
    p = preset_for("laptop")
    for objective, roles in SCALES.items():
        for role, scales in roles.items():
            for variant, scale in scales.items():
                assert spec_for(p, role, variant, objective=objective).scale == scale
    assert SCALES["logit"].keys() == SCALES["log_probability"].keys()
    assert spec_for(p, "robust", "plain", objective="calibrated").scale == PROBE      # not that of another objective
    assert known_scale(p, "robust", "unguided") == 0 and spec_for(p, "robust", "plain", scale=2.0).scale == 2
    assert known_scale(preset_for("laptop", mode="start=paper"), "robust", "plain") == PROBE
    assert all(known_scale(p, "robust", v) == PROBE for v in VARIANTS if v not in SCALES["logit"]["robust"] | {
        "unguided": 0
    })


def calibrated(figure, preset, **asked): return {spec.where for spec in uncalibrated(figure, preset, **asked)}


@pytest.mark.parametrize("figure", ["figure_1", "figure_2", "table_1"])
def test_a_known_scale_is_used_where_it_was_matched_and_nowhere_else(figure):
    "For class 0, in the preset's own steps; elsewhere it injects another energy, and pilots find it."
    p = preset_for("laptop")
    guided = {s.where for s in figure_specs(figure, p, as_it_is).values()} - {"unguided"}
    assert calibrated(figure, p) == calibrated(figure, preset_for("laptop", steps=400)) == set()
    assert calibrated(figure, p, target=2) == calibrated(figure, preset_for("laptop", steps=50)) == guided
    assert calibrated("figure_4", preset_for("laptop", steps=50)) == set()


@pytest.mark.parametrize("scale", [2.0, PROBE])
def test_a_scale_that_was_asked_for_stays_whatever_it_is(scale):
    for asked in (dict(), dict(target=2)):
        assert calibrated("figure_1", preset_for("laptop", steps=50), scale=scale, **asked) == set()
        assert {s.scale for s in figure_specs("figure_1", "laptop", None, scale=scale, **asked).values()} == {scale}


def test_a_plan_counts_the_pilots_of_another_class(own_cache):
    "Four pilots beside each of the two runs; the number of runs is known before any of them is made."
    p = get_preset("laptop")
    assert len(needed_runs("figure_1", p, own_cache)) == 2
    assert len(needed_runs("figure_1", p, own_cache, target=2)) == 2 + 2 * len(PILOTS)


def test_a_generation_of_figure_7_is_one_of_figure_6_for_every_class():
    def by_class(spec, energies): return [spec.target + 1.0]
    sixth = figure_specs("figure_6", "smoke", by_class)
    for k, name in enumerate(class_labels(next(iter(sixth.values())).classes)):
        for label, spec in figure_specs("figure_7", "smoke", by_class, target=k).items():
            assert spec == sixth[f"{label} · {name}"] and spec.target == k and spec.scale == 1


@pytest.mark.parametrize("figure", ["figure_6", "table_1"])
def test_a_stabilizer_with_a_comma_is_held_against_no_modification_too(figure):
    labels = {*curves_of(figure, preset_for("smoke", stabilizer="adam, beta1=0"))} - {"no guidance"}
    assert len(labels) == 8 and {unmodified(label) for label in labels} == {
        "robust, no modification", "non-robust, no modification"
    } < labels
    cells = json.loads((NOTEBOOKS / f"{figure}.ipynb").read_text(encoding="utf-8"))["cells"]
    assert any("unmodified(label)" in "".join(c["source"]) for c in cells)


def test_one_logit_is_asked_for_a_yes_whatever_the_figure_follows(tmp_path):
    body = "nn.Flatten(), nn.Linear(3 * 64 * 64, 1)"
    text = f"import torch.nn as nn\ndef make(): return nn.Sequential({body})\n"
    (tmp_path / "one.py").write_text(text, encoding="utf-8")
    p = preset_for("smoke", denoiser="laptop/ddpm", classifier=f"{tmp_path}/one.py:make", data="sportballs")
    assert {s.objective for s in figure_specs("figure_1", p, as_it_is).values()} == {"binary"}
    with pytest.raises(UserError, match="does not fit a classifier with 1 logit"):
        figure_specs("figure_1", p, as_it_is, objective="logit")
    one = p.classifiers["own"]
    assert spec_for("laptop", "nonrobust", "plain", classifier=one, judge=one).objective == "binary"


@pytest.mark.parametrize("figure, objective, message", [
    ("figure_1", "logits", "Did you mean 'logit'?"),
    ("figure_1", "binary", "needs one logit"),
    ("figure_5", "logit", "unknown parameter 'objective'"),
])
def test_what_is_no_objective_is_refused(cli, figure, objective, message):
    code, _, err = cli("reproduce", figure, "--preset", "smoke", "--plan", "-p", f"objective={objective}")
    assert code == 2 and message in err and err.count("\n") == 1


def test_another_objective_has_a_folder_of_its_own():
    setting = setting_of(dict(preset="smoke", objective="log_probability", seed=0))
    assert folder_of(preset_for("smoke"), setting) == "smoke-objective=log_probability"


class Run:
    "Three steps of two images: a second gradient that turns, and carries a hundredth of the energy."
    times = [2, 1, 0]
    samples = torch.zeros(2, 1, 2, 2)
    trace = {
        "cosine": torch.tensor([[np.nan] * 2, [0.0, 0.2], [1.0, 0.8]]),
        "energy": torch.tensor([[1.0] * 2, [0.01] * 2, [0.99] * 2]),
        "norm_raw": torch.tensor([[1.0] * 2, [1e-7] * 2, [1e-7, 1.0]]),
    }


def test_a_step_counts_alike_or_by_its_energy_and_nothing_is_told_apart():
    means = means_table({"a": Run()}).set_index("count")["mean"]
    assert means[ALIKE] == pytest.approx(0.5) and means[BY_ENERGY] == pytest.approx((0.99 * 0.9 + 0.01 * 0.1))
    table = cosine_table({"a": Run()})
    assert table["nothing"].tolist() == [1.0, 0.5] and table["energy"].tolist() == pytest.approx([0.01, 0.99])
    said, = means_in_words({"a": Run()})
    assert "similarity 0.500, by energy 0.892" in said and "50.0% are numerically nothing" in said
    fig = plot_cosines(table, {"a": "blue"}, "title", means_table({"a": Run()}))
    assert len(fig.axes) == 2 and len(plot_cosines(table, {"a": "blue"}, "title").axes) == 1
    faint = [line for line in fig.axes[0].lines if line.get_alpha() == 0.5]
    assert len(faint) == 1 and np.isnan(fig.axes[0].lines[0].get_ydata()[0])          # of the first step, all nothing


def test_a_run_without_any_direction_is_drawn_without_a_mean():
    none = Run()
    none.trace = Run.trace | {"cosine": torch.full((3, 2), np.nan), "energy": torch.zeros(3, 2)}
    assert means_table({"a": none})["mean"].isna().all()
    assert drawn(none)


def drawn(run):
    fig = plot_cosines(cosine_table({"a": run}), {"a": "blue"}, "title", means_table({"a": run}))
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    return figure_bytes(fig, "png", 40).startswith(b"\x89PNG") and labels == ["a"]


def test_a_run_whose_gradients_are_all_nothing_is_drawn_faint():
    faint = Run()
    faint.trace = Run.trace | {"norm_raw": torch.full((3, 2), 1e-9)}
    assert drawn(faint) and cosine_table({"a": faint})["nothing"].eq(1).all()
