"""The README's code runs as written, and its links lead somewhere."""
import re
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_ten_lines(tmp_path, monkeypatch, global_rng_untouched):
    code, = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("steps=100", "steps=8"), "README.md", "exec"), {})
    assert Image.open("volleyballs.png").size == Image.open(ROOT / "nbs" / "images" / "volleyballs.png").size


def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if not link.startswith("http")]
    assert len(links) > 20
    for link in links: assert (ROOT / link).is_file(), link


def test_every_numbered_notebook_is_listed():
    for nb in (ROOT / "nbs").glob("[0-9]*.ipynb"): assert f"nbs/{nb.name}" in TEXT, nb.name
