"""How the app's notebooks are written: small cells, markup in package files; and JupyterLab opens for root too."""

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from pages import NBS, ROOT, cells

APP = sorted((NBS / "6_app").glob("*.ipynb"))
LINES = 29                       # of an export cell: about 25, and a long docstring or a table of one field a line


@pytest.mark.parametrize("path", APP, ids=lambda path: path.stem)
def test_export_cells_are_small(path):
    exported = [cell for cell in cells(path, "code") if cell.startswith("#| export")]
    long = [cell.splitlines()[1] for cell in exported if len(cell.splitlines()) > LINES]
    assert long == []


@pytest.mark.parametrize("path", sorted((ROOT / "gradcheck" / "app").glob("*.py")), ids=lambda path: path.stem)
def test_no_markup_in_python(path):
    strings = [node.value for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
               if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert [text for text in strings if re.search(r"</?[a-z]+[ >]", text)] == []


@pytest.mark.parametrize("path", APP, ids=lambda path: path.stem)
def test_no_loop_stands_for_an_assignment(path):
    for cell in cells(path, "code"):
        assert not re.search(r"^for .*:\s*pass$", cell, re.M), cell


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("user, allowed", [("0", True), ("1000", False)])
def test_lab_opens_the_front_page_and_for_root_too(user, allowed, tmp_path):
    (tmp_path / "id").write_text(f"#!/bin/sh\necho {user}\n", encoding="utf-8")
    (tmp_path / "id").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    plan = subprocess.run(
        ["make", "-n", "lab"], cwd=ROOT, env=os.environ | {"PATH": path}, check=True, capture_output=True, text=True
    ).stdout
    assert ("--allow-root" in plan) == allowed
    assert "nbs/index.ipynb" in plan
    assert Path(ROOT, "nbs", "index.ipynb").is_file()
