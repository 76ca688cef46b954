"""What goes wrong around a reproduction is one sentence; nothing that is finished is lost, nothing torn is left."""
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import forks
import nbformat
import pytest

from gradcheck.base import command_folder
from gradcheck.core import UserError
from gradcheck.paper import reproduce as reproducing
from gradcheck.paper.reproduce import execute
from gradcheck.runs.notebooks import as_called

ROOT = Path(__file__).parents[2]


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    "Makes a figure notebook of some code, in a folder of an odd name; `execute` finds it."
    folder = tmp_path / "a {b} $c$ 'd' é"
    folder.mkdir()

    def make(code):
        cells = [nbformat.v4.new_code_cell("seed = 0"), *map(nbformat.v4.new_code_cell, code)]
        cells[0].metadata["tags"] = ["parameters"]
        path = folder / "odd {name}.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        monkeypatch.setattr(reproducing, "notebook_of", lambda figure: path)
        return folder

    return make


def test_a_notebook_is_whole_under_its_name_and_alone(notebook):
    folder = notebook(["import os; print(seed, os.environ['GRADCHECK_FOLDER'], os.getcwd())"])
    (folder / "figure_1.failed.ipynb").write_text("of last time", encoding="utf-8")
    execute("figure_1", folder, {"seed": 7})
    page = json.loads((folder / "figure_1.ipynb").read_text(encoding="utf-8"))
    said = "".join(page["cells"][-1]["outputs"][0]["text"])
    assert said == f"7 {Path.cwd()} {folder}\n"
    assert sorted(p.name for p in folder.iterdir()) == ["figure_1.ipynb", "odd {name}.ipynb"]


def test_what_a_notebook_says_and_where_it_lies(notebook):
    folder = notebook(["class UserError(ValueError): pass", "raise UserError('give a\\nnumber.')"])
    with pytest.raises(UserError, match=r"^figure_1: give a number\. \(see .*figure_1.failed.ipynb\)$"):
        execute("figure_1", folder, {})
    failed = json.loads((folder / "figure_1.failed.ipynb").read_text(encoding="utf-8"))
    assert any(o.get("ename") == "UserError" for c in failed["cells"] for o in c.get("outputs", ()))
    assert not (folder / "figure_1.ipynb").exists()


@pytest.mark.parametrize("code", ["import os; os._exit(3)", "import os; os.kill(os.getpid(), 9)"])
def test_a_kernel_that_dies(notebook, code):
    folder = notebook([code])
    with pytest.raises(UserError, match="^figure_1: the notebook's kernel died .*run the same command again.$"):
        execute("figure_1", folder, {})
    assert [p.name for p in folder.iterdir()] == ["odd {name}.ipynb"]


def test_a_full_disk_leaves_the_notebook_of_before(notebook, monkeypatch):
    folder = notebook(["1"])
    (folder / "figure_1.ipynb").write_text("of before", encoding="utf-8")

    def full(*_): raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gradcheck.base.os.fsync", full)
    with pytest.raises(UserError, match="the disk is full"): execute("figure_1", folder, {})
    assert (folder / "figure_1.ipynb").read_text(encoding="utf-8") == "of before"
    notebook(["1 / 0"])
    with pytest.raises(UserError, match="^figure_1: ZeroDivisionError: division by zero$"):
        execute("figure_1", folder, {})
    assert sorted(p.name for p in folder.iterdir()) == ["figure_1.ipynb", "odd {name}.ipynb"]


def test_few_open_files_are_a_sentence(notebook, tmp_path):
    folder = notebook(["1"])
    code = f"""
from gradcheck.core import UserError
from gradcheck.paper import reproduce
from pathlib import Path
import resource, papermill, zmq, jupyter_client.kernelspec
folder = Path({str(folder)!r})
reproduce.notebook_of = lambda figure: folder / "odd {{name}}.ipynb"
resource.setrlimit(resource.RLIMIT_NOFILE, (MOST, MOST))
try: reproduce.execute("figure_1", folder, {{}})
except UserError as e: print("sentence:", e)
else: print("works")
"""
    for limit in (12, 64):
        said = tmp_path / f"{limit}.txt"
        call = [sys.executable, "-c", code.replace("MOST", str(limit))]
        with open(said, "w", encoding="utf-8") as out, open(tmp_path / "err.txt", "w", encoding="utf-8") as err:
            forks.Forked(call, stdout=out, stderr=err).wait()              # its kernel is a process of its own, anew
        lines = said.read_text(encoding="utf-8")
        assert lines.startswith(("works", "sentence: figure_1: ")), (tmp_path / "err.txt").read_text(encoding="utf-8")


