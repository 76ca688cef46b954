"""Pictures, folders and CelebA as people have them: whichever layout, whichever order, and large."""
import csv
import io
import os
import shutil
import subprocess
import sys
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from test_celeba import N, paint

import gradcheck.data.blocks as blocks
from gradcheck.core import UserError
from gradcheck.data.celeba import CelebA
from gradcheck.data.images import ImageData, ImageFolder, Mixed, as_mixed
from gradcheck.data.sources import open_data, own_data
from gradcheck.data.sportballs import SportBalls, load_sprites
from gradcheck.pictures import image_grid, images_to_uint8, png, save_png, square

# --- CelebA ------------------------------------------------------------------------------------------


def as_csv(root, quoting=csv.QUOTE_MINIMAL):
    "The lists as the copy that most people have writes them: a line of names, no count, commas."
    attributes, partition = root / "list_attr_celeba.txt", root / "list_eval_partition.txt"
    lines = [line.split() for line in attributes.read_text(encoding="utf-8").splitlines()[1:]]
    splits = [line.split() for line in partition.read_text(encoding="utf-8").splitlines()]
    tables = {attributes: [["image_id", *lines[0]], *lines[1:]], partition: [["image_id", "partition"], *splits]}
    for path, rows in tables.items():
        with open(path.with_suffix(".csv"), "w", encoding="utf-8", newline="") as f:
            csv.writer(f, quoting=quoting).writerows(rows)
        path.unlink()


def as_quoted_csv(root): as_csv(root, csv.QUOTE_ALL)


def as_nested(root):
    (root / "img_align_celeba").rename(root / "inner")
    (root / "img_align_celeba").mkdir()
    (root / "inner").rename(root / "img_align_celeba" / "img_align_celeba")


def as_official(root):
    for folder in ("Anno", "Eval", "Img"): (root / folder).mkdir()
    (root / "list_attr_celeba.txt").rename(root / "Anno" / "list_attr_celeba.txt")
    (root / "list_eval_partition.txt").rename(root / "Eval" / "list_eval_partition.txt")
    (root / "img_align_celeba").rename(root / "Img" / "img_align_celeba")


def as_official_zip(root):
    as_official(root)
    with zipfile.ZipFile(root / "Img" / "img_align_celeba.zip", "w") as z:
        for path in (root / "Img" / "img_align_celeba").iterdir(): z.write(path, f"img_align_celeba/{path.name}")
    shutil.rmtree(root / "Img" / "img_align_celeba")


def as_kaggle(root):
    as_csv(root)
    as_nested(root)


def as_byte_order_mark(root):
    as_csv(root)
    for path in root.glob("*.csv"): path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def as_folder_in_folder(root):
    (root / "celeba").mkdir()
    for path in list(root.iterdir()):
        if path.name != "celeba": path.rename(root / "celeba" / path.name)


