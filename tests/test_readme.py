"""The README: short, its first screen complete, its ten lines run, and its claims those of the reference."""
import importlib.util
import re

import pytest
from pages import NBS, NOTEBOOKS, README, ROOT, cells, text_of
from PIL import Image

TEXT = text_of(README)

spec = importlib.util.spec_from_file_location("front", NBS / "front.py")
front = importlib.util.module_from_spec(spec)
spec.loader.exec_module(front)


def test_it_is_short():
    assert len(README.read_bytes()) <= 8 * 1024


def test_its_first_screen_has_what_a_reader_needs_first():
    screen = TEXT.partition("\n## ")[0]
    for needed in ("$$", "guidance.gif", "make figures", "make test", "nbs/index.ipynb", "03_sampling.ipynb"):
        assert needed in screen, needed


def test_ten_lines(tmp_path, monkeypatch, global_rng_untouched):
    code, = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("steps=100", "steps=8"), "README.md", "exec"), {})
    assert Image.open("volleyballs.png").size == Image.open(NBS / "images" / "volleyballs.png").size


def test_the_tree_names_what_is_there():
    tree = re.search(r"```\n(nbs/.*?)```", TEXT, re.S)[1]
    folder = ROOT
    for line in tree.splitlines():
        name = line.split()[0]
        folder = ROOT if not line.startswith(" ") else NBS
        assert (folder / name).exists(), name


@pytest.mark.parametrize("path, new", list(front.pages()), ids=lambda x: getattr(x, "name", ""))
def test_what_stands_between_marks_is_what_the_repository_says(path, new):
    assert path.read_text(encoding="utf-8") == new, f"{path.name} is behind the notebooks or data/reference: make pages"


def test_the_claims_in_short_are_the_headlines_of_the_study(tmp_path, monkeypatch):
    claims, drawn = (tmp_path / name / "claims.csv" for name in ("study", "coupled"))
    for path in (claims, drawn): path.parent.mkdir()
    head = "claim,protocol,reader,verdict,effect,low,high,classifiers,classes,headline"
    rows = [f"It helps,{p},{r},{v},0.166,0.158,0.1755,5,4,True" for p, r, v in (
        ("authors", "guide", "holds"),
        ("authors", "judge", "does not hold"),
        ("ours", "judge", "undecided"),
    )]
    claims.write_text("\n".join([head, *rows, rows[0].replace("helps", "hurts").replace("True", "False")]))
    monkeypatch.setattr(front, "REFERENCE", tmp_path)
    table = front.claims_in_short().splitlines()
    assert len(table) == 3
    effect = "+0.166 (+0.158 to +0.175)"
    assert table[2] == f"| It helps | holds, {effect} | undecided, {effect} | 5 classifiers, 4 classes |"
    drawn.write_text("\n".join([head, rows[0].replace("authors", "coupled").replace(",5,4", ",3,4")]))
    table = front.claims_in_short().splitlines()
    assert table[2] == (f"| It helps | holds, {effect} | holds, {effect} | undecided, {effect} | 3 or 5 classifiers, "
                        "4 classes |")
    monkeypatch.setattr(front, "REFERENCE", tmp_path / "nowhere")
    assert front.claims_in_short() is None


def test_every_figure_has_a_small_picture_on_the_front_page():
    from gradcheck.paper.figures import FIGURES

    assert set(front.FIGURES) == set(FIGURES)
    index = text_of(NBS / "index.ipynb")
    for name in FIGURES:
        path = NBS / "images" / "thumbs" / f"{name}.png"
        assert path.stat().st_size <= 25_000 and Image.open(path).size == (320, 180)
        assert f"(images/thumbs/{name}.png)](figures/{name}.ipynb)" in index


@pytest.mark.parametrize("page, folder", [(NBS / "index.ipynb", ""), (README, "nbs/")], ids=["front page", "README"])
def test_the_sampler_is_one_click_away(page, folder):
    "And that click leads to its heading, not to the top of a long page."
    label = r"\[eq\. \(1\) and `guided_steps`[^\]]*\]"
    link, = re.findall(rf"{label}\({folder}(3_guidance/[^)#]*)#The-loop\)", text_of(page))
    heart = NBS / link
    assert "## The loop" in text_of(heart)
    assert "def guided_steps(" in "\n".join(cells(heart, "code"))


def test_the_equation_is_on_the_first_screen_of_both_pages():
    for page in (NBS / "index.ipynb", README):
        equation = text_of(page).index(r"\mu' = \mu_\theta(x_t)")
        assert equation < 2000 if page == README else "## One equation" in text_of(page)[:equation]


@pytest.mark.parametrize("page", [README, *NOTEBOOKS], ids=lambda path: path.name)
def test_no_line_of_a_block_is_cut_or_folded(page):
    "GitHub shows about 92 letters of a README, JupyterLab about 84 in a text cell at 1280 px."
    blocks = re.findall(r"```\w*\n(.*?)```", text_of(page), re.S)
    longest = 92 if page == README else 84
    assert [line for block in blocks for line in block.splitlines() if len(line) > longest] == []


def test_a_small_picture_is_small_whatever_it_is_made_of(tmp_path):
    Image.effect_noise((1400, 5000), 90).save(tmp_path / "long.png")
    front.thumbnail(tmp_path / "long.png", tmp_path / "thumbs" / "long.png")
    assert Image.open(tmp_path / "thumbs" / "long.png").size == (320, 180)
