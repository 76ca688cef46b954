"""A figure of which nothing has changed is kept; whatever it is made of may change, and it is made again."""
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load

from gradcheck.core import UserError, read_meta
from gradcheck.data import sources
from gradcheck.data.sources import data_digest, open_data
from gradcheck.paper import reproduce as reproducing
from gradcheck.paper import stamps
from gradcheck.paper.saved import figure_runs
from gradcheck.paper.plan import made_of
from gradcheck.paper.presets import get_preset
from gradcheck.paper.reproduce import reproduce
from gradcheck.paper.settings import preset_for
from gradcheck.paper.stamps import is_kept, model_digest, notebook_digest, stamp_path, stamped
from gradcheck.runs import chunks
from gradcheck.runs.chunks import write_chunk
from gradcheck.runs.specs import PROBE, RunSpec

ROOT = Path(__file__).parents[2]
FIGURE = "figure_3"                                        # two runs
SMALL = dict(steps=2, count=1)
SUFFIXES = ("png", "pdf", "csv", "json", "ipynb")


class Kitchen:
    "Makes `FIGURE` in a folder, by a notebook that takes no time; counts how often."
    def __init__(self, folder):
        self.out = folder / "out"
        self.folder = self.out / "smoke-steps=2-count=1"
        self.notebook = folder / f"{FIGURE}.ipynb"
        self.package = folder / "package"
        self.made = 0
        self.meanwhile = lambda: None
        shutil.copy(ROOT / "nbs" / "figures" / f"{FIGURE}.ipynb", self.notebook)
        self.package.mkdir()
        (self.package / "__init__.py").write_text("")
        (self.package / "page.j2").write_text("a template")

    def execute(self, figure, folder, parameters):
        self.made += 1
        for suffix in SUFFIXES: (folder / f"{figure}.{suffix}").write_text("{}")
        (folder / f"{figure}.failed.ipynb").unlink(missing_ok=True)
        self.meanwhile()

    def __call__(self, **options):
        "How often the notebook was executed in one call; and what was said."
        before, said = self.made, []
        reproduce([FIGURE], "smoke", self.out, parameters=SMALL, report=said.append, **options)
        kept = [sentence for sentence in said if "unchanged" in sentence]
        assert len(kept) == (self.made == before)
        return self.made - before


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "A cache with the figure's runs."
    cache = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADCHECK_CACHE", str(cache))
        figure_runs(FIGURE, preset_for("smoke", **SMALL))
    return cache


@pytest.fixture
def cook(tmp_path, monkeypatch, runs, own_cache):
    kitchen = Kitchen(tmp_path)
    shutil.copytree(runs, own_cache)
    monkeypatch.setattr(reproducing, "notebook_of", lambda figure: kitchen.notebook)
    monkeypatch.setattr(reproducing, "execute", kitchen.execute)
    monkeypatch.setattr(reproducing, "concluded", lambda *_: None)
    monkeypatch.setattr(chunks, "PACKAGE", kitchen.package)
    assert kitchen() == 1
    return kitchen


def test_what_has_not_changed_is_kept_and_again_makes_it_again(cook):
    files = {p: p.read_bytes() for p in cook.folder.iterdir()}
    assert stamp_path(cook.folder, FIGURE) in files
    assert cook() == 0
    assert files == {p: p.read_bytes() for p in cook.folder.iterdir()}
    assert cook(again=True) == 1
    assert cook() == 0


def half(path): path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


@pytest.mark.parametrize("change", [
    lambda k: (k.folder / f"{FIGURE}.png").unlink(),
    lambda k: half(k.folder / f"{FIGURE}.csv"),
    lambda k: (k.folder / f"{FIGURE}.json").write_text('{"seconds": 1}'),
    lambda k: (k.folder / f"{FIGURE}.failed.ipynb").write_text("of a failed attempt"),
    lambda k: stamp_path(k.folder, FIGURE).unlink(),
    lambda k: half(stamp_path(k.folder, FIGURE)),
    lambda k: stamp_path(k.folder, FIGURE).write_text("[]"),
    lambda k: shutil.rmtree(k.folder),
], ids=["missing", "half", "edited", "failed", "no stamp", "half a stamp", "another stamp", "no folder"])
def test_results_that_are_not_as_they_were_made(cook, change):
    change(cook)
    assert cook() == 1
    assert cook() == 0


