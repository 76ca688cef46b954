"""Figure notebooks are committed as they were executed, and what they were executed with is what stands here today."""
import ast
import json
from pathlib import Path

import pytest

from gradcheck.core import UserError
from gradcheck.paper.figures import FIGURES
from gradcheck.paper.reproduce import check_writable, reproduce, with_outputs
from gradcheck.paper.plots import committed
from gradcheck.paper.saved import PARAMETERS, identity
from gradcheck.paper.settings import preset_for, setting_of

FOLDER = Path(__file__).parents[2] / "nbs" / "figures"
EXECUTED = list(FIGURES)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def outputs(name):
    return [o for cell in read(FOLDER / f"{name}.ipynb")["cells"] for o in cell.get("outputs", ())]


def parameters_of(name):
    "The defaults in a notebook's own cell."
    cell, = (c for c in read(FOLDER / f"{name}.ipynb")["cells"] if "parameters" in c["metadata"].get("tags", ()))
    values = {n.targets[0].id: ast.literal_eval(n.value) for n in ast.parse("".join(cell["source"])).body}
    return {k: values[k] for k in PARAMETERS if k in values}


@pytest.mark.parametrize("name", EXECUTED)
def test_a_figure_is_seen_without_running(name):
    assert any("image/png" in o.get("data", {}) for o in outputs(name))


@pytest.mark.parametrize("name", EXECUTED)
def test_it_was_made_with_todays_weights_and_defaults(name):
    given = parameters_of(name)
    assert setting_of(given) == {}
    said = ["".join(o["data"]["text/plain"]) for o in outputs(name) if "text/plain" in o.get("data", {})]
    assert identity(name, preset_for(given["preset"]), given) in said


def test_what_is_kept_of_an_output():
    widget = dict(output_type="display_data", data={"application/vnd.jupyter.widget-view+json": {}}, metadata={})
    bar = dict(output_type="stream", name="stderr", text="50 %")
    said = dict(output_type="stream", name="stdout", text="a number")
    value = dict(output_type="execute_result", data={"text/plain": "1"}, metadata={}, execution_count=7)
    assert committed(widget) is None
    assert committed(bar) is None
    assert committed(said) == said
    assert committed(value)["execution_count"] is None


def test_sources_stay_as_they_are():
    source = read(FOLDER / "figure_1.ipynb")
    executed = json.loads(json.dumps(source))
    for cell in executed["cells"]:
        if cell["cell_type"] == "code": cell["outputs"] = [dict(output_type="stream", name="stdout", text="new")]
    executed["cells"].insert(2, dict(cell_type="code", id="injected", source="# Parameters", outputs=[], metadata={}))
    after = json.loads(with_outputs(source, executed))
    assert [c["source"] for c in after["cells"]] == [c["source"] for c in source["cells"]]
    assert all(c["outputs"][0]["text"] == "new" for c in after["cells"] if c["cell_type"] == "code")


@pytest.mark.parametrize("arguments", [
    dict(preset="smoke"),
    dict(seed=1),
    dict(parameters=dict(target=2)),
    dict(parameters=dict(mode="paper")),
])
def test_only_the_default_setting_goes_back(arguments, tmp_path):
    before = {p: p.read_bytes() for p in FOLDER.glob("*.ipynb")}
    with pytest.raises(UserError, match="--write-back"):
        reproduce(["figure_1"], out=str(tmp_path), in_place=True, **arguments)
    assert before == {p: p.read_bytes() for p in FOLDER.glob("*.ipynb")}
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused_first(monkeypatch):
    monkeypatch.setattr("gradcheck.paper.reproduce.os.access", lambda path, mode: False)
    with pytest.raises(UserError, match="no permission"): check_writable(preset_for("laptop"), {})
