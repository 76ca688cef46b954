"""The explorer with other people's models: grey pictures, odd names, a full disk, and what it refuses at once."""

import errno
import html
import re
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import own_models

from gradcheck.app.animation import Storyboard, shared_palette, with_palette
from gradcheck.app.controls import told_apart
from gradcheck.app.display import screen
from gradcheck.app.explorer import Explorer, explore
from gradcheck.app.trajectories import EMPTY, LONGEST, before, code_of, in_colour, record, shown, words
from gradcheck.core import UserError
from gradcheck.runs.specs import RunSpec

ODD = ["a < b & 'c'", '"quoted" <script>alert(1)</script>', "costs $5 or $6_x", "two\nlines", "x" * 5000, ""]


def press(explorer, button):
    "What the explorer says once a button's work is done."
    explorer.buttons[button].click()
    explorer.worker.wait()
    return html.unescape(re.sub("<[^>]*>", "", explorer.status.value))


def small(explorer):
    explorer.shared["steps"].value = 2
    explorer.shared["count"].value = 2
    return explorer


def test_grey_pictures_of_28_pixels_are_explored_and_kept(tmp_path, monkeypatch):
    e = small(explore(**own_models(tmp_path, channels=1, size=28), out=tmp_path / "out"))
    assert "Done after 2 of 2" in press(e, "Sample")
    frame = e.screen.trajectories["B"].frames[0]
    assert frame.x_t.shape == (2, 1, 28, 28)
    assert e.screen.pictures.value.count("<img") == 9 + 4
    assert "Saved" in press(e, "Save")
    folder, = (tmp_path / "out").iterdir()
    assert {"run.safetensors", "run.json", "film.gif"} <= {path.name for path in folder.iterdir()}
    monkeypatch.chdir(tmp_path)
    exec(compile(code_of(e.specs()), "explorer", "exec"), {})
    assert Image.open("explorer_B.png").mode == "RGB"


@pytest.mark.parametrize("channels", [2, 4])
def test_what_is_no_picture_is_refused_at_the_start(tmp_path, channels):
    refusal = explore(**own_models(tmp_path, channels), out=tmp_path / "out").value
    assert "pictures of 1 or 3 channels" in refusal


def test_grey_is_shown_as_grey():
    grey = torch.arange(2 * 4, dtype=torch.uint8).reshape(2, 1, 2, 2)
    pictures = in_colour(grey)
    assert pictures.shape == (2, 2, 2, 3)
    assert (pictures == pictures[..., :1]).all()
    assert (pictures[..., 0] == grey[:, 0].numpy()).all()


@pytest.mark.parametrize("name", ODD)
def test_a_name_takes_one_line(name):
    line = shown(name)
    assert len(line) <= LONGEST
    assert line.isprintable()


def test_names_in_a_menu_are_told_apart():
    names = [*ODD, "x" * 5000 + "y", "\n", "cat"]
    labels = told_apart(names)
    assert len(set(labels)) == len(names)
    assert labels[0] == ODD[0]
    assert labels[-1] == "cat"


def test_odd_names_of_classes_in_menus_on_the_screen_and_in_films(tmp_path):
    e = small(explore(**own_models(tmp_path, names=ODD), out=tmp_path / "out"))
    menu = e.settings["A"].target
    assert [value for _, value in menu.options] == list(range(len(ODD)))
    for target in range(len(ODD)):
        menu.value = target
        assert "Done after 2 of 2" in press(e, "Sample")
        assert "<script" not in e.screen.pictures.value
        ET.fromstring("<div>" + re.sub("<img[^>]*>", "", e.screen.pictures.value) + "</div>")
        spec = e.screen.trajectories["A"].spec
        assert spec.target == target
        assert len(words(spec)) < 300
        assert Storyboard(e.screen.trajectories).at(1).shape[2] == 3


def test_a_dollar_in_a_name_begins_no_formula(tmp_path):
    models = own_models(tmp_path, names=["$\\frac{$", "$x^{2$"])
    spec = RunSpec(**models, judge=None, start="standard", steps=2, count=1, scale=0.0, where="x_t")
    *_, trajectories = record({"A": spec})
    assert Storyboard(trajectories).at(0).ndim == 3