def with_cells(path, change):
    page = json.loads(path.read_text(encoding="utf-8"))
    for cell in page["cells"]: change(cell)
    path.write_text(json.dumps(page), encoding="utf-8")


def other_source(kind):
    return lambda k: with_cells(k.notebook, lambda c: c["source"].append("\n ") if c["cell_type"] == kind else None)


def other_run(kitchen):
    "The same run as another machine would have computed it: other last digits."
    path = sorted(kitchen.cache.rglob("*.safetensors"))[-1]
    tensors = load(path.read_bytes())
    write_chunk(path, tensors | {"guide": tensors["guide"] + 1e-6}, RunSpec(**read_meta(path)["spec"]))


@pytest.mark.parametrize("change", [
    lambda k: (k.package / "__init__.py").write_text("x = 1"),
    lambda k: (k.package / "page.j2").write_text("another template"),
    lambda k: (k.package / "new.py").write_text(""),
    other_source("code"),
    other_source("markdown"),
    lambda k: with_cells(k.notebook, lambda c: c["metadata"].update(tags=[*c["metadata"].get("tags", ()), "more"])),
    other_run,
    lambda k: k.monkeypatch.setattr(stamps, "installed", set),
    lambda k: k.monkeypatch.setattr(stamps, "python_version", lambda: "2.7"),
    lambda k: k.monkeypatch.setattr("gradcheck.paper.plan.model_digest", lambda name, shape: "other weights"),
], ids=["code", "template", "module", "cell", "prose", "tag", "run", "libraries", "python", "weights"])
def test_what_it_is_made_of_has_changed(cook, change, own_cache, monkeypatch):
    cook.cache, cook.monkeypatch = own_cache, monkeypatch
    change(cook)
    assert cook() == 1
    assert cook() == 0


def test_what_a_notebook_shows_is_no_part_of_it(cook):
    def shown(cell):
        if cell["cell_type"] == "code": cell.update(execution_count=7, outputs=[])
    before = notebook_digest(cook.notebook)
    with_cells(cook.notebook, shown)
    assert notebook_digest(cook.notebook) == before
    assert cook() == 0


def test_a_missing_run_is_computed_and_the_figure_made_again(cook, own_cache):
    before = sorted(own_cache.rglob("*.safetensors"))
    written = {p: p.stat().st_mtime_ns for p in before}
    before[0].unlink()
    assert cook() == 1
    assert before == sorted(own_cache.rglob("*.safetensors"))
    assert [p for p in before if p.stat().st_mtime_ns != written[p]] == before[:1]


def test_a_damaged_run_is_computed_and_the_figure_made_again(cook, own_cache):
    paths = sorted(own_cache.rglob("*.safetensors"))
    half(next(path for path in paths if read_meta(path)["spec"]["scale"] != PROBE))
    with pytest.warns(UserWarning, match="damaged"): assert cook() == 1
    assert cook() == 0


def test_what_failed_or_was_stopped_has_no_stamp(cook):
    (cook.package / "new.py").write_text("")

    def fail(): raise UserError("no picture.")
    def stop(): raise KeyboardInterrupt

    for meanwhile, error in ((fail, UserError), (stop, KeyboardInterrupt)):
        shutil.rmtree(cook.folder)
        cook.meanwhile = meanwhile
        with pytest.raises(error): cook()
        assert not stamp_path(cook.folder, FIGURE).exists()
    cook.meanwhile = lambda: None
    assert (cook(), cook()) == (1, 0)


