"""What goes wrong around a reproduction is one sentence; nothing that is finished is lost, nothing torn is left."""
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from gradcheck.base import command_folder
from gradcheck.core import UserError
from gradcheck.paper import reproduce as reproducing
from gradcheck.paper.reproduce import as_called, execute

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
        done = subprocess.run([sys.executable, "-c", code.replace("MOST", str(limit))], capture_output=True, text=True)
        assert done.stdout.startswith(("works", "sentence: figure_1: ")), done.stderr


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
