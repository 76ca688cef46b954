"""Every relative link and picture on a page leads somewhere; every notebook begins as a page."""
import re
from urllib.parse import unquote

import pytest
from pages import NOTEBOOKS, ROOT, text_of

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