def test_what_changes_while_it_is_made_gives_no_stamp(cook):
    cook.meanwhile = lambda: (cook.package / "new.py").write_text(f"made = {cook.made}")
    assert (cook(again=True), cook()) == (1, 1)
    cook.meanwhile = lambda: None
    assert (cook(), cook()) == (1, 0)


def test_a_stamp_is_whole_or_absent(tmp_path, monkeypatch):
    def stopped(*_): raise KeyboardInterrupt
    with stamped(tmp_path, "a", lambda: {"code": "1"}): (tmp_path / "a.txt").write_text("a")
    before = stamp_path(tmp_path, "a").read_bytes()
    monkeypatch.setattr("gradcheck.base.os.replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        with stamped(tmp_path, "a", lambda: {"code": "2"}): (tmp_path / "a.txt").write_text("b")
    assert stamp_path(tmp_path, "a").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.stamp", "a.txt"]
    assert not any(is_kept(tmp_path, "a", {"code": code}) for code in "12")


def test_other_names_in_the_folder_are_nobodys_business(tmp_path):
    parts = {"code": "1"}
    for name in ("table_1", "table_1_appendix"):
        with stamped(tmp_path, name, lambda: parts): (tmp_path / f"{name}.csv").write_text(name)
    (tmp_path / "table_1_appendix.csv").write_text("edited")
    (tmp_path / "index.html").write_text("a page")
    assert is_kept(tmp_path, "table_1", parts)
    assert not is_kept(tmp_path, "table_1_appendix", parts)


def test_a_folder_called_like_a_figure_is_no_result(tmp_path):
    (tmp_path / "a.old").mkdir()
    with stamped(tmp_path, "a", lambda: {"code": "1"}): (tmp_path / "a.csv").write_text("a")
    assert is_kept(tmp_path, "a", {"code": "1"})


def test_nothing_is_no_figure(tmp_path):
    with stamped(tmp_path, "a", lambda: {"code": "1"}): pass
    assert not is_kept(tmp_path, "a", {"code": "1"})
    assert not is_kept(tmp_path, "a", None)


# --- models and data of somebody's ------------------------------------------------------------
OWN = """
import torch
from helper import CLASSES

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.last = torch.nn.Linear(3, CLASSES)
    def forward(self, x): return self.last(x.mean((2, 3)))
"""


def test_a_function_is_its_code_and_what_it_imports(tmp_path, monkeypatch):
    monkeypatch.setattr(stamps, "classifier_card", lambda name, shape: {"sha256": "weights"})
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "helper.py").write_text("CLASSES = 4")
    name, found = f"{tmp_path / 'own.py'}:Net", set()
    found.add(model_digest(name, (3, 64, 64)))
    (tmp_path / "helper.py").write_text("CLASSES = 2 + 2")
    found.add(model_digest(name, (3, 64, 64)))
    (tmp_path / "own.py").write_text(OWN + "\n")
    found.add(model_digest(name, (3, 64, 64)))
    monkeypatch.setattr(stamps, "classifier_card", lambda name, shape: {"sha256": "other weights"})
    found.add(model_digest(name, (3, 64, 64)))
    assert len(found) == 4


@pytest.mark.parametrize("file", ["a.safetensors", "a.json", "a-00001-of-00002.safetensors"])
def test_weights_are_all_their_files(tmp_path, file):
    for name in ("a.safetensors", "a.json", "a-00001-of-00002.safetensors", "ab.safetensors"):
        (tmp_path / name).write_text(name)
    weights = str(tmp_path / "a.safetensors")
    before = model_digest(weights, (3, 64, 64))
    (tmp_path / "ab.safetensors").write_text("of another model")
    assert model_digest(weights, (3, 64, 64)) == before
    (tmp_path / file).write_text("others")
    assert model_digest(weights, (3, 64, 64)) != before


