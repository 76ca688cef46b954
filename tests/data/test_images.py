"""Folders as people have them, prepared pictures that are verified, and classes that are mixed."""
import errno
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import gradcheck.data.blocks as blocks
from gradcheck.core import UserError
from gradcheck.data.images import ImageFolder, held_out, mixed_order
from gradcheck.data.sources import get_dataset, open_data

COLORS = dict(a=(250, 0, 0), b=(0, 0, 250), c=(0, 250, 0))


@pytest.fixture
def root(tmp_path):
    for name in "ab":
        (tmp_path / "root" / name).mkdir(parents=True)
        for k in range(12): Image.new("RGB", (9, 8), COLORS[name]).save(tmp_path / "root" / name / f"{k}.png")
    return tmp_path / "root"


def prepared(root): return sorted((root.parent / "cache").rglob("*.npy"))


def pixels(root): return ImageFolder(root, 8).batch(range(15))[0]


def test_every_prefix_holds_the_classes_in_proportion():
    targets, names = np.repeat([0, 1, 2], [500, 500, 100]), [f"{k}.png" for k in range(1100)]
    mixed = targets[mixed_order(targets, names)]
    for n in (11, 22, 110, 600):
        assert np.abs(np.bincount(mixed[:n], minlength=3) - n * np.array([5, 5, 1]) / 11).max() <= 1
    assert (mixed_order(targets, names) == mixed_order(targets, names)).all()


def test_a_sorted_folder_is_mixed(root):
    data = ImageFolder(root, 8)
    assert set(data.batch([0, 1])[1].tolist()) == set(data.held_out.batch([0, 1])[1].tolist()) == {0, 1}
    every, labels = data.batch(range(len(data)))
    assert torch.equal(every[:, 2, 0, 0] > 0, labels == 1)


@pytest.mark.parametrize("counts", [(2, 2), (3, 50), (2, 2, 2), (40, 5)])
def test_of_each_class_some_are_held_out_and_not_all(counts):
    for salt in range(20):
        targets = np.repeat(range(len(counts)), counts)
        held = held_out(targets, [f"{salt}-{k}" for k in range(len(targets))])
        for c in range(len(counts)): assert 0 < held[targets == c].sum() < counts[c]


@pytest.mark.parametrize("damage", [
    lambda data: b"",
    lambda data: data[:200],
    lambda data: data[:-1],
    lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
    lambda data: b"\0" * len(data)])
def test_damaged_prepared_pictures_are_made_again(root, damage):
    before, (path,) = pixels(root), prepared(root)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert torch.equal(pixels(root), before) and path.read_bytes() == whole


@pytest.mark.parametrize("note", [b"", b"[]", b"null", b"{", b"[" * 100_000, b"\xff"])
def test_a_damaged_note_is_no_note(root, note):
    before, (path,) = pixels(root), prepared(root)
    path.with_suffix(".json").write_bytes(note)
    assert torch.equal(pixels(root), before)


def test_pictures_replaced_under_the_same_names_are_prepared_anew(root):
    before = pixels(root)
    for k in range(12):
        path = root / "a" / f"{k}.png"
        stat = path.stat()
        Image.new("RGB", (9, 8), COLORS["c"]).save(path)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert not torch.equal(pixels(root), before) and len(prepared(root)) == 1


def test_touched_pictures_are_not_prepared_anew(root, monkeypatch):
    before = pixels(root)
    for path in root.rglob("*.png"): os.utime(path, (1, 1))
    monkeypatch.setattr(blocks, "square", None)
    assert torch.equal(pixels(root), before)


def test_a_disk_that_damages_what_is_written_is_no_loop(root, monkeypatch):
    write = blocks.write_bytes
    monkeypatch.setattr(
        blocks, "write_bytes", lambda path, data: write(path, bytes(data)[:-1] if path.suffix == ".npy" else data)
    )
    with pytest.raises(UserError, match="damaged as soon as"): pixels(root)