def test_a_long_path_does_not_hide_the_name(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from gradcheck.guidance.stabilizers import Stabilizer\nclass Mine(Stabilizer): pass\n", encoding="utf-8"
    )
    long = tmp_path / ("x" * 60)
    long.mkdir()
    (long / "mine.py").write_bytes((tmp_path / "mine.py").read_bytes())
    assert "mine.py:Mine" in words(RunSpec(stabilizer=f"{long / 'mine.py'}:Mine"))


def test_stabilizers_of_one_name_are_told_apart(tmp_path):
    e = explore(stabilizers=("a.py:Mine", "b.py:Mine"), out=tmp_path)
    labels = [label for label, _ in e.settings["A"].stabilizer.options]
    assert len(set(labels)) == len(labels)


def test_a_full_disk_is_told_and_what_was_written_stays(tmp_path, monkeypatch):
    e = small(explore(out=tmp_path / "out"))
    press(e, "Sample")
    written = []

    def fsync(handle):
        written.append(handle)
        if len(written) > 2: raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gradcheck.base.os.fsync", fsync)
    said = press(e, "Save")
    assert "the disk is full" in said
    assert "step_2.png" in said
    folder, = (tmp_path / "out").iterdir()
    assert {path.name for path in folder.iterdir()} == {"run.safetensors", "run.json"}
    assert not e.buttons["Save"].disabled
    monkeypatch.undo()
    assert said != press(e, "Save")
    assert len(list(folder.iterdir())) == 4


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    e = small(explore(out=tmp_path / "file"))
    press(e, "Sample")
    assert "cannot write" in press(e, "Save")


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(preset="lapdog"), "lapdog"),
        (dict(denoiser="nowhere", classifier="laptop/robust"), "nowhere"),
        (dict(classifier="laptop/robust"), "both a denoiser and a classifier"),
        (dict(device="tpu"), "tpu"),
        (dict(denoiser="laptop/ddpm", classifier="nowhere.py:make"), "nowhere.py"),
        (dict(stabilizers="mine.py:Mine"), "give a list of names"),
        (dict(stabilizers=None), "give a list of names"),
        (dict(stabilizers=[int]), "give a list of names"),
    ],
)
def test_what_cannot_start_says_why_in_its_place(wrong, said):
    refusal = explore(**wrong).value
    assert "The explorer cannot start" in refusal
    assert said in refusal


def test_a_refusal_is_text():
    refusal = explore(denoiser="<img src=x onerror=alert(1)>", classifier="laptop/robust").value
    assert "<img" not in refusal


@pytest.mark.parametrize("field, value", [("scale", -1.0), ("scale", float("nan"))])
def test_numbers_that_are_none_are_told_on_the_page(tmp_path, field, value):
    e = small(explore(out=tmp_path))
    getattr(e.settings["A"], field).value = value
    said = press(e, "Sample")
    assert "scale" in said
    assert "Traceback" not in said


def test_a_seed_that_is_none_is_told_on_the_page(tmp_path):
    e = small(explore(out=tmp_path))
    e.shared["seed"].value = -1
    assert "seed" in press(e, "Sample")


@pytest.mark.parametrize("energy", [0.0, -3.0, 1e308])
def test_equal_energy_of_any_wish_leaves_a_number(tmp_path, energy):
    e = small(explore(out=tmp_path))
    press(e, "Sample")
    e.shared["energy"].value = energy
    e.buttons["Equal energy"].click()
    assert all(np.isfinite(controls.scale.value) for controls in e.settings.values())


def test_zero_stays_white_in_a_film():
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(3)]
    for picture in noise: picture[:10, :10] = EMPTY
    for picture in with_palette(noise, 128):
        zero = np.asarray(picture.convert("RGB"))[:10, :10].astype(int)
        assert np.abs(zero - EMPTY).max() <= 2
    assert len(shared_palette(noise, 128).getpalette()) <= 3 * 128


def test_one_step_is_a_film_too(tmp_path):
    spec = RunSpec(where="x_t", scale=0.0, steps=1, count=1)
    *_, trajectories = record({"A": spec})
    assert Storyboard(trajectories).at(0).ndim == 3
    assert screen(trajectories, before(spec), 0, 0).count("<img") == 3 + 1


def test_an_explorer_made_by_hand_raises(monkeypatch):
    from gradcheck.paper.settings import preset_for

    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)             # of a test before
    with pytest.raises(UserError, match="no weights"):
        Explorer(preset_for("laptop", denoiser="nowhere", classifier="laptop/robust"))
    assert "ipykernel" not in sys.modules
