"""What a figure's notebook is asked, and cannot be meant, is one sentence before anything is computed; what is empty is
not what was left out."""
import ast
import json
from pathlib import Path

import pytest

from gradcheck.core import UserError
from gradcheck.paper.figures import FIGURES
from gradcheck.paper.reproduce import reproduce
from gradcheck.paper.saved import PARAMETERS, asked, open_figure
from gradcheck.paper.settings import MODELS, preset_for, setting_of, spec_for, with_models, with_stabilizer

NOTEBOOKS = Path(__file__).parents[2] / "nbs" / "figures"


def parameters_of(name):
    "The defaults in a notebook's own cell, at the smoke preset."
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    cell, = (c for c in cells if "parameters" in c["metadata"].get("tags", ()))
    found = {n.targets[0].id: ast.literal_eval(n.value) for n in ast.parse("".join(cell["source"])).body}
    return found | dict(preset="smoke")


@pytest.fixture
def no_run(monkeypatch):
    "Nothing can be computed."
    def computed(*_, **__): raise AssertionError("something was computed")
    monkeypatch.setattr("gradcheck.paper.saved.run_all", computed)
    monkeypatch.setattr("gradcheck.paper.saved.calibrate", computed)


EMPTY = ("", " ", False, 0, [], {})
NUMBERS = {"steps": (0, 1, True, "", 2.5, []), "count": (0, True, "", 2.5, []), "images": (0, True, "", 2.5, [], 10**9)}
NUMBERS |= {"seed": (-1, True, "", 2.5, []), "image": (4, 99, -1, True, "", 2.5, []), "scale": (True, "", [])}
TEXTS = {name: EMPTY for name in ("preset", "out", "mode", "objective", "precision", "stabilizer", *MODELS)}
ODD = NUMBERS | TEXTS | {"preset": (*EMPTY, None), "out": (*EMPTY, None, 3, ["a"])}
ODD |= {"target": ("", False, 9, 2.5, [], {})}


def test_each_parameter_of_a_figure_has_odd_values():
    assert set(ODD) == set(PARAMETERS)


@pytest.mark.parametrize("figure", FIGURES)
def test_what_a_figure_is_asked_is_refused_before_it_is_computed(figure, no_run):
    known = parameters_of(figure)
    for name in known:
        for value in ODD[name]:
            with pytest.raises(UserError) as refused: open_figure(figure, known | {name: value})
            assert "\n" not in str(refused.value), (name, value)


def test_one_empty_name_beside_models_that_are_given(no_run):
    own = dict(denoiser="laptop/ddpm", classifier="laptop/nonrobust")
    for role in MODELS:
        with pytest.raises(UserError, match=f"{role} is empty; give its name"):
            open_figure("figure_2", parameters_of("figure_2") | own | {role: ""})


@pytest.mark.parametrize("params, sentence", [
    (dict(images=0), "0 images were asked for"),
    (dict(images=True), "images is True"),
    (dict(classifier="", denoiser=""), "denoiser is empty"),
    (dict(judge=""), "judge is empty"),
])
def test_the_command_refuses_it_too(params, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence): reproduce(["figure_8"], "smoke", str(tmp_path), parameters=params)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("image, most", [(99, 3), (4, 3), (-1, 3), (True, 3)])
def test_the_command_knows_the_generations_of_figure_7(image, most, tmp_path):
    with pytest.raises(UserError, match=f"image is {image}; give a whole number from 0 to {most}"):
        reproduce(["figure_7"], "smoke", str(tmp_path), parameters=dict(image=image))
    with pytest.raises(UserError, match="from 0 to 1"):
        reproduce(["figure_7"], "smoke", str(tmp_path), parameters=dict(image=2, count=2))
    assert not list(tmp_path.iterdir())


def test_in_python_empty_is_not_left_out_either():
    smoke = preset_for("smoke")
    assert with_models(smoke) is smoke and with_stabilizer(smoke, None) is smoke
    assert preset_for("smoke", images=10).recognised == preset_for("smoke", images="10").recognised == 10
    for value in EMPTY:
        with pytest.raises(UserError, match="judge"): with_models(smoke, judge=value)
        with pytest.raises(UserError, match="unknown stabilizer"): with_stabilizer(smoke, value)
        with pytest.raises(UserError, match="unknown objective"): spec_for(smoke, "robust", "plain", objective=value)


@pytest.mark.parametrize("mode, beside, named", [
    ("judge=paper", dict(denoiser="laptop/ddpm", classifier="laptop/nonrobust", judge="laptop/judge"), "judge"),
    ("adam=corrected", dict(stabilizer="ema"), "stabilizer"),
    ("start=paper, adam=paper", dict(stabilizer="ema"), "stabilizer"),
    ("draws=paper", dict(denoiser="laptop/ddpm", classifier="laptop/nonrobust"), "denoiser"),
    ("objective=paper", dict(objective="log_probability"), "objective"),
])
def test_a_single_switch_that_is_overridden_is_refused(mode, beside, named):
    with pytest.raises(UserError, match=f"the mode says .*=.*, and {named} .* stands in its place; leave one"):
        asked(["figure_1"], dict(beside, preset="smoke", mode=mode))
    assert asked(["figure_1"], dict(beside, preset="smoke", mode="paper"))
    assert asked(["figure_1"], dict(beside, preset="smoke", mode="state=paper"))


@pytest.mark.parametrize("mode", ["start=corrected", "adam=paper,clip=paper", "corrected", None])
def test_a_mode_that_is_the_default_is_no_setting_of_its_own(mode):
    "Else one folder has figures of two settings, which compare refuses and the page leaves out."
    assert setting_of(dict(preset="smoke", mode=mode)) == {}
    assert setting_of(dict(preset="smoke", mode="start=paper")) == dict(mode="start=paper")