def test_pictures_in_a_folder_are_looked_at(tmp_path):
    for k in range(6):
        path = tmp_path / "pictures" / f"class {k % 2}" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 40 * k, np.uint8)).save(path)
    name = str(tmp_path / "pictures")
    before = data_digest(name, 8)
    assert before == data_digest(name, 8)
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(path)
    after = data_digest(name, 8)
    assert after != before
    shutil.copy(path, path.with_name("7.png"))
    assert data_digest(name, 8) not in (before, after)


def test_a_folder_is_opened_anew_where_its_pictures_have_changed(tmp_path, monkeypatch):
    "As where one of its classes was forgotten; as long as nothing changes it is opened once, for one walk more."
    def paint(name, k):
        for i in range(3):
            path = tmp_path / "pictures" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), 40 * i + k, np.uint8)).save(path)
    for k, name in enumerate("ab"): paint(name, k)
    name = str(tmp_path / "pictures")
    first = open_data(name, 8)
    walked, digest = [], sources.stats_digest
    monkeypatch.setattr(sources, "stats_digest", lambda root: walked.append(root) or digest(root))
    assert open_data(name, 8) is first and len(walked) == 1
    assert data_digest(name, 8) and len(walked) == 2
    paint("c", 9)
    assert open_data(name, 8).label_names == ("a", "b", "c")


def test_a_folder_of_pictures_is_walked_once(tmp_path, monkeypatch):
    "As deep as before, also where a link leads to nothing."
    (tmp_path / "a" / "b" / "c" / "d" / "e").mkdir(parents=True)
    for place in ("x", "a/x", "a/b/c/d/x", "a/b/c/d/e/too deep"): (tmp_path / place).write_text(place)
    (tmp_path / "a" / "gone").symlink_to(tmp_path / "nowhere")
    walked, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: walked.append(path) or scandir(path))
    found = sources.stats_below(tmp_path)
    assert len(walked) == 5 and {name for name in found if found[name] is None} == {"a/gone"}
    assert {*found} == {"x", "a", "a/x", "a/gone", "a/b", "a/b/c", "a/b/c/d", "a/b/c/d/x", "a/b/c/d/e"}
    assert sources.stats_below(tmp_path / "nowhere") == {}


def test_what_a_function_reads_is_not_known(tmp_path):
    (tmp_path / "own.py").write_text("def pictures(): pass")
    name = f"{tmp_path / 'own.py'}:pictures"
    assert data_digest(name, 64) is None
    assert data_digest("sportballs", 64) == "sportballs" and data_digest("", 64) == ""
    notebook, p = ROOT / "nbs" / "figures" / "figure_8.ipynb", get_preset("smoke")
    assert made_of("figure_8", p, notebook, {}).keys() >= {"code", "libraries", "notebook", "models", "data", "runs"}
    assert made_of("figure_8", replace(p, data=name), notebook, {}) is None


@pytest.mark.parametrize("figure", ["figure_8", "study"])
def test_what_is_read_beside_models(figure, tmp_path, monkeypatch):
    "Inception's weights where they are there; for the study, the reference numbers and the further classifiers."
    def parts(): return made_of(figure, get_preset("smoke"), ROOT / "nbs" / "figures" / f"{figure}.ipynb", {})
    before = parts()
    path = tmp_path / "inception.pt"
    path.write_bytes(b"weights")
    monkeypatch.setenv("GRADCHECK_INCEPTION", str(path))
    assert {k for k, v in parts().items() if v != before[k]} == {"inception"}
    monkeypatch.setattr("gradcheck.paper.plan.project_root", lambda: tmp_path)
    (tmp_path / "data" / "reference" / "study").mkdir(parents=True)
    (tmp_path / "data" / "reference" / "study" / "claims.csv").write_text("claims")
    numbers = parts()
    changed = {k for k, v in numbers.items() if v != before[k]}
    assert changed == ({"inception", "reference"} if figure == "study" else {"inception"})
    (tmp_path / "data" / "replicates").mkdir()
    (tmp_path / "data" / "replicates" / "robust_2.safetensors").write_text("weights")
    assert (parts() != numbers) == (figure == "study")
