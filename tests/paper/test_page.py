"""The page of a results folder: nothing that lies there breaks it, no two settings stand on it, names are escaped."""
import json

import pandas as pd
import pytest
from PIL import Image

from gradcheck.core import UserError
from gradcheck.paper import saved
from gradcheck.paper.compare import made_in
from gradcheck.paper.page import write_page
from gradcheck.paper.reproduce import concluded
from gradcheck.paper.tables import as_html

RUN = dict(count=4, steps=3, seed=0, T=400)
CLAIMS = pd.DataFrame([
    dict(claim="A < B & \"C\" costs $5", where="abstract", statistic="difference of <b>", unit="", verdict="holds"),
    dict(claim="x̂₀ tells more", where="Figure 3", statistic="difference", unit="FID (judge)", verdict="undecided"),
]).assign(effect=0.3, low=0.2, high=0.4, beside="", kind="similarity")


def plant(folder, figure, **changes):
    "A figure as `OpenFigure.save` leaves it: a sidecar, a small picture, numbers."
    sidecar = dict(
        figure=figure,
        caption="The caption of x̂₀ – " + figure,
        source="ours",
        protocol="not known",
        parameters=dict(preset="smoke", seed=0),
        runs={"a": RUN},
        seconds=1.0,
        revision="0" * 40,
        libraries=dict(gradcheck="0.1.0", torch="2.13.0"),
        device="cpu",
        python="3.11",
    )
    (folder / f"{figure}.json").write_text(json.dumps(sidecar | changes), encoding="utf-8")
    Image.new("RGB", (8, 4), "red").save(folder / f"{figure}.png")
    CLAIMS.to_csv(folder / f"{figure}.csv", index=False, encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    for figure in ("figure_1", "figure_2", "figure_3", "claims"): plant(tmp_path, figure)
    return tmp_path


def page_of(folder, *asked):
    "(text, sentences): the page as it is written, and what was left out."
    said = []
    return write_page(folder, said.append, *asked).read_text(encoding="utf-8"), said


def test_a_whole_folder_is_shown_whole_with_the_claims_first(folder):
    text, said = page_of(folder)
    assert said == [] and "Left out" not in text and text.count("<img") == 4
    order = ("Do the paper", 'id="claims"', "x̂₀ tells more", "What is not known", 'id="figure_1"', 'id="figure_3"')
    assert sorted(order, key=text.index) == list(order)
    assert "1 holds" in text and "0 does not hold" in text and "1 undecided" in text


def test_names_are_escaped_and_utf8_is_said_and_kept(folder):
    own = dict(preset="smoke", denoiser="<i>$x$ \"o'clock\".safetensors", classifier="ä" * 5000)
    for figure in ("figure_1", "figure_2", "figure_3", "claims"): plant(folder, figure, parameters=own)
    text, said = page_of(folder)
    assert said == [] and '<meta charset="utf-8">' in text[:200]
    assert "<i>$x$" not in text and "&lt;i&gt;$x$ &#34;o&#39;clock&#34;" in text and "ä" * 5000 in text
    assert "A &lt; B &amp; &#34;C&#34; costs $5" in text and "difference of &lt;b&gt;" in text
    assert "x̂₀ – figure_1" in text and "\ufffd" not in text and "Ã" not in text


def test_an_included_stylesheet_is_css_and_no_text(folder):
    text, _ = page_of(folder)
    style = text[text.index("<style>"):text.index("</style>")]
    assert 'content: "\\2713\\00a0"' in style and "&#34;" not in style and "{%" not in text and "{{" not in text


def empty(path): path.write_bytes(b"")
def torn(path): path.write_bytes(path.read_bytes()[:len(path.read_bytes()) // 2])
def foreign(path): path.write_bytes(b"[1, 2, 3]")
def no_utf8(path): path.write_bytes(b"\xff\xfe\x00\x80" + path.read_bytes())
def folder_in_its_place(path):
    path.unlink()
    path.mkdir()


def nested(path): path.write_bytes(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
def another_kind(path): path.write_bytes(b"null")
def huge(path):
    with open(path, "wb") as file: file.truncate(10**10)


DAMAGE = (empty, torn, foreign, no_utf8, folder_in_its_place, nested, another_kind, huge)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("suffix", ["json", "png"])
def test_a_damaged_file_beside_a_figure_is_named_and_the_others_stay(folder, suffix, damage):
    damage(folder / f"figure_2.{suffix}")
    text, said = page_of(folder)
    assert len(said) == 1 and "figure_2" in said[0] and "make figure_2 again" in said[0]
    assert 'id="figure_2"' not in text and 'id="left-out"' in text
    assert all(f'id="{figure}"' in text for figure in ("figure_1", "figure_3", "claims"))


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_claims_are_named_and_the_figures_stay(folder, damage):
    damage(folder / "claims.csv")
    text, said = page_of(folder)
    assert len(said) == 1 and "claims" in said[0] and "Do the paper's claims hold?</h2>" not in text
    assert 'id="figure_1"' in text and 'id="claims"' in text


def test_a_sidecar_of_another_figure_and_one_with_other_types(folder):
    (folder / "figure_1.json").write_bytes((folder / "figure_2.json").read_bytes())
    plant(folder, "figure_3", runs={"a": "b"}, libraries=None)
    text, said = page_of(folder)
    assert len(said) == 2 and "is of 'figure_2'" in said[0] and "libraries" in said[1]


@pytest.mark.parametrize("other", [dict(setting=dict(target=2)), dict(parameters=dict(preset="smoke", seed=1))])
def test_two_settings_never_stand_on_one_page(folder, other):
    plant(folder, "figure_2", **other)
    text, said = page_of(folder)
    assert len(said) == 1 and "another setting" in said[0] and 'id="figure_2"' not in text and 'id="figure_1"' in text
    plant(folder, "claims", **other)
    text, said = page_of(folder)
    assert "Do the paper's claims hold?</h2>" not in text and len(said) == 2


def named(classifier, start="s"):
    "A figure's own words on its models: all of its preset, and those of its runs."
    run = RUN | dict(denoiser="d", classifier="mine.py:make", stabilizer="mine.py:S", start="matched")
    return dict(models={"mine.py:make": classifier * 16},
                runs={"a": run | dict(digests=dict(classifier=classifier * 64, start=start * 64))})


def test_figures_by_other_models_never_stand_on_one_page_and_those_asked_for_stay(folder):
    for figure in ("figure_1", "figure_2", "claims"): plant(folder, figure, **named("a"))
    plant(folder, "figure_3", **named("b"))                                    # made last, after an edit of mine.py
    text, said = page_of(folder)
    differ = "mine.py:make: {0}, not {1}".format("b" * 12, "a" * 12)
    assert said == [f"left out of the page: figure_3: it was made by other models ({differ})."]
    assert 'id="figure_3"' not in text and 'id="figure_1"' in text
    text, said = page_of(folder, ["figure_3"])
    assert len(said) == 3 and all("by other models" in sentence for sentence in said)
    assert 'id="figure_3"' in text and 'id="figure_1"' not in text and "Do the paper's claims hold?</h2>" not in text


@pytest.mark.parametrize("role, name", [("start", "the start of d"), ("stabilizer", "mine.py:S")])
def test_each_role_of_a_run_tells_models_apart(folder, role, name):
    for figure, digest in (("figure_1", "a"), ("figure_2", "b")):
        known = named("c")
        known["runs"]["a"]["digests"][role] = digest * 64
        plant(folder, figure, **known)
    _, said = page_of(folder, ["figure_2"])
    assert len(said) == 1 and f"figure_1: it was made by other models ({name}: {'a' * 12}, not {'b' * 12})" in said[0]


def test_a_sidecar_that_lacks_a_digest_is_shown_beside_one_that_has_it(folder):
    plant(folder, "figure_2", **named("a"), data={"pictures": "e" * 16})
    assert page_of(folder)[1] == []


def test_the_page_follows_the_setting_that_was_asked_for(folder):
    plant(folder, "figure_2", setting=dict(target=2))
    text, said = page_of(folder, ["figure_2"])
    assert len(said) == 3 and 'id="figure_2"' in text and 'id="figure_1"' not in text
    page = concluded(["figure_2"], folder, dict(target=2), folder / "no reference", in_place=False, report=said.append)
    assert page.read_text(encoding="utf-8") == text and len(said) == 7            # as `gradcheck reproduce` ends


def test_a_table_that_this_project_wrote_is_shown_and_no_other(folder):
    (folder / "figure_1.html").write_text(as_html(["a<b"], [["1"], ["2"]], {(1, 0)}), encoding="utf-8")
    text, said = page_of(folder)
    assert said == [] and "<th>a&lt;b</th>" in text and "<td><b>2</b></td>" in text
    for foreign in ("<p>hello", "<table><script>alert(1)</script></table>", "<table>"):
        (folder / "figure_1.html").write_text(foreign, encoding="utf-8")
        text, said = page_of(folder)
        assert len(said) == 1 and "no table" in said[0] and "alert" not in text


ODD = ("a $x$ _ ^ \\", "<b>&\"'", "line\nfeed\t", "n" * 5000, "😀 ⚽", "كرة", "", "\ud800")


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_odd_names_anywhere_in_a_sidecar(folder, name):
    for figure in ("figure_1", "figure_2", "figure_3", "claims"):
        runs = {name: RUN | dict(classifier=name), name + "2": RUN}
        own = dict(preset="smoke", denoiser=name or "x", classifier=name)
        plant(folder, figure, parameters=own, runs=runs, caption=name, libraries={"torch": name, "gradcheck": name})
    text, said = page_of(folder)
    assert said == [] and text.count("<figure") == 4 and '<b>&"' not in text


@pytest.mark.parametrize(
    "fields",
    [
        dict(parameters=dict(preset=["smoke"], seed={"a": 1})),
        dict(runs={"a": RUN | dict(digests=[1])}),
        dict(runs={"a": RUN | dict(T=None)}),
        dict(runs={"a": RUN | dict(count=10**300)}),
        dict(python=None, device=[], cpu={}),
        dict(setting=dict(preset=1, target=[2])),
        dict(seconds=1e999),
    ],
    ids=str,
)
def test_a_sidecar_that_parses_and_is_odd_does_not_break_the_page(folder, fields):
    plant(folder, "figure_2", **fields)
    text, said = page_of(folder)
    assert len(said) <= 1 and (not said or "figure_2" in said[0])
    assert all(f'id="{figure}"' in text for figure in ("figure_1", "figure_3", "claims"))


def test_a_sidecar_nested_as_deep_as_a_parser_follows(folder):
    path = folder / "figure_2.json"
    known = path.read_text(encoding="utf-8").rstrip().removesuffix("}")
    for depth in (100, 300, 900):
        path.write_text(f'{known}, "more": {"[" * depth}{"]" * depth}}}', encoding="utf-8")
        text, said = page_of(folder)
        assert 'id="figure_1"' in text and (not said or "figure_2" in said[0])


def test_a_picture_of_many_pixels_is_left_out(folder):
    Image.new("1", (20_000, 20_000)).save(folder / "figure_2.png")
    text, said = page_of(folder)
    assert len(said) == 1 and "no picture" in said[0] and 'id="figure_2"' not in text


@pytest.mark.parametrize("column", ["effect", "low", "verdict"])
def test_words_where_claims_have_numbers(folder, column):
    CLAIMS.assign(**{column: ["a word", ""]}).to_csv(folder / "claims.csv", index=False)
    text, said = page_of(folder)
    assert len(said) == 1 and "claims.csv" in said[0] and 'id="figure_1"' in text


def test_an_empty_folder_has_a_page_too(tmp_path):
    text, said = page_of(tmp_path)
    assert said == [] and "<figure" not in text and "What is not known" in text


def test_a_figure_that_was_killed_while_it_was_written_anew_is_not_taken_for_whole(folder, monkeypatch):
    "Its picture may be new and its numbers old, so it has no sidecar."
    for suffix in ("html", "md", "tex", "pdf"): (folder / f"figure_1.{suffix}").write_text("old")
    def kill(*of): raise KeyboardInterrupt
    monkeypatch.setattr(saved, "figure_bytes", kill)
    with pytest.raises(KeyboardInterrupt): saved.write_figure(folder / "figure_1", None, CLAIMS, {}, 90)
    assert {p.suffix for p in folder.glob("figure_1.*")} == {".png", ".csv", ".pdf"}
    text, said = page_of(folder)
    assert 'id="figure_1"' not in text and len(said) == 1 and said[0].endswith("is missing; make figure_1 again.")
    with pytest.raises(UserError, match="is missing; make figure_1 again"): made_in(folder)
