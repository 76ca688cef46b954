"""Every figure notebook under papermill with the smoke preset, as a user would call it, and as `gradcheck reproduce` does."""
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from gradcheck.experiments import FIGURES
from gradcheck.reproduce import check_parameters, reproduce
from gradcheck.core import UserError

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "nbs" / "figures").glob("*.ipynb"))


def parameter_cells(path): return [c for c in json.loads(path.read_text())["cells"] if "parameters" in c["metadata"].get("tags", [])]


def test_there_is_a_notebook_per_figure():
    assert {n.stem for n in NOTEBOOKS} == set(FIGURES)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.stem)
def test_exactly_one_parameters_cell_which_survives_nbdev_clean(notebook, tmp_path):
    assert len(parameter_cells(notebook)) == 1
    shutil.copy(ROOT / "settings.ini", tmp_path)
    (tmp_path / "nbs").mkdir()
    copy = Path(shutil.copy(notebook, tmp_path / "nbs"))
    subprocess.run([str(Path(sys.executable).parent / "nbdev_clean"), "--fname", str(copy)], check=True, cwd=tmp_path)
    assert len(parameter_cells(copy)) == 1 and copy.read_text() == notebook.read_text()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.stem)
def test_papermill_alone(notebook, tmp_path):
    subprocess.run([sys.executable, "-m", "papermill", str(notebook), str(tmp_path / "out.ipynb"), "-p", "preset", "smoke", "-p", "out", str(tmp_path), "--no-progress-bar"],
                   check=True, cwd=ROOT, capture_output=True)
    folder, figure = tmp_path / "smoke", notebook.stem
    assert Image.open(folder / f"{figure}.png").size[0] > 1000
    assert (folder / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
    assert len(pd.read_csv(folder / f"{figure}.csv")) >= 4
    sidecar = json.loads((folder / f"{figure}.json").read_text())
    assert sidecar["parameters"]["preset"] == "smoke" and sidecar["libraries"]["torch"] and sidecar["source"] and sidecar["seconds"] >= 0
    for r in sidecar["runs"].values(): assert len(r["digests"]["denoiser"]) == 64 and r["count"] == 4
    said = "".join("".join(o.get("text", "")) for c in json.loads((tmp_path / "out.ipynb").read_text())["cells"] for o in c.get("outputs", []) if o["output_type"] == "stream")
    assert re.search(r"interval [-+]?\d|± \d", said), said                               # a number with its uncertainty


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []
    def handle_starttag(self, tag, attrs): self.found += [v for k, v in attrs if k in ("href", "src")]


def test_reproduce_writes_a_page_without_broken_links_and_uses_its_parameters(tmp_path, capsys):
    sources = {n: n.read_bytes() for n in NOTEBOOKS}
    page = reproduce(["figure_3", "figure_4"], "smoke", tmp_path, seed=5, parameters=dict(steps=5))
    out = capsys.readouterr().out
    assert "figure_3: " in out and " s)" in out
    links = Links()
    links.feed(page.read_text())
    assert len(links.found) == 10
    for link in links.found: assert link.startswith("data:image/png;base64,") or (page.parent / link).is_file(), link
    sidecar = json.loads((page.parent / "figure_3.json").read_text())
    assert all(r["seed"] == 5 and r["steps"] == 5 for r in sidecar["runs"].values())
    assert sources == {n: n.read_bytes() for n in NOTEBOOKS}                              # nothing was executed in place
    assert sidecar["seconds"] > 1                                                         # runs included


def test_a_notebook_without_its_parameters_cell_is_refused(tmp_path):
    nb = json.loads(NOTEBOOKS[0].read_text())
    for cell in nb["cells"]: cell["metadata"] = {}
    (tmp_path / "figure_1.ipynb").write_text(json.dumps(nb))
    with pytest.raises(UserError, match="0 cells tagged"): check_parameters(tmp_path / "figure_1.ipynb", [])
