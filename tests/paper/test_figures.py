"""Every figure notebook under papermill with the smoke preset, as a user would call it, and as `gradcheck reproduce`
does.

Papermill and its kernels are forks here (tests/forks.py); in processes of their own they run in test_guides.py, and
below, where a reproduction is interrupted."""

import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import forks
import pandas as pd
import pytest
from conftest import of_all_workers
from papermill import inspect_notebook
from PIL import Image

from gradcheck.kinds import names_set_in
from gradcheck.paper.curves import class_labels
from gradcheck.paper.figures import FIGURES
from gradcheck.paper.page import claims_text
from gradcheck.paper.reproduce import check_parameters, reproduce
from gradcheck.runs.effects import FEW
from gradcheck.runs.runs import read_chunk
from gradcheck.runs.specs import RunSpec
from gradcheck.core import UserError
from gradcheck.core import read_meta

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "nbs" / "figures").glob("*.ipynb"))


@pytest.fixture(autouse=True)
def shared_cache(own_cache, tmp_path_factory, monkeypatch):
    "One cache for the figures of all workers: they share most of their runs (and a cache must stand being shared)."
    monkeypatch.setenv("GRADCHECK_CACHE", str(of_all_workers(tmp_path_factory) / "figures"))


one_worker = pytest.mark.xdist_group("figures")            # two workers would compute what figures share twice


def parameter_cells(path):
    return [
        c
        for c in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if "parameters" in c["metadata"].get("tags", [])
    ]


def test_there_is_a_notebook_per_figure():
    assert {n.stem for n in NOTEBOOKS} == set(FIGURES)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.stem)
def test_exactly_one_parameters_cell_which_survives_nbdev_clean(notebook, tmp_path):
    assert len(parameter_cells(notebook)) == 1
    shutil.copy(ROOT / "settings.ini", tmp_path)
    (tmp_path / "nbs").mkdir()
    copy = Path(shutil.copy(notebook, tmp_path / "nbs"))
    forks.run([str(Path(sys.executable).parent / "nbdev_clean"), "--fname", str(copy)], check=True, cwd=tmp_path)
    assert len(parameter_cells(copy)) == 1 and copy.read_text(encoding="utf-8") == notebook.read_text(encoding="utf-8")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.stem)
def test_papermill_knows_every_parameter(notebook, caplog):
    "A line that it cannot read (with two signs =) would be a warning at each call."
    cell, = parameter_cells(notebook)
    assert list(inspect_notebook(str(notebook))) == names_set_in("".join(cell["source"])) and not caplog.records