def test_what_is_no_picture_is_passed_over(root):
    before = len(ImageFolder(root, 8).files)
    (root / "a" / "dangling.png").symlink_to("/nowhere.png")
    (root / "a" / "._0.png").write_bytes(b"resource fork")
    (root / "a" / "folder.png").mkdir()
    for name in ("Thumbs.db", "notes.txt", "page.pdf"): (root / "a" / name).write_bytes(b"no picture")
    assert len(ImageFolder(root, 8).files) == before


def test_a_name_of_odd_bytes(root):
    shutil.copy(root / "a" / "0.png", os.fsencode(root / "a") + b"/\xe9t\xe9.png")
    assert len(ImageFolder(root, 8).files) == 25
    os.rename(root / "b", os.fsencode(root) + b"/b\xe9")
    ImageFolder(root, 8).label_names[1].encode("utf-8")


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_a_damaged_picture_is_named(root, data):
    (root / "b" / "3.png").write_bytes(data)
    with pytest.raises(UserError, match="3.png' is damaged"): ImageFolder(root, 8)


def test_a_picture_that_may_no_longer_be_read_is_named(root, monkeypatch):
    "Tests may run as root, who may read all."
    pixels(root)
    read, closed = blocks.Files.data, os.path.join("b", "3.png")
    os.utime(root / closed, (1, 1))

    def data(self, file):
        if str(file).endswith(closed): raise PermissionError(errno.EACCES, "Permission denied", file)
        return read(self, file)

    monkeypatch.setattr(blocks.Files, "data", data)
    with pytest.raises(UserError, match="3.png' is damaged"): ImageFolder(root, 8)


@pytest.mark.parametrize("keep, message", [(0, "holds no pictures"), (1, "needs two")])
def test_too_few_pictures_are_refused_at_the_start(root, keep, message):
    for path in sorted((root / "b").iterdir())[keep:]: path.unlink()
    with pytest.raises(UserError, match=message): ImageFolder(root, 8)


def test_large_pictures_lie_in_smaller_blocks(root, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 8)
    small, large = ImageFolder(root, 64), ImageFolder(root, 128)
    assert (len(small.blocks), len(large.blocks)) == (3, 12)
    assert torch.equal(small.batch(range(20))[1], large.batch(range(20))[1])
    assert torch.equal(small.batch([7])[0].mean((2, 3)), large.batch([7])[0].mean((2, 3)))


def test_a_data_set_without_its_folder_is_a_sentence():
    with pytest.raises(UserError, match="--root"): get_dataset("folder")


def test_a_folder_of_the_project_is_found_from_a_folder_below(root, monkeypatch):
    (root.parent / "nbs" / "figures").mkdir(parents=True)
    (root.parent / "settings.ini").write_text("", encoding="utf-8")
    monkeypatch.chdir(root.parent / "nbs" / "figures")
    monkeypatch.delenv("GRADCHECK_CACHE")
    open_data("root", 8).batch([0])
    assert (root.parent / "data" / "cache").is_dir() and not (root.parent / "nbs" / "figures" / "data").exists()


def test_the_identity_of_a_folder_is_what_its_files_hold_wherever_they_lie(root):
    before, elsewhere = ImageFolder(root, 8), root.parent / "elsewhere"
    shutil.copytree(root, elsewhere)
    assert ImageFolder(elsewhere, 8).identity == before.identity                  # other times, the same pictures
    for name, other in (("a", "b"), ("b", "a")): os.replace(elsewhere / name / "3.png", root.parent / f"{other}.png")
    for name in "ab": os.replace(root.parent / f"{name}.png", elsewhere / name / "3.png")
    swapped = ImageFolder(elsewhere, 8)
    assert {k for k, v in swapped.identity.items() if v != before.identity[k]} == {"pictures"}
    assert before.held_out.identity["pictures"] != before.identity["pictures"]
    assert swapped.part([]).identity["images"] == 0
