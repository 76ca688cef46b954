"""What is derived from runs and pictures is kept as they are: by all that it is made of."""
import ast
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from gradcheck.data.sources import Real
from gradcheck.data.sportballs import CLASSES, SportBalls
from gradcheck.paper import claims
from gradcheck.paper.presets import get_preset
from gradcheck.pictures import images_to_uint8, save_png
from gradcheck.runs import chunks, scores
from gradcheck.runs.chunks import derived, derived_bytes, derived_row, derived_tables, file_digest, sealed
from gradcheck.runs.chunks import tensor_digest, unsealed
from gradcheck.runs.runs import run
from gradcheck.runs.scores import real_floor, references, score
from gradcheck.runs.specs import RunSpec
from gradcheck.runs.tradeoff import trade_off

NOTEBOOKS = sorted((Path(__file__).parents[2] / "nbs" / "figures").glob("*.ipynb"))


class Maker:
    "Counts how often it is asked."
    asked = 0

    def __call__(self):
        self.asked += 1
        return dict(numbers=np.arange(self.asked, self.asked + 3), names=np.array(["a", "ü"]))


def test_it_is_made_once_for_what_it_is_made_of():
    make = Maker()
    for made_of in (["a", 1], ["a", 1], ["a", 2]): found = derived("kind", made_of, make)
    assert make.asked == 2
    assert found["numbers"].tolist() == [2, 3, 4] and found["names"].tolist() == ["a", "ü"]
    assert derived("kind", ["a", 1], make)["numbers"].tolist() == [1, 2, 3]
    derived("another kind", ["a", 1], make)
    assert make.asked == 3


def test_what_is_not_known_is_not_kept(own_cache):
    make = Maker()
    for _ in range(2): derived("kind", ["a", None], make)
    assert make.asked == 2 and not own_cache.exists()


def test_other_code_makes_it_again(tmp_path, monkeypatch):
    make = Maker()
    monkeypatch.setattr(chunks, "PACKAGE", tmp_path)
    for text in ("", "", "x = 1"):
        (tmp_path / "__init__.py").write_text(text)
        derived("kind", ["a"], make)
    assert make.asked == 2


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:100], lambda data: data.replace(b"\1", b"\2")],
                         ids=["empty", "half", "flipped"])
def test_a_damaged_file_is_made_again(own_cache, damage):
    make = Maker()
    derived("kind", ["a"], make)
    path, = own_cache.rglob("*.arrays")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="damaged"): derived("kind", ["a"], make)
    assert make.asked == 2
    derived("kind", ["a"], make)
    assert make.asked == 2


def test_no_flipped_bit_is_read_in_silence():
    "In a zip's directory, one bit may make an archive shorter, or of a kind that nothing here opens."
    kept = sealed("name", bytes(range(200)))
    for place in range(len(kept)):
        flipped = bytearray(kept)
        flipped[place] ^= 1 << place % 8
        with pytest.raises(ValueError, match="damaged"): unsealed("name", bytes(flipped))
    assert unsealed("name", kept) == bytes(range(200))


def test_a_whole_file_in_anothers_place_is_made_again(own_cache):
    make = Maker()
    for k in range(2): derived("kind", [k], make)
    first, second = own_cache.rglob("*.arrays")
    first.write_bytes(second.read_bytes())
    with pytest.warns(UserWarning, match="foreign"):
        for k in range(2): derived("kind", [k], make)
    assert make.asked == 3


def test_a_link_to_nowhere_is_no_code(tmp_path, monkeypatch):
    "An editor leaves such links (.#cli.py) while somebody types."
    monkeypatch.setattr(chunks, "PACKAGE", tmp_path)
    (tmp_path / "__init__.py").write_text("")
    before = chunks.code_digest()
    (tmp_path / ".#cli.py").symlink_to("nowhere")
    assert chunks.code_digest() == before


def never(*args, **kwargs): raise AssertionError("it was there")


def test_features_of_real_pictures(monkeypatch):
    real = Real("sportballs", 64, 24, "laptop/judge")
    scores._references.cache_clear()
    first = references(real, 0)["judge"]
    scores._references.cache_clear()
    monkeypatch.setattr(scores, "judge_features", never)
    again, another = references(real, 0)["judge"], references(real, 1)["judge"]
    scores._references.cache_clear()
    for part in ("data", "held_out"):
        for kind in ("all", "target"): assert torch.equal(getattr(first, part)[kind], getattr(again, part)[kind])
    assert torch.equal(another.data["all"], first.data["all"])
    assert not torch.equal(another.data["target"], first.data["target"])


def test_what_classifiers_recognise(monkeypatch):
    p = replace(get_preset("smoke"), recognised=2)
    first = claims.recognition_of(p)
    made = {"role": pd.api.types.is_string_dtype(first["classifier"]), "right": first["right"].dtype == bool}
    assert made == {"role": True, "right": True} and set(first["classifier"]) == set(p.classifiers)
    monkeypatch.setattr("gradcheck.runs.evaluation.recognition", never)
    pd.testing.assert_frame_equal(claims.recognition_of(p), first)
    with pytest.raises(AssertionError, match="it was there"): claims.recognition_of(replace(p, recognised=3))
    unclipped = replace(p, switches=dict(clip=False))
    with pytest.raises(AssertionError, match="it was there"): claims.recognition_of(unclipped)