@one_worker
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.stem)
def test_papermill_alone(notebook, tmp_path, shared_cache):
    parameters = ["-p", "preset", "smoke", "-p", "out", str(tmp_path), "--no-progress-bar"]
    call = [sys.executable, "-m", "papermill", str(notebook), str(tmp_path / "out.ipynb"), *parameters]
    forks.run(call, check=True, cwd=ROOT)
    folder, figure = tmp_path / "smoke", notebook.stem
    assert Image.open(folder / f"{figure}.png").size[0] > 1000
    assert (folder / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
    assert len(pd.read_csv(folder / f"{figure}.csv")) >= 4
    sidecar = json.loads((folder / f"{figure}.json").read_text(encoding="utf-8"))
    assert (
        sidecar["parameters"]["preset"] == "smoke"
        and sidecar["libraries"]["torch"]
        and sidecar["source"]
        and sidecar["seconds"] >= 0
    )
    without_runs = ("figure_8", "study", "adam_apart", "frontiers", "similarity_and_success")
    assert bool(sidecar["runs"]) == (figure not in without_runs) and sidecar["protocol"]
    for r in sidecar["runs"].values(): assert len(r["digests"]["denoiser"]) == 64 and r["count"] == 4
    said = "".join(
        "".join(o.get("text", ""))
        for c in json.loads((tmp_path / "out.ipynb").read_text(encoding="utf-8"))["cells"]
        for o in c.get("outputs", [])
        if o["output_type"] == "stream"
    )
    assert re.search(r"interval [-+]?\d|± \d", said), said                               # a number with its uncertainty
    if figure == "figure_6": assert FEW in said                             # four images, however many the classes


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []
    def handle_starttag(self, tag, attrs): self.found += [v for k, v in attrs if k in ("href", "src")]


def test_reproduce_writes_a_page_without_broken_links_and_uses_its_parameters(tmp_path, capsys):
    sources = {n: n.read_bytes() for n in NOTEBOOKS}
    page = reproduce(["figure_3", "figure_4"], "smoke", tmp_path, seed=5, parameters=dict(steps=6))
    out = capsys.readouterr().out
    assert "figure_3: " in out and " s)" in out
    links = Links()
    links.feed(page.read_text(encoding="utf-8"))
    # no icon: else a browser asks for one
    assert len(links.found) == 13 and links.found.pop(0) == "data:,"
    for link in links.found: assert link.startswith("data:image/webp;base64,") or (page.parent / link).is_file(), link
    sidecar = json.loads((page.parent / "figure_3.json").read_text(encoding="utf-8"))
    assert all(r["seed"] == 5 and r["steps"] == 6 for r in sidecar["runs"].values())
    # nothing was executed in place
    assert sources == {n: n.read_bytes() for n in NOTEBOOKS}
    assert sidecar["seconds"] > 1                                                         # runs included


def command(*args):
    return [str(Path(sys.executable).parent / "gradcheck"), "reproduce", *map(str, args), "--preset", "smoke"]


def start(*args, cache):
    env, pipe = os.environ | {"GRADCHECK_CACHE": str(cache)}, subprocess.PIPE
    return subprocess.Popen(command(*args), cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True)


def start_fork(*args, cache, log):
    env = os.environ | {"GRADCHECK_CACHE": str(cache), "FORKS": forks.Server.address()}
    return forks.Forked(command(*args), cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def chunks_in(cache): return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in cache.rglob("*.safetensors")}


def test_an_interrupted_reproduction_goes_on_where_it_was(tmp_path):
    cache, args = tmp_path / "cache", ("figure_2", "--out", tmp_path / "out", "-p", "steps=4", "-p", "count=8")
    process = start(*args, cache=cache)
    while not chunks_in(cache) and process.poll() is None: time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = chunks_in(cache)
    assert 1 <= len(finished) < 12 and not (tmp_path / "out" / "smoke-steps=4-count=8" / "index.html").exists()
    out, err = (process := start(*args, cache=cache)).communicate()
    assert process.returncode == 0, err
    after = chunks_in(cache)
    # two chunks of each of four ways, and its probe; not one finished chunk was written again
    assert len(after) == 12 and finished.items() <= after.items()
    assert (tmp_path / "out" / "smoke-steps=4-count=8" / "index.html").is_file()


def test_two_reproductions_at_once(tmp_path):
    cache, args = tmp_path / "cache", ("figure_3", "--out", tmp_path / "out")
    with open(tmp_path / "log.txt", "w+", encoding="utf-8") as log:
        both = [start_fork(*args, cache=cache, log=log) for _ in range(2)]
        assert [process.wait() for process in both] == [0, 0], (tmp_path / "log.txt").read_text(encoding="utf-8")
    chunks = list(cache.rglob("*.safetensors"))
    assert len(chunks) == 2
    for path in chunks:
        spec = RunSpec(**read_meta(path)["spec"])
        assert read_chunk(path, spec) is not None
    assert json.loads((tmp_path / "out" / "smoke" / "figure_3.ipynb").read_text(encoding="utf-8"))["cells"]
    left = [
        p
        for p in (*cache.rglob("*"), *(tmp_path / "out").rglob("*"))
        if p.is_file() and (p.name.startswith(".") or p.suffix == ".tmp")
    ]
    assert left == []


@one_worker
def test_claims_in_the_terminal_and_on_the_page(tmp_path, capsys, shared_cache):
    page = reproduce(["claims"], "smoke", tmp_path)
    claims = pd.read_csv(tmp_path / "smoke" / "claims.csv", keep_default_na=False)
    said = capsys.readouterr().out
    assert len(claims) >= 16 and set(claims["verdict"]) <= {"holds", "does not hold", "undecided"}
    text = html.unescape(page.read_text(encoding="utf-8"))
    for _, row in claims.iterrows():
        assert row["claim"] in said and row["claim"] in text
        low, high = (float(row[k] or "nan") for k in ("low", "high"))
        few = row["beside"].startswith(FEW)
        assert row["verdict"] == ("undecided" if few else "holds" if low > 0 else "does not hold" if high < 0 else
                                  "undecided")
    assert claims["beside"].str.startswith(FEW).any()                       # four images, whatever they say
    assert text.index("Do the paper") < text.index("What is not known of the paper") < text.index("<figure")
    assert claims_text(claims) in said


@one_worker
def test_the_table_in_three_formats(tmp_path, shared_cache):
    page = reproduce(["table_1"], "smoke", tmp_path)
    table = pd.read_csv(tmp_path / "smoke" / "table_1.csv")
    rows = (tmp_path / "smoke" / "table_1.md").read_text(encoding="utf-8").splitlines()
    assert (
        len(table) == 10
        and len(rows) == 12
        and rows[2].startswith("| no guidance")
        and rows[-1].startswith("| floor: real images")
    )
    tex = (tmp_path / "smoke" / "table_1.tex").read_text(encoding="utf-8")
    assert tex.count(r"\\") == 11 and r"\toprule" in tex and r"\bottomrule" in tex and "\u0302" not in tex
    assert (
        {c for c in table if c.startswith("FID")} == {"FID (judge), target", "FID (judge), all"}
        and "table_1.tex" in page.read_text(encoding="utf-8")
        and "<td>no guidance</td>" in page.read_text(encoding="utf-8")
    )


def test_a_notebook_without_its_parameters_cell_is_refused(tmp_path):
    nb = json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))
    for cell in nb["cells"]: cell["metadata"] = {}
    (tmp_path / "figure_1.ipynb").write_text(json.dumps(nb))
    with pytest.raises(UserError, match="0 cells tagged"): check_parameters(tmp_path / "figure_1.ipynb", [])


def test_classes_of_one_name_are_told_apart():
    "Figure 6 shows each class, also where two are called the same."
    assert class_labels(["cat", "dog"]) == ["cat", "dog"]
    assert class_labels(["cat", "dog", "cat"]) == ["cat (0)", "dog", "cat (2)"]
