"""The ground: files whole or absent, one stream per pair of seed and image, and functions of yours."""
import errno
import fcntl
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import gradcheck.base as base
from gradcheck.core import UserError, absolute, cache_root, image_generators, located, pick_device
from gradcheck.functions import call_function, source_digest
from gradcheck.core import make_folder, write_bytes
from gradcheck.core import FEW_IMAGES, FEW_SEEDS, renewed_streams, shown


def state(seed, image): return image_generators(seed, [image])[0].get_state().numpy().tobytes()


@pytest.mark.parametrize("seed, image", [(0, 0), (0, 10_945), (7, 3), (FEW_SEEDS - 1, FEW_IMAGES - 1)])
def test_the_numbers_of_small_seeds_are_as_they_were(seed, image):
    before = torch.Generator().manual_seed((0x9E3779B1 * seed + image) % 2**32)
    assert state(seed, image) == before.get_state().numpy().tobytes()


def test_small_seeds_do_not_meet():
    multiples = np.sort(np.arange(FEW_SEEDS, dtype=np.int64) * 0x9E3779B1 % 2**32)
    gaps = np.diff(multiples, append=multiples[0] + 2**32)
    assert gaps.min() >= FEW_IMAGES


def test_no_two_pairs_share_a_stream():
    seeds = (0, 1, FEW_SEEDS - 1, FEW_SEEDS, 244_002_641, 2**32, 2**32 + 1, 2**53 + 1, 2**63 - 1)
    images = (0, 1, FEW_IMAGES - 1, FEW_IMAGES, 2**32, 2**32 + 1)
    generators = [g for seed in seeds for g in image_generators(seed, images)]
    first = {tuple(torch.randint(2**31, (4,), generator=g).tolist()) for g in generators}
    assert len(first) == len(seeds) * len(images)


@pytest.mark.parametrize("seed", [50_000, 2**40, 2**63 - 1])
def test_the_noise_of_large_seeds_is_normal(seed):
    noise = torch.stack([torch.randn(400, generator=g) for g in image_generators(seed, range(500))])
    assert abs(noise.mean()) < 5 / 200_000**0.5 and abs(noise.std() - 1) < 0.01
    neighbours = (noise[1:] * noise[:-1]).mean()
    assert abs(neighbours) < 5 / 200_000**0.5
    assert noise[:, :8].mean(0).abs().max() < 6 / 500**0.5


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, 2.5, "3", None])
def test_what_is_no_seed_is_refused(seed):
    allowed = r"whole number from 0 to 2\*\*63 - 1"
    with pytest.raises(UserError, match=f"the seed is .*{allowed}"): image_generators(seed, [0])
    with pytest.raises(UserError, match="number of an image"): image_generators(0, [seed])


def test_streams_that_have_changed_are_said_to_be_so():
    assert not renewed_streams(0) and not renewed_streams(FEW_SEEDS - 2, range(FEW_IMAGES))
    assert renewed_streams(FEW_SEEDS) and renewed_streams(0, range(FEW_IMAGES, FEW_IMAGES + 1))
    assert renewed_streams(FEW_SEEDS - 1)                                    # its gradients are shuffled by the next


def test_a_long_value_is_not_repeated_whole():
    assert shown("soccer ball") == "'soccer ball'" and len(shown("x" * 5000)) == 60 and "thousands" in shown(10**5000)


def test_a_numpy_seed_is_the_same_seed():
    assert state(np.int64(2**40), np.int64(5)) == state(2**40, 5)


