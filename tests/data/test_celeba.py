"""CelebA's reader on a small folder of painted pictures in exactly the official layout, whole and damaged."""
import json
import shutil
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import gradcheck.data.blocks as blocks
from gradcheck.data.celeba import CelebA
from gradcheck.cli import main
from gradcheck.core import UserError

ATTRIBUTES = [f"Attribute_{k}" for k in range(20)] + ["Male"] + [f"Attribute_{k}" for k in range(21, 40)]
N = 25


def value(i, k): return (i * 7 + k * 3) % 5 < 2


def paint(folder, n=N):
    "`n` pictures with their attributes and splits (3/5, 1/5, 1/5) in the official layout; returns the folder."
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{i + 1:06d}.jpg" for i in range(n)]
    for i, name in enumerate(names):
        pixels = np.full((218, 178, 3), (10 * i % 256, 128, (255 - 10 * i) % 256), np.uint8)
        pixels[:20] = pixels[-20:] = 0                                     # cut away by the central square
        Image.fromarray(pixels).save(folder / "img_align_celeba" / name, quality=95)
    lines = [str(n), " ".join(ATTRIBUTES)] + [
        f"{name} " + " ".join("1" if value(i, k) else "-1" for k in range(40)) for i, name in enumerate(names)
    ]
    (folder / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    (folder / "list_eval_partition.txt").write_text(
        "".join(f"{name} {0 if i < 3 * n // 5 else 1 if i < 4 * n // 5 else 2}\n" for i, name in enumerate(names))
    )
    return folder


@pytest.fixture
def root(tmp_path): return paint(tmp_path / "celeba")


def read(root, **kwargs): return CelebA(root, **dict(cache=root.parent / "cache") | kwargs)


def test_pictures_labels_and_official_splits(root):
    data = read(root)
    test = data.part(data.of_split("test"))
    assert (len(data), len(data.held_out), len(test)) == (15, 5, 5)
    assert sorted(data.indices) == list(range(15)) and sorted(data.held_out.indices) == list(range(15, 20))
    pictures, labels = data.batch(range(15))
    assert pictures.shape == (15, 3, 64, 64) and pictures.dtype == torch.float32
    assert labels.tolist() == [int(value(i, 20)) for i in data.indices] and data.label_names == ("not Male", "Male")
    expected = torch.tensor([[10 * i, 128, 255 - 10 * i] for i in data.indices]) / 127.5 - 1
    # no black edge
    assert (pictures.mean((2, 3)) - expected).abs().max() < 0.05 and pictures.std((2, 3)).max() < 0.05
    image, label = test[4]
    assert label == value(24, 20) and abs(image[0].mean() - (240 / 127.5 - 1)) < 0.05


def test_attributes_by_name_and_by_number(root):
    assert read(root, attribute="Attribute_3", size=32).batch([0])[0].shape == (1, 3, 32, 32)
    assert read(root, attribute=20).attribute == read(root, attribute="20").attribute == "Male"


def test_a_zip_and_windows_line_ends_are_the_same(root):
    plain = read(root).batch(range(15))
    with zipfile.ZipFile(root / "img_align_celeba.zip", "w") as z:
        for path in sorted((root / "img_align_celeba").iterdir()): z.write(path, f"img_align_celeba/{path.name}")
    shutil.rmtree(root / "img_align_celeba")
    for name in ("list_attr_celeba.txt", "list_eval_partition.txt"):
        (root / name).write_bytes((root / name).read_bytes().replace(b"\n", b"\r\n"))
    zipped = read(root, cache=root.parent / "other").batch(range(15))
    assert torch.equal(plain[0], zipped[0]) and torch.equal(plain[1], zipped[1])


def test_resized_once_and_resumed(root, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 10)
    read(root)
    made = {p: p.stat().st_mtime_ns for p in (root.parent / "cache").rglob("*.npy")}
    assert len(made) == 3
    max(made).unlink()
    # belongs to a block that is done: not needed again
    (root / "img_align_celeba" / "000001.jpg").unlink()
    data = read(root)
    after = {p: p.stat().st_mtime_ns for p in (root.parent / "cache").rglob("*.npy")}
    assert [p for p in made if after[p] != made[p]] == [max(made)]
    assert data.part(data.of_split("test")).batch([4])[0].shape == (1, 3, 64, 64)


def damage(root, what):
    pictures, attributes, partition = (
        root / "img_align_celeba",
        root / "list_attr_celeba.txt",
        root / "list_eval_partition.txt",
    )
    lines = attributes.read_text(encoding="utf-8").splitlines()
    if what == "missing picture": (pictures / "000007.jpg").unlink()
    if what == "truncated picture": (pictures / "000007.jpg").write_bytes((pictures / "000007.jpg").read_bytes()[:300])
    if what == "wrong count": attributes.write_text("\n".join(["99", *lines[1:]]))
    if what == "no count": attributes.write_text("\n".join(lines[1:]))
    if what == "short row": attributes.write_text("\n".join([*lines[:5], lines[5][:-3], *lines[6:]]))
    if what == "empty": attributes.write_text("")
    if what == "no attributes": attributes.unlink()
    if what == "no partition": partition.unlink()
    if what == "partition short": partition.write_text(partition.read_text(encoding="utf-8")[:100])
    if what == "no pictures": shutil.rmtree(pictures)
    if what == "broken zip":
        shutil.rmtree(pictures)
        (root / "img_align_celeba.zip").write_bytes(b"PK no zip")


@pytest.mark.parametrize(
    "what, message",
    [
        ("missing picture", "'000007.jpg' .* missing"),
        ("truncated picture", "'000007.jpg' is damaged"),
        ("wrong count", "announces '99' images but lists 25"),
        ("no count", "announces 'Attribute_0"),
        ("short row", "line 6 .* 40 times"),
        ("empty", "no lines"),
        ("no attributes", "no '.*list_attr_celeba.txt'; get"),
        ("no partition", "no '.*list_eval_partition.txt'; get"),
        ("partition short", "no split for"),
        ("no pictures", "neither .* get list_attr"),
        ("broken zip", "not a whole zip"),
    ],
)
def test_what_is_missing_or_damaged_is_named(root, what, message):
    damage(root, what)
    with pytest.raises(UserError, match=message): read(root)
    assert not list((root.parent / "cache").rglob("*.npy"))


def command(monkeypatch, capsys, *args):
    monkeypatch.setattr(sys, "argv", ["gradcheck", *map(str, args)])
    try:
        main()
        code = 0
    except SystemExit as e: code = e.code
    return code, capsys.readouterr().err


@pytest.mark.parametrize("what", [("ddpm",), ("classifier", "--kind", "robust")])
def test_train_on_it(what, root, tmp_path, monkeypatch, capsys):
    args = (
        "train",
        *what,
        "--dataset",
        "celeba",
        "--root",
        root,
        "--attribute",
        "Male",
        "--preset",
        "smoke",
        "--out",
        tmp_path / "out",
    )
    code, err = command(monkeypatch, capsys, *args)
    assert code == 0, err
    name = what[-1]
    card = json.loads((tmp_path / "out" / f"{name}.json").read_text(encoding="utf-8"))
    assert (
        card["classes"] == ["not Male", "Male"]
        and card["data"] == dict(attribute="Male", size=64, images=15, pictures=CelebA(root).identity["pictures"])
        and card["steps"] == 4
    )
    assert (tmp_path / "out" / "start.safetensors").is_file() == (name == "ddpm")


@pytest.mark.parametrize(
    "args, message",
    [
        (
            ("--dataset", "celeba", "--root", "/nowhere"),
            "get list_attr_celeba.txt, list_eval_partition.txt and img_align_celeba.zip",
        ),
        (("--dataset", "celeba", "--draws", "coupled"), "option of celeba 'draws'"),
        (("--attribute", "Male"), "option of sportballs 'attribute'"),
    ],
)
def test_bad_options_are_one_sentence(args, message, tmp_path, monkeypatch, capsys):
    code, err = command(monkeypatch, capsys, "train", "ddpm", "--preset", "smoke", "--out", tmp_path / "out", *args)
    assert code == 2 and message in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(attribute="Mal"), "Did you mean 'Male'"),
        (dict(attribute=40), "0 to 39"),
        (dict(split="validation"), "Did you mean 'valid'"),
    ],
)
def test_bad_choices(root, change, message):
    with pytest.raises(UserError, match=message): read(root, **change)


def test_the_identity_is_what_the_pictures_hold_and_mean(root):
    before = read(root).identity
    assert read(root, attribute="Attribute_1").identity["pictures"] != before["pictures"] == read(root).identity["pictures"]
    folder = root / "img_align_celeba"
    (folder / "000001.jpg").write_bytes((folder / "000002.jpg").read_bytes())
    after = read(root).identity
    assert {k for k in before if before[k] != after[k]} == {"pictures"}
