"""Every tutorial runs from top to bottom by papermill, at a size that says nothing about science.

(`make tutorials` runs them at their own size.)"""
import json
from pathlib import Path

import papermill as pm
import pytest

from gradcheck.paper.reproduce import check_parameters

TUTORIALS = Path(__file__).parent.parent / "nbs" / "tutorials"
SMALL = {   # tutorial -> parameters of the small run
    "guide_your_own_model": dict(steps=2, count=2, updates=2, preset="smoke"),
    "paper_vs_corrected": dict(preset="smoke", steps=2, count=2, resamples=3),
    "the_truth_in_two_dimensions": dict(
        count=60,
        repeats=2,
        steps=12,
        smallest=-4,
        largest=-1,
        cloud=300,
        times=[350, 50],
    ),
    "gradient_microscope": dict(count=2, steps=6, repeats=2, lag=2, unclipped=2, out=None),
}


@pytest.mark.parametrize("name", sorted(p.stem for p in TUTORIALS.glob("*.ipynb")))
def test_a_tutorial_runs_and_shows_pictures(name, tmp_path):
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
