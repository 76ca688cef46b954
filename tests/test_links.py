"""Every relative link and picture on a page leads somewhere; every notebook begins as a page."""
import re
from urllib.parse import unquote

import pytest
from pages import NOTEBOOKS, ROOT, cells, text_of

PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md")), *NOTEBOOKS]
LINK = re.compile(r"\]\(\s*<?([^()\s>]+(?:\([^()\s]*\)[^()\s>]*)*)>?(?:\s+\"[^\"]*\")?\s*\)")
HTML = re.compile(r"(?:src|href)=\"([^\"]+)\"")
CODE = re.compile(r"```.*?```|`[^`\n]*`|\$\$.*?\$\$", re.S)


def links(text):
    "Relative links and pictures in a Markdown text, without their anchors; not those in code or formulas."
    text = CODE.sub("", text)
    found = [unquote(link).partition("#")[0] for link in [*LINK.findall(text), *HTML.findall(text)]]
    return [link for link in found if link and not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    lost = [link for link in links(text_of(path)) if not (path.parent / link).exists()]
    assert lost == []


def test_what_is_taken_for_a_link():
    text = "[a](x.ipynb) ![b](y/z.png) [c](n.ipynb#The-end) [d](https://e.org) [e](#here) [![f](g.png)](h.md) `[i](j)`"
    assert links(text) == ["x.ipynb", "y/z.png", "n.ipynb", "g.png", "h.md"]


def test_every_picture_is_shown_somewhere():
    shown = {(path.parent / link).resolve() for path in PAGES for link in links(text_of(path))}
    images = [p for p in (ROOT / "nbs" / "images").rglob("*.*") if p.suffix in (".png", ".gif", ".svg")]
    assert [p.name for p in images if p.resolve() not in shown] == []


WAY = re.compile(r"^\*before: (.*?) · next: (.*?) · used in: (.*)\*$", re.M)


def ways(path):
    "Where the line under a notebook's title leads: the notebooks before, next, and those it is said to be used in."
    found = (LINK.findall(part.partition(";")[0]) for part in WAY.search(cells(path)[0]).groups())
    return [[(path.parent / unquote(link).partition("#")[0]).resolve() for link in links] for links in found]


def test_the_notebooks_of_a_folder_are_one_chain():
    before, following = ({p: ways(p)[k] for p in NOTEBOOKS} for k in (0, 1))
    pairs = {(a, b) for b in NOTEBOOKS for a in before[b]} ^ {(a, b) for a in NOTEBOOKS for b in following[a]}
    assert [(a.stem, b.stem) for a, b in pairs if a.parent == b.parent and a.stem != "index"] == []      # it branches


def module_of(path):
    exported = re.search(r"^#\| default_exp (\S+)", "\n".join(cells(path, "code")), re.M)
    return exported[1] if exported else None


def test_a_notebook_is_used_in_what_imports_it():
    code = {p: "\n".join(cells(p, "code")) for p in NOTEBOOKS if module_of(p)}
    users = {p: {q for q in code if f"from gradcheck.{module_of(p)} import" in code[q]} for p in code}
    said = [(p, q) for p in code if users[p] for q in ways(p)[2] if q in code]
    assert [(p.stem, q.stem) for p, q in said if q not in users[p]] == [] != said
