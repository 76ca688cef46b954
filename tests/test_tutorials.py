"""Every tutorial runs from top to bottom by papermill, at a size that says nothing about science.

(`make tutorials` runs them at their own size.)"""
import json
import re
from pathlib import Path

import papermill as pm
import pytest

from gradcheck.core import UserError
from gradcheck.paper.reproduce import check_parameters

TUTORIALS = Path(__file__).parent.parent / "nbs" / "tutorials"
SMALL = {   # tutorial -> parameters of the small run
    "guide_your_own_model": dict(steps=3, count=2, updates=2, tested=8, preset="smoke"),
    "paper_vs_corrected": dict(preset="smoke", resamples=3, tested=16),
    "the_truth_in_two_dimensions": dict(
        count=60,
        repeats=2,
        steps=12,
        smallest=-4,
        largest=-1,
        cloud=300,
        few=16,
        times=[350, 50],
    ),
    "gradient_microscope": dict(count=2, steps=4, repeats=2, lag=2, unclipped=2, out=None),
}


@pytest.mark.parametrize("name", sorted(p.stem for p in TUTORIALS.glob("*.ipynb")))
def test_a_tutorial_runs_and_shows_pictures(name, tmp_path, shared_cache):
    source, done = TUTORIALS / f"{name}.ipynb", tmp_path / "out.ipynb"
    parameters = dict(SMALL[name])
    check_parameters(source, parameters)
    if "out" in set(pm.inspect_notebook(str(source))) - set(parameters):
        parameters["out"] = str(tmp_path)
    pm.execute_notebook(
        str(source),
        str(done),
        parameters,
        kernel_name="python3",
        language="python",
        cwd=str(TUTORIALS),
        progress_bar=False,
    )
    cells = json.loads(done.read_text(encoding="utf-8"))["cells"]
    pictures = [o for c in cells for o in c.get("outputs", ()) if "image/png" in o.get("data", {})]
    assert pictures, "a tutorial without a picture"