@pytest.fixture
def own(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "pack" / "deep").mkdir(parents=True)
    for init in ("pack", "pack/deep"): (tmp_path / init / "__init__.py").write_text("", encoding="utf-8")
    (tmp_path / "pack" / "deep" / "leaf.py").write_text("from .. import other\n", encoding="utf-8")
    (tmp_path / "pack" / "other.py").write_text("X = 1\n", encoding="utf-8")
    (tmp_path / "helper.py").write_text("K = 1\n", encoding="utf-8")
    (tmp_path / "text.txt").write_text("here", encoding="utf-8")
    (tmp_path / "own.py").write_text("import helper, numpy\n"
                                     "def make():\n"
                                     "    from pack.deep import leaf\n"
                                     "    return helper.K, open('text.txt').read()\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("edited", ["own.py", "helper.py", "pack/other.py", "pack/deep/leaf.py", "pack/__init__.py"])
def test_an_edit_of_any_helper_changes_the_digest(own, edited):
    before = source_digest(f"{own}/own.py:make")
    with open(own / edited, "a", encoding="utf-8") as f: f.write("CONSTANT = 2\n")
    assert source_digest(f"{own}/own.py:make") != before


def test_what_is_not_imported_and_the_place_do_not_change_the_digest(own, tmp_path_factory):
    before = source_digest(f"{own}/own.py:make")
    (own / "unused.py").write_text("1", encoding="utf-8")
    moved = own.rename(tmp_path_factory.mktemp("elsewhere") / "moved")
    assert source_digest(f"{moved}/own.py:make") == before
    assert source_digest(f"{moved}/own.py:other") != before


def test_relative_paths_are_the_commands(own, monkeypatch):
    monkeypatch.chdir(own)
    assert call_function("own.py:make", "the model") == (1, "here")
    monkeypatch.setenv("GRADCHECK_FOLDER", str(own))
    monkeypatch.chdir("/")
    assert call_function("own.py:make", "the model") == (1, "here") and Path.cwd() == Path("/")
    assert call_function(f"{own}/own.py:make", "the model") == (1, "here")


def test_an_edited_helper_and_one_of_the_same_name_are_read_again(own, tmp_path, monkeypatch):
    monkeypatch.chdir(own)
    assert call_function("own.py:make", "the model")[0] == 1
    (own / "helper.py").write_text("K = 2\n", encoding="utf-8")
    assert call_function("own.py:make", "the model")[0] == 2
    (own / "mine" / "helper.py").write_text("K = 3\n", encoding="utf-8")
    (own / "mine" / "own.py").write_text("import helper\ndef make(): return helper.K\n", encoding="utf-8")
    assert call_function("mine/own.py:make", "the model") == 3


@pytest.mark.parametrize("hidden", ["pandas.py", "torch.py"])
def test_a_file_that_hides_a_library_is_named(own, monkeypatch, cli, hidden):
    monkeypatch.chdir(own)
    (own / hidden).write_text("x = 1\n", encoding="utf-8")
    said = re.escape(hidden) + f"' hides the library {hidden[:-3]}; rename it"
    with pytest.raises(UserError, match=said): call_function("own.py:make", "the model")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(own))])
    code, _, err = cli("info")
    assert code == 2 and re.search(said, err) and str(own) not in sys.path


@pytest.mark.parametrize("name", ["cpu:x", "cpu:7", "auto:1", "cuda:", "cuda:x", "cuda:-1", "gpu"])
def test_devices_that_are_none(name):
    with pytest.raises(UserError, match="device|GPU"): pick_device(name)
    assert pick_device("cpu") == "cpu"


@pytest.mark.parametrize("text, message", [
    ("import sys\nsys.exit(0)", "SystemExit: 0, .*own.py, line 2"),
    ("def make():\n    raise SystemExit('bye')", "SystemExit: bye, .*own.py, line 2"),
    ("x = 1\n\n1 / 0", "ZeroDivisionError: .*own.py, line 3"),
    ("def make(:", "SyntaxError: .*own.py, line 1"),
    ("import absent_module", "absent_module.*own.py, line 1"),
    ("import json\ndef make(): return json.loads('{')", "JSONDecodeError: .*own.py, line 2"),
    ("def make(argument): pass", "TypeError: .*argument"),
    ("\0", "own.py"),
    ("def other(): pass", "no attribute 'make'")])