def test_a_kernel_is_told_where_the_command_was_given(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRADCHECK_FOLDER", raising=False)
    with as_called():
        monkeypatch.chdir(ROOT / "nbs" / "figures")
        assert command_folder() == tmp_path
    assert "GRADCHECK_FOLDER" not in os.environ
    monkeypatch.setenv("GRADCHECK_FOLDER", str(tmp_path))
    with as_called(): assert command_folder() == tmp_path
    assert os.environ["GRADCHECK_FOLDER"] == str(tmp_path)


def test_a_relative_folder_is_where_the_command_was_given(tmp_path, cli, monkeypatch):
    "For `reproduce` and for `sample`; the cache is the project's, and never appears where the notebooks are."
    monkeypatch.setattr(reproducing, "project_root", lambda: ROOT)
    monkeypatch.setattr(reproducing, "find_spec", lambda name: None)                  # a machine without papermill
    monkeypatch.chdir(tmp_path)
    small = ("-p", "steps=2", "-p", "count=1")
    code, _, err = cli("reproduce", "figure_3", "--preset", "smoke", "--out", "a/b", *small)
    assert code == 0, err
    code, _, err = cli("sample", "--steps", 2, "--count", 1, "--out", "a/c")
    assert code == 0, err
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["smoke-steps=2-count=1"]
    assert (tmp_path / "a" / "c" / "grid.png").is_file()
    assert not (ROOT / "nbs" / "figures" / "data").exists()


# --- names of anybody's -----------------------------------------------------------------------
ODD = (
    "a $x$ _ ^ \\",
    "$",
    "$\\frac{$",
    "\\$",
    "<b>&\"'",
    "a|b*c`d`",
    "line\nfeed",
    "n" * 5000,
    "😀",
    "كرة",
    "",
    "\ud800",
)


def test_odd_names_are_drawn_letter_by_letter():
    import pandas as pd
    from matplotlib import pyplot as plt

    from gradcheck.paper.plots import as_label, figure_bytes, plot_cosines
    rows = pd.DataFrame({"t": [3, 2, 1], "mean": 0.5, "std": 0.1, "images": 4, "nothing": 0.0})
    for name in ODD:
        fig = plot_cosines(rows.assign(curve=name), {name: "blue"}, name)
        assert figure_bytes(fig, "png", 40).startswith(b"\x89PNG")
        plt.close(fig)
    assert as_label("$x$") == r"\$x\$" and len(as_label("n" * 5000)) == 60 and as_label("\n") == "(no name)"


@pytest.mark.parametrize("name", [name for name in ODD if name != "\ud800"], ids=ascii)
def test_odd_names_are_one_cell_of_a_table(name):
    import re

    from gradcheck.paper.tables import as_html, as_latex, as_markdown, in_latex
    table = ["name", "value"], [[name, "1"]], {(0, 0)}
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in as_markdown(*table).splitlines()] == [3, 3, 3]
    tex = as_latex(*table, name)
    assert tex.count("\n") == 11 and len(re.findall(r"(?<!\\)(?:\\\\)*&", tex)) == 2
    assert not re.search(r"(?<!\\)[$#%]", in_latex(name))
    html = as_html(*table)
    assert html.count("<") == as_html(["name", "value"], [["a", "1"]], {(0, 0)}).count("<")


def test_a_sidecar_is_utf8_in_any_locale(tmp_path):
    code = (
        "from gradcheck.paper.saved import provenance, sidecar_of\n"
        "from gradcheck.paper.presets import get_preset\n"
        "from gradcheck.core import write_bytes\n"
        "import json\n"
        "provenance()\n"
        "known = sidecar_of('figure_2', get_preset('smoke'), {}, {}, 1.0)\n"
        f"write_bytes({str(tmp_path / 'figure_2.json')!r}, json.dumps(known, ensure_ascii=False).encode())\n"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, check=True)
    assert "x̂₀-prediction (orange)" in json.loads((tmp_path / "figure_2.json").read_text(encoding="utf-8"))["caption"]