def source_and_outputs(name):
    "All code of a tutorial as kept, all its prose, and all the texts that it keeps as outputs."
    cells = json.loads((TUTORIALS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    code, prose = ("\n".join("".join(c["source"]) for c in cells if c["cell_type"] == k) for k in ("code", "markdown"))
    outputs = [o for c in cells for o in c.get("outputs", ())]
    said = ["".join(o.get("text", "")) or "".join(o.get("data", {}).get("text/markdown", "")) for o in outputs]
    return code, prose, "\n".join(said)


@pytest.mark.parametrize("name", sorted(p.stem for p in TUTORIALS.glob("*.ipynb")))
def test_a_tutorial_keeps_what_it_shows_and_no_clock(name):
    "How long it took is another machine's business."
    cells = json.loads((TUTORIALS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    code, _, said = source_and_outputs(name)
    assert any("image/png" in o.get("data", {}) for c in cells for o in c.get("outputs", ()))
    assert not re.search(r"\b\d+ s\b", said)
    assert "import time" not in code


def test_numbers_in_the_prose_of_paper_against_corrected():
    from gradcheck.guidance.stabilizers import Adam, make_stabilizer
    from gradcheck.models.ddpm import DDPM
    from gradcheck.paper.presets import get_preset
    from gradcheck.paper.quirks import QUIRKS

    code, prose, said = source_and_outputs("paper_vs_corrected")
    laptop = get_preset("laptop")
    assert sorted(re.findall(r"^\| `(\w+)` \|", prose, re.M)) == sorted(QUIRKS)
    assert rf"\sqrt{{\bar\alpha_T}} = {DDPM().abar[-1].sqrt():.2f}" in prose
    assert Adam().eps == 1e-4 and r"\epsilon = 10^{-4}" in prose
    assert make_stabilizer("adam_corrected").eps == 1e-8 and r"\epsilon = 10^{-8}" in prose
    assert f"the preset's for sweeps ({laptop.sweep_steps} on a laptop)" in code
    assert f"{laptop.sweep_count} generations a run, {laptop.sweep_steps} steps" in said


def test_the_microscope_asks_as_many_questions_as_it_says():
    code, prose, _ = source_and_outputs("gradient_microscope")
    panels = re.search(r"^PANELS = \{(.*?)^\}", code, re.M | re.S)[1]
    lenses = re.search(r"^LENSES = \{(.*?)^\}", code, re.M | re.S)[1]
    assert len(re.findall(r'^    "\w+": \(', panels, re.M)) == 11 and "Eleven questions" in prose
    assert len(re.findall(r'^    "[^"]+": \(', lenses, re.M)) == 6 and "## Six lenses" in prose


def begun(name, cells=2, **parameters):
    "The first code cells of a tutorial, as papermill runs them."
    space, found = {}, json.loads((TUTORIALS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(c["source"]) for c in found if c["cell_type"] == "code"]
    asked = "\n".join(["# Parameters", *(f"{name} = {value!r}" for name, value in parameters.items())])
    space["In"] = [code[0], asked]
    for cell in [code[0], asked, *code[1:cells]]: exec(compile(cell, name, "exec"), space)


ASKED = [
    ("gradient_microscope", dict(count=0), "count is 0; give a whole number from 2"),
    ("gradient_microscope", dict(count=1), "count is 1"),
    ("gradient_microscope", dict(count=2, steps=1), "steps is 1; give a whole number from 2 to 400"),
    ("gradient_microscope", dict(repeats=1), "repeats is 1"),
    ("gradient_microscope", dict(steps=4, lag=4), "lag is 4; give a whole number from 1 to 3"),
    ("gradient_microscope", dict(cutoff="8"), "cutoff is '8'"),
    ("gradient_microscope", dict(objective=False), "unknown objective False"),
    ("gradient_microscope", dict(objective="binary"), "does not fit a classifier with 4 logits"),
    ("gradient_microscope", dict(unclipped=0), "unclipped is 0"),
    ("gradient_microscope", dict(seed=-1), "seed is -1"),
    ("gradient_microscope", dict(out=""), "out is ''"),
    ("the_truth_in_two_dimensions", dict(target=2), "target is 2; give a whole number from 0 to 1"),
    ("the_truth_in_two_dimensions", dict(count=0), "count is 0"),
    ("the_truth_in_two_dimensions", dict(repeats=1), "repeats is 1"),
    ("the_truth_in_two_dimensions", dict(choosing=0), "choosing is 0"),
    ("the_truth_in_two_dimensions", dict(steps=401), "steps is 401"),
    ("the_truth_in_two_dimensions", dict(smallest=1, largest=0), "largest is 0; give a whole number from 1"),
    ("the_truth_in_two_dimensions", dict(times=[]), r"times is \[\]; give a list"),
    ("the_truth_in_two_dimensions", dict(times=[999]), r"times is \[999\]; .* from 0 to 399"),
    ("the_truth_in_two_dimensions", dict(cloud=0), "cloud is 0"),
    ("the_truth_in_two_dimensions", dict(few=10), "few is 10; give a multiple of 16"),
    ("guide_your_own_model", dict(folder=""), "folder is ''"),
    ("guide_your_own_model", dict(folder="nowhere"), "no weights 'nowhere'"),
    ("guide_your_own_model", dict(target=7), "target is 7; give a whole number from 0 to 3"),
    ("guide_your_own_model", dict(steps=401), "steps is 401"),
    ("guide_your_own_model", dict(count=0), "0 images were asked for"),
    ("guide_your_own_model", dict(updates=-1), "updates is -1"),
    ("guide_your_own_model", dict(tested=0), "tested is 0"),
    ("guide_your_own_model", dict(preset="labtop"), "Did you mean 'laptop'"),
    ("guide_your_own_model", dict(out=""), "out is ''"),
    ("paper_vs_corrected", dict(target=4), "target is 4"),
    ("paper_vs_corrected", dict(target="baseball"), "target is 'baseball'"),
    ("paper_vs_corrected", dict(resamples=0), "resamples is 0"),
    ("paper_vs_corrected", dict(tested=True), "tested is True"),
    ("paper_vs_corrected", dict(targt=2), "unknown parameter 'targt'.*Did you mean 'target'"),
    ("guide_your_own_model", dict(classifier="mine.py:make"), "unknown parameter 'classifier'; choose one of folder"),
    ("gradient_microscope", dict(Count=8), "unknown parameter 'Count'.*Did you mean 'count'"),
    ("the_truth_in_two_dimensions", dict(step=8), "unknown parameter 'step'.*Did you mean 'steps'"),
]


@pytest.mark.parametrize("name, parameters, sentence", ASKED)
def test_a_tutorial_says_what_is_too_small_before_it_computes(name, parameters, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence): begun(name, **parameters)
    assert not list(tmp_path.iterdir())