LAYOUTS = (as_csv, as_quoted_csv, as_nested, as_official, as_official_zip, as_kaggle, as_byte_order_mark,
           as_folder_in_folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_celeba_in_any_layout_is_the_same_data(layout, tmp_path):
    plain = CelebA(paint(tmp_path / "plain"), cache=tmp_path / "a").batch(range(15))
    layout(paint(tmp_path / "other"))
    data = CelebA(tmp_path / "other", cache=tmp_path / "b")
    other = data.batch(range(15))
    assert torch.equal(plain[0], other[0]) and torch.equal(plain[1], other[1])
    assert data.label_names == ("not Male", "Male") and len(data.split_of) == N


def by_attribute(folder):
    "The attribute, and the order of the lines: all with it, then all without."
    path = folder / "list_attr_celeba.txt"
    head, names, *rows = path.read_text(encoding="utf-8").splitlines()
    rows.sort(key=lambda row: row.split()[21] == "-1")
    path.write_text("\n".join([head, names, *rows]) + "\n", encoding="utf-8")


def test_the_first_n_of_a_sorted_celeba_hold_both(tmp_path):
    by_attribute(paint(tmp_path / "celeba", 60))
    data = CelebA(tmp_path / "celeba", cache=tmp_path / "cache", size=8)
    for part in (data, data.held_out):
        labels, n = part.batch(range(len(part)))[1].float(), len(part) // 2
        listed = part.targets[np.sort(part.indices)]
        assert listed[:n].mean() > listed.mean() + 0.2                   # as the list has them
        assert abs(labels[:n].sum() - labels.mean() * n) <= 1


# --- data sets of yours --------------------------------------------------------------------------------

SORTED = """
import torch
from gradcheck.data.images import ImageData
class Sorted(ImageData):
    indices, canvas, label_names, identity = range(400), 8, ("a", "b"), {"mine": 1}
    def batch(self, i):
        labels = torch.tensor([int(self.indices[k] % 400 >= 200) for k in i])
        return labels[:, None, None, None].expand(-1, 3, 8, 8).float(), labels
    @property
    def held_out(self): return self.part(range(400, 800))
def make(): return Sorted()
"""


def test_the_first_n_of_a_data_set_of_yours_hold_both(tmp_path):
    (tmp_path / "mine.py").write_text(SORTED, encoding="utf-8")
    data = open_data(f"{tmp_path / 'mine.py'}:make", 8)
    for part in (data, data.held_out):
        images, labels = part.batch(range(100))
        assert 30 < labels.sum() < 70 and torch.equal(images[:, 0, 0, 0].long(), labels)
        assert sorted(int(k) for k in part.indices) == list(range(400))
    code = data.identity["code"]
    told = dict(mine=1, code=code)
    assert (data.canvas, data.label_names, data.identity, len(data)) == (8, ("a", "b"), told, 400)
    (tmp_path / "mine.py").write_text(SORTED + "A = 1\n", encoding="utf-8")
    assert own_data(f"{tmp_path / 'mine.py'}:make").identity["code"] != code
    assert isinstance(data, ImageData) and data[3][1] == data.batch([3])[1][0]
    assert torch.equal(data.part(data.indices[:5]).batch(range(5))[1], data.batch(range(5))[1])


def test_what_is_mixed_already_stays_as_it_is():
    data = SportBalls()
    assert as_mixed(data) is data and not isinstance(open_data("sportballs"), Mixed)


# --- folders ---------------------------------------------------------------------------------------------

@pytest.fixture
def root(tmp_path):
    for k, name in enumerate("ab"):
        (tmp_path / "root" / name).mkdir(parents=True)
        for i in range(12): Image.new("RGB", (9, 8), (200 * k, 9, i)).save(tmp_path / "root" / name / f"{i:02d}.png")
    return tmp_path / "root"


def test_damaged_pictures_are_counted_and_the_first_are_named(root):
    for name in ("a/03.png", "a/05.png", "b/01.png", "b/07.png", "b/09.png"):
        (root / name).write_bytes((root / name).read_bytes()[:40])
    with pytest.raises(UserError, match="5 pictures are damaged .*03.png', .*05.png', .*b/01.png' and 2 more; replace"):
        ImageFolder(root, 8)
    for name in ("a/05.png", "b/01.png", "b/07.png", "b/09.png"): (root / name).unlink()
    with pytest.raises(UserError, match="the picture '.*03.png' is damaged or too large; replace or remove it"):
        ImageFolder(root, 8)


def test_damage_in_several_blocks_is_found_in_one_look(root, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 5)
    for name in ("a/00.png", "b/11.png"): (root / name).write_bytes(b"")
    with pytest.raises(UserError, match="2 pictures are damaged"): ImageFolder(root, 8)


def test_what_is_passed_over_is_counted_in_a_sentence(root, capsys):
    ImageFolder(root, 8)
    assert "passed over" not in capsys.readouterr().err
    (root / "a" / "deeper").mkdir()
    (root / "a" / "z.heif-not").write_bytes(b"")
    (root / "a" / ".hidden").write_bytes(b"")
    (root / "b" / "gone.png").symlink_to("/nowhere.png")
    (root / "readme.txt").write_text("about", encoding="utf-8")
    assert len(ImageFolder(root, 8).files) == 24
    said = [line for line in capsys.readouterr().err.splitlines() if "passed over" in line]
    assert len(said) == 1 and said[0].startswith("gradcheck: 4 of what lies in") and "'" in said[0]


@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_a_block_takes_as_much_memory_whatever_the_size(size):
    made = blocks.Blocks(None, ["x"] * 100_000, size, None)
    assert 60e6 < made.length * size**2 * 3 < 130e6


def test_pictures_of_256_are_read_from_the_disk(root, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 64)
    data = ImageFolder(root, 256)
    assert len(data.blocks) == 6 and isinstance(data.blocks[0], np.memmap)
    data.batch([0])
    tracemalloc.start()
    for i in range(len(data)): data.batch([i])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 256**2 * 3                                # bytes of half of the pictures


def test_few_blocks_are_open_together(root, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 2)
    monkeypatch.setattr(blocks, "OPEN", 3)
    data = ImageFolder(root, 8)
    first = data.batch(range(len(data)))[0]
    assert len(data.blocks) == 12 and len(data.blocks.maps) == 3
    monkeypatch.setattr(blocks, "is_whole", None)                # each was verified once
    assert torch.equal(data.batch(range(len(data)))[0], first)


# --- pictures ------------------------------------------------------------------------------------------

def damaged_tiffs():
    "TIFF files that make Pillow, its log, and libtiff speak."
    random = np.random.default_rng(1)
    noise = Image.fromarray(random.integers(0, 255, (40, 50, 3), np.uint8))
    for compression in (None, "tiff_lzw", "jpeg", "tiff_deflate"):
        buffer = io.BytesIO()
        noise.save(buffer, "TIFF", **({"compression": compression} if compression else {}))
        for _ in range(40):
            data = bytearray(buffer.getvalue())
            for at in random.integers(max(0, len(data) - 300), len(data), 3): data[at] ^= 1 << random.integers(8)
            yield bytes(data)


READ = """
import sys
sys.path.insert(0, sys.argv[1])
from test_layouts import damaged_tiffs
from gradcheck.pictures import square
for data in damaged_tiffs():
    try: square(data, 8)
    except OSError: pass
print("all read")
"""


def test_what_readers_say_of_a_damaged_picture_does_not_reach_the_terminal():
    paths = os.pathsep.join([os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__)), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", READ, os.path.dirname(__file__)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert (done.stdout, done.stderr, done.returncode) == ("all read\n", "", 0)


def test_warnings_are_heard_again_afterwards(capfd):
    for data in list(damaged_tiffs())[:3]:
        with pytest.raises(OSError): square(b"", 8)
        try: square(data, 8)
        except OSError: pass
    with pytest.warns(UserWarning, match="heard"): warnings.warn("heard", stacklevel=1)
    os.write(2, b"heard too")
    assert capfd.readouterr().err == "heard too"


@pytest.mark.parametrize("channels", [1, 3])
def test_grids_and_files_of_one_channel_and_of_three(channels, tmp_path):
    images = torch.linspace(-1, 1, 5 * 28 * 28).view(5, 1, 28, 28).expand(-1, channels, -1, -1)
    grid = image_grid(images_to_uint8(images), columns=3, scale=1)
    assert grid.shape == (59, 88, 3) and (grid[..., 0] == grid[..., 2]).all()
    save_png(grid, tmp_path / "grid.png")
    one = images_to_uint8(images)[4].permute(1, 2, 0).numpy()
    shown = np.asarray(Image.open(io.BytesIO(png(one))))
    assert shown.shape == (28, 28, 3) and (shown == one[..., :1]).all()
    assert png(one) == png(np.repeat(one[..., :1], 3, 2)) == png(one[..., 0])


def test_sprites_are_read_without_a_word(tmp_path, capfd):
    sprite = Image.new("RGBA", (30, 30), (200, 0, 0, 255))
    for name in "ab": sprite.save(tmp_path / f"{name}.tif", compression="tiff_lzw")
    assert list(load_sprites(tmp_path)) == ["a", "b"] and capfd.readouterr().err == ""