def test_a_file_that_fails_is_one_sentence_with_file_and_line(tmp_path, text, message):
    (tmp_path / "own.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as e: call_function(f"{tmp_path}/own.py:make", "the model")
    assert "\n" not in str(e.value)
    assert len(source_digest(f"{tmp_path}/own.py:make")) == 64


@pytest.mark.parametrize("name", ["absent_module:make", "absent.py:make", "absent.deep.module:make"])
def test_what_is_not_there_has_no_digest(name):
    with pytest.raises(UserError): source_digest(name)


def temporary(folder, name="a.bin"):
    path = folder / f".{name}.{'0' * 16}.tmp"
    path.write_bytes(b"half")
    return path


def test_the_left_overs_of_the_dead_are_swept_and_the_living_keep_theirs(tmp_path):
    dead, living = temporary(tmp_path, "dead"), temporary(tmp_path, "living")
    foreign = tmp_path / ".notes.tmp"
    foreign.write_bytes(b"mine")
    with open(living, "rb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        write_bytes(tmp_path / "a.bin", b"whole")
        assert not dead.exists() and living.exists() and foreign.exists()
    assert (tmp_path / "a.bin").read_bytes() == b"whole"


def test_a_swept_writer_writes_again(tmp_path, monkeypatch):
    lock, swept = base._lock, []

    def sweep_once(handle):
        if not swept: swept.append(os.unlink(handle.name))
        return lock(handle)
    monkeypatch.setattr(base, "_lock", sweep_once)
    write_bytes(tmp_path / "a.bin", b"whole")
    assert (tmp_path / "a.bin").read_bytes() == b"whole" and swept and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "number, message", [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "disk is full"), (errno.EIO, "choose a place")]
)
def test_a_full_disk_is_a_sentence_and_the_old_file_stays(tmp_path, monkeypatch, number, message):
    write_bytes(tmp_path / "a.bin", b"old")

    def full(_): raise OSError(number, os.strerror(number))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=message): write_bytes(tmp_path / "a.bin", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"] and (tmp_path / "a.bin").read_bytes() == b"old"


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "file/inside"])
def test_names_that_no_disk_takes(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError): write_bytes(tmp_path / name, b"")
    with pytest.raises(UserError): make_folder(tmp_path / name)


@pytest.mark.parametrize("name", ["x" * 250, "$a'b\"c<d>", "é", "\udce9"])
def test_names_that_a_disk_takes(tmp_path, name):
    write_bytes(tmp_path / name, b"1")
    assert (tmp_path / name).read_bytes() == b"1" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("ascii", [True, False])
def test_json_is_utf_8_whatever_a_name_holds(tmp_path, ascii):
    said = {"names": ["ball", "Bälle", "\udce9"]}
    base.write_json(tmp_path / "a.json", said, ensure_ascii=ascii)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert base.read_json(tmp_path / "a.json", "it") == said and text.startswith('{\n "names"') and text.endswith("}\n")
    assert ("Bälle" in text) is not ascii


def test_a_cache_lies_in_the_project_from_wherever(tmp_path, monkeypatch):
    (tmp_path / "nbs" / "figures").mkdir(parents=True)
    (tmp_path / "settings.ini").write_text("", encoding="utf-8")
    for folder in (tmp_path, tmp_path / "nbs" / "figures"):
        monkeypatch.chdir(folder)
        monkeypatch.delenv("GRADCHECK_CACHE", raising=False)
        assert cache_root() == tmp_path / "data" / "cache"
        monkeypatch.setenv("GRADCHECK_CACHE", "elsewhere")
        assert cache_root() == tmp_path / "elsewhere" and cache_root("/abs") == Path("/abs")
    assert located("settings.ini") == tmp_path / "settings.ini"


def test_absolute_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini").mkdir()
    assert (
        absolute("celeba:mini") == f"celeba:{tmp_path}/mini"
        and absolute("celeba:mini:Male") == f"celeba:{tmp_path}/mini:Male"
    )
    assert absolute("mini") == f"{tmp_path}/mini" and absolute("sportballs:coupled") == "sportballs:coupled"
    (tmp_path / "sportballs").mkdir()
    assert absolute("sportballs") == "sportballs"
    (tmp_path / "settings.ini").write_text("")
    for name in ("nbs", "within"): (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "within")                                  # as diagnose finds the project's pictures
    assert absolute("celeba:mini:Male") == f"celeba:{tmp_path}/mini:Male"
    assert absolute("celeba:mini") == f"celeba:{tmp_path}/mini"


def test_a_stabilizer_of_ours_is_no_folder_beside_it(tmp_path, monkeypatch, cli):
    root = Path(__file__).parents[1]
    for module in ("plan", "reproduce"): monkeypatch.setattr(f"gradcheck.paper.{module}.project_root", lambda: root)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adam").mkdir()
    code, _, err = cli("reproduce", "figure_2", "--preset", "smoke", "--stabilizer", "adam", "--plan")
    assert code == 0 and not err
