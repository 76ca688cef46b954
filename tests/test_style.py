"""What the linter does not see: the lines of generated modules, what a notebook keeps, and how large it is."""
import json
import re

import pytest
from pages import NOTEBOOKS, ROOT, cells

LARGEST = 400_000                                                       # bytes of a notebook, outputs and all
WIDGET = "application/vnd.jupyter.widget-view+json"
NARROW = {"figures": 92, "tutorials": 92}                               # beside JupyterLab's list of files
MODULES = [p for p in sorted((ROOT / "gradcheck").rglob("*.py")) if p.name != "_modidx.py"]


def name(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_a_notebook_keeps_no_rubbish_and_stays_small(path):
    page = json.loads(path.read_text(encoding="utf-8"))
    assert "widgets" not in page["metadata"]
    for cell in page["cells"]:
        for output in cell.get("outputs", ()):
            assert WIDGET not in output.get("data", {}), "a saved widget shows nothing where nobody runs it"
            assert output.get("name") != "stderr", "progress bars and warnings are not what a notebook shows"
            assert output["output_type"] != "error", output.get("evalue")
    assert path.stat().st_size <= LARGEST


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_no_line_of_a_cell_is_too_long(path):
    limit = NARROW.get(path.parent.name, 120)
    assert [line for cell in cells(path, "code") for line in cell.splitlines() if len(line) > limit] == []


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_no_line_of_a_module_is_too_long(path):
    "But for the list of names, which nbdev writes; the linter leaves generated modules to this."
    text = re.sub(r"^__all__ = \[.*?\]$", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
    assert [line for line in text.splitlines() if len(line) > 120] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_a_notebook_begins_with_its_title_a_sentence_and_where_to_go(path):
    first = cells(path)[0]
    assert first.startswith("# ")
    assert "\n> " in first
    assert re.search(r"^\*before: .*next: .*used in: .*\*$", first, re.M), "*before: ... · next: ... · used in: ...*"
