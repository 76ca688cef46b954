"""What a training goes on from is what it was, and what is not finite is never kept."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from gradcheck.base import alone
from gradcheck.core import UserError, read_meta, save_atomically
from gradcheck.models.resume import read_checkpoint, state_digest
from gradcheck.data.sportballs import SportBalls
from gradcheck.models.training import Trainer
from gradcheck.paper.train import training_task


def trainer(out, steps=4, resume=False):
    model, loss, recipe = training_task("smoke", "robust")
    return Trainer(model, loss, SportBalls(), replace(recipe, steps=steps, batch_size=2), out, resume=resume)


@pytest.fixture
def begun(tmp_path):
    "A folder with the checkpoint of step 2 of 4."
    t = trainer(tmp_path)
    stream = SportBalls().batches(2)
    for step in range(2):
        t.recent.append(t.train_step(*next(stream)))
        t.step = step + 1
    t.save()
    return tmp_path


def altered(folder, sealed=False, tensor=None, **header):
    "The checkpoint after a change of its header or of one value of a tensor."
    path = folder / "checkpoint.safetensors"
    meta, tensors = read_meta(path) | header, load_file(path)
    if tensor is not None: tensors["optimizer.features.0.0.weight.exp_avg"].flatten()[0] = tensor
    if sealed: meta["sha256"] = state_digest(tensors, meta)
    save_atomically(tensors, path, meta)


@pytest.mark.parametrize("change", [
    dict(tensor=float("nan")),
    dict(tensor=1e-3),
    dict(step=3),
    dict(step=-1),
    dict(step=3.5),
    dict(step=10**9),
    dict(step="2"),
    dict(recent="x"),
    dict(sha256="0"),
    dict(identity=5),
    dict(identity=dict(recipe=-1)),
    dict(recent=[0.5, {}]),
    dict(seconds=float("nan")),
    dict(tensor=float("nan"), sealed=True),
    dict(step=10**9, sealed=True),
])
def test_an_altered_checkpoint_is_refused_and_stays(begun, change):
    altered(begun, **change)
    before = (begun / "checkpoint.safetensors").read_bytes()
    with pytest.raises(UserError, match="is damaged"): trainer(begun, resume=True)
    assert (begun / "checkpoint.safetensors").read_bytes() == before


def test_every_flipped_byte_is_seen(begun):
    path = begun / "checkpoint.safetensors"
    whole = path.read_bytes()
    for place in range(9, len(whole), len(whole) // 25):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1:])
        with pytest.raises(UserError): trainer(begun, resume=True)


def test_a_checkpoint_of_before_is_read_with_a_warning(begun):
    path = begun / "checkpoint.safetensors"
    meta, tensors = read_meta(path), load_file(path)
    save_atomically(tensors, path, {k: v for k, v in meta.items() if k not in ("sha256", "threads")})
    with pytest.warns(UserWarning, match="not verified"): assert trainer(begun, resume=True).step == 2


def test_another_number_of_threads_is_said(begun):
    meta, tensors = read_checkpoint(begun / "checkpoint.safetensors")
    meta |= {"threads": 64}
    save_atomically(tensors, begun / "checkpoint.safetensors", meta | {"sha256": state_digest(tensors, meta)})
    with pytest.warns(UserWarning, match="began with 64 threads"): trainer(begun, resume=True)


def test_a_loss_that_is_not_finite_stops_and_the_good_checkpoint_stays(begun):
    before = (begun / "checkpoint.safetensors").read_bytes()
    t = trainer(begun, resume=True)
    t.loss = lambda model, x, y, generator: model(x).sum() * float("nan")
    with pytest.raises(UserError, match="stopped at step 2: the loss is nan; the checkpoint of step 2 is kept"): t.run()
    assert (begun / "checkpoint.safetensors").read_bytes() == before
    assert trainer(begun, resume=True).step == 2


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    t = trainer(tmp_path)
    next(t.model.parameters()).data.fill_(float("inf"))
    with pytest.raises(UserError, match="not finite; there is no checkpoint yet"): t.save()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_the_last_checkpoint(begun, monkeypatch):
    before = (begun / "checkpoint.safetensors").read_bytes()
    t = trainer(begun, resume=True)
    def full(handle): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full"): t.run()
    monkeypatch.undo()
    assert (begun / "checkpoint.safetensors").read_bytes() == before
    assert not [p for p in begun.iterdir() if p.name.endswith(".tmp")]


def test_two_trainings_into_one_folder(tmp_path, cli):
    "The second is told so; a kill releases the lock and leaves nothing behind."
    code = (f"import sys, time; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
            f"from gradcheck.base import alone\n"
            f"with alone({str(tmp_path)!r}, 'training'): print('in', flush=True); time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"in\n"
        status, _, told = cli("train", "classifier", "--preset", "smoke", "--out", tmp_path)
        other.kill()
    assert status == 2 and "another process is training" in told
    assert not list(tmp_path.iterdir())
    with alone(tmp_path, "training"): pass


def test_minutes_on_a_damaged_checkpoint(begun, cli):
    (begun / "checkpoint.safetensors").write_bytes(b"{")
    status, _, told = cli("train", "classifier", "--preset", "smoke", "--out", begun, "--minutes", "1", "--resume")
    assert status == 2 and "is damaged" in told


def test_the_card_names_the_start(tmp_path, cli, quickly_examined):
    assert cli("train", "ddpm", "--preset", "smoke", "--out", tmp_path)[0] == 0
    start = json.loads((tmp_path / "start.json").read_text(encoding="utf-8"))["sha256"]
    assert json.loads((tmp_path / "ddpm.json").read_text(encoding="utf-8"))["start"] == start


@pytest.fixture
def folders(tmp_path):
    "Two folders with pictures of the same number and classes, and others in each."
    for root, shade in (("A", 0), ("B", 100)):
        for name in ("cat", "dog"):
            (tmp_path / root / name).mkdir(parents=True)
            for k in range(12): Image.new("RGB", (64, 64), (shade, 8 * k, 0)).save(tmp_path / root / name / f"{k}.png")
    return tmp_path


def trained_on(cli, folders, root, *more):
    "What `gradcheck train` says of a classifier of a folder's pictures, and the card that it left."
    out = folders / "run"
    told = cli("train", "classifier", "--preset", "smoke", "--dataset", "folder", "--root", folders / root,
               "--out", out, *more)
    card = out / "nonrobust.json"
    return *told, json.loads(card.read_text(encoding="utf-8")) if card.is_file() else None


def test_other_pictures_of_the_same_number_are_another_training(folders, cli, quickly_examined):
    assert trained_on(cli, folders, "A")[0] == 0
    before = {p.name: p.read_bytes() for p in (folders / "run").iterdir()}
    code, _, err, _ = trained_on(cli, folders, "B", "--resume")
    assert code == 2 and "holds another training run (pictures was" in err and "choose another folder" in err
    assert {p.name: p.read_bytes() for p in (folders / "run").iterdir()} == before


def test_a_training_that_is_finished_keeps_its_command(folders, cli, quickly_examined):
    first = trained_on(cli, folders, "A")[3]
    (folders / "A").rename(folders / "moved")                                     # the same pictures elsewhere
    code, _, err, card = trained_on(cli, folders, "moved", "--resume")
    assert code == 0 and "--resume" not in card["command"], err
    assert {k for k in card if card[k] != first[k]} <= {"card_sha256"}
    (folders / "run" / "nonrobust.json").unlink()                                 # a kill came before the card
    assert trained_on(cli, folders, "moved", "--resume")[3]["command"].endswith("--resume")


def test_a_training_that_was_begun_before_digests_goes_on(folders, cli, quickly_examined):
    trained_on(cli, folders, "A")
    meta, tensors = read_checkpoint(folders / "run" / "checkpoint.safetensors")
    del meta["identity"]["pictures"]
    sealed = meta | {"sha256": state_digest(tensors, meta)}
    save_atomically(tensors, folders / "run" / "checkpoint.safetensors", sealed)
    code, _, err, _ = trained_on(cli, folders, "A", "--resume")
    assert code == 0, err