def test_tables_rows_and_bytes_come_back_as_they_were():
    first = pd.DataFrame(dict(word=["a", "ü b"], n=[1, 2], x=[0.1, np.nan], so=[True, False]))
    second = pd.DataFrame({"a column, with a comma": [np.float32(1e-30)], "note": [""]})
    for k in range(2):
        found = derived_tables("tables", ["a"], lambda: [first, second] if k == 0 else never())
        for table, known in zip(found, (first, second), strict=True): pd.testing.assert_frame_equal(table, known)
        row = derived_row("row", ["a"], lambda: {"FID (judge), all": np.float64(0.1), "n": 2} if k == 0 else never())
        assert row == {"FID (judge), all": 0.1, "n": 2.0}
        assert derived_bytes("bytes", ["a"], lambda: b"\0a\0" if k == 0 else never()) == b"\0a\0"


def test_what_cannot_be_kept_is_no_loss(own_cache):
    own_cache.write_text("a file where the folder should be")
    make = Maker()
    for k in (1, 2):
        with pytest.warns(UserWarning, match="damaged"): found = derived("kind", ["a"], make)["numbers"].tolist()
        assert found == [k, k + 1, k + 2]


def test_a_digest_knows_shape_kind_and_every_number():
    x = torch.arange(6.0)
    assert tensor_digest(x) == tensor_digest(x.clone())
    others = x.view(2, 3), x.double(), x + torch.tensor([0, 0, 0, 0, 0, 1e-6])
    assert len({tensor_digest(v) for v in (x, *others)}) == 4


@pytest.fixture
def small_runs():
    "A reference of few pictures, and two runs that differ in one pixel."
    real = Real("sportballs", 64, 24, "laptop/judge")
    one = run(RunSpec(steps=2, count=4), 4)
    pixel = one.samples.clone()
    pixel[0, 0, 0, 0] ^= 255
    return real, one, replace(one, samples=pixel)


JUDGE = """
import torch
from torch import nn
from gradcheck.models.checkpoints import load_classifier
class Judge(nn.Module):
    def __init__(self):
        super().__init__()
        self.judge = load_classifier("laptop/judge")
    def forward(self, x): return GAIN * self.judge(x)
def make(): return Judge()
"""


def test_what_real_pictures_are_is_asked_again_in_the_same_process(tmp_path):
    "A folder that has got other pictures, and a judge that was edited: nothing of before is kept under their digests."
    balls = SportBalls()
    folder = tmp_path / "pictures"
    def fill(first):
        for c, name in enumerate(CLASSES):
            (folder / name).mkdir(parents=True, exist_ok=True)
            for k in range(8):
                picture = images_to_uint8(balls.batch([first + 8 * c + k])[0])[0].permute(1, 2, 0).numpy()
                save_png(picture, folder / name / f"{k}.png")
    def judge(gain): (tmp_path / "judge.py").write_text(JUDGE.replace("GAIN", gain), encoding="utf-8")
    fill(0)
    judge("1.0")
    names = (str(folder), f"{tmp_path}/judge.py:make")
    real = Real(names[0], 64, 16, "laptop/judge")
    before, factors = references(real, 0)["judge"], scores.real_factors(real, 0)
    assert references(real, 0)["judge"] is before and scores.real_factors(real, 0) is factors
    fill(1000)
    after = references(real, 0)["judge"]
    assert not torch.equal(after.data["all"], before.data["all"])
    assert not scores.real_factors(real, 0).equals(factors)
    scores._references.cache_clear()
    assert torch.equal(references(real, 0)["judge"].data["all"], after.data["all"])          # from the cache

    digests = [scores.as_now(Real("sportballs", 64, 8, names[1]), 0)]
    judge("2.0")
    digests.append(scores.as_now(Real("sportballs", 64, 8, names[1]), 0))
    assert digests[0] != digests[1]


def test_scores_are_made_once_for_the_same_pictures(small_runs, monkeypatch):
    real, one, other = small_runs
    row, floor, curves = score(one, real), real_floor(real, 0, 4), trade_off([one], real, 3)
    scores._real_factors.cache_clear()
    scores._references.cache_clear()
    for name in ("references", "_measured"): monkeypatch.setattr(scores, name, never)
    monkeypatch.setattr("gradcheck.runs.tradeoff.references", never)
    np.testing.assert_equal(score(one, real), row)
    np.testing.assert_equal(real_floor(real, 0, 4), floor)
    np.testing.assert_equal(trade_off([one], real, 3), curves)
    scores.real_factors(real, 0)
    for call in (lambda: score(other, real), lambda: real_floor(real, 0, 5), lambda: trade_off([other], real, 3),
                 lambda: trade_off([one], real, 4), lambda: score(one, replace(real, count=30))):
        with pytest.raises(AssertionError, match="it was there"): call()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_what_a_notebook_keeps_is_made_by_the_package(path):
    "Whose code is in the name of what is kept; a notebook's own function could change and old arrays be served."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ast.parse("\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code"))
    own = {node.name for node in ast.walk(code) if isinstance(node, ast.FunctionDef)}
    for call in (node for node in ast.walk(code) if isinstance(node, ast.Call)):
        if not getattr(call.func, "id", "").startswith("derived"): continue
        assert not own & {node.id for node in ast.walk(call.args[2]) if isinstance(node, ast.Name)}


def test_a_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    "Not one that changed a moment ago: it may change again under the same times."
    path, read, seen = tmp_path / "weights", Path.read_bytes, []
    path.write_bytes(b"one")
    monkeypatch.setattr(Path, "read_bytes", lambda self: seen.append(self) or read(self))
    fresh = [file_digest(path) for _ in range(2)]
    assert len(seen) == 2
    monkeypatch.setattr(chunks, "FRESH", -1)
    assert [file_digest(path) for _ in range(3)] == [*fresh, fresh[0]] and len(seen) == 3
    other = tmp_path / "other"
    other.write_bytes(b"two")
    other.replace(path)
    assert file_digest(path) not in fresh and len(seen) == 4
