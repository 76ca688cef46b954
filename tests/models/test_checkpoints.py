"""Cards and starts: what determines a result is under a digest, or within its range, or refused."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch

from gradcheck.core import UserError
from gradcheck.models.catalogue import has_start, start_card
from gradcheck.models.cards import WEIGHTS, card_digest
from gradcheck.models.checkpoints import load_weights, read_card, read_tensors, save_weights
from gradcheck.models.classifiers import MobileNetV3Small
from gradcheck.runs.specs import RunSpec


@pytest.fixture
def laptop(tmp_path):
    "A copy of the bundled denoiser and its start, to be damaged."
    for name in ("ddpm", "start"):
        for suffix in (".json", ".safetensors"): shutil.copy(WEIGHTS / "laptop" / (name + suffix), tmp_path)
    return tmp_path


def rewritten(path, change, sealed=False):
    "A card after a change; `sealed` with the digest that belongs to it, as only a program would."
    card = json.loads(path.read_text(encoding="utf-8"))
    change(card)
    if sealed: card["card_sha256"] = card_digest(card)
    path.write_text(json.dumps(card), encoding="utf-8")
    return str(path.with_suffix(".safetensors"))


@pytest.mark.parametrize("change", [
    lambda card: card["config"].pop("head_dim"),
    lambda card: card["config"].update(prediction="epsilon"),
    lambda card: card["config"].update(groups=8),
    lambda card: card["diffusion"].update(beta_start=0.0041),
    lambda card: card["diffusion"].update(T=399),
    lambda card: card.pop("diffusion"),
    lambda card: card["classes"].reverse(),
    lambda card: card.update(card_sha256="0"),
])
def test_a_card_that_was_altered_is_refused(laptop, change):
    with pytest.raises(UserError, match="does not agree with its card_sha256"):
        read_card(rewritten(laptop / "ddpm.json", change))


@pytest.mark.parametrize("field, value, message", [
    ("size", 10**9, "whole number from 1 to 4096"),
    ("size", "64", 'size is "64"'),
    ("size", True, "size is true"),
    ("widths", [64] * 100, "list of 1 to 16"),
    ("widths", [], "list of 1 to 16"),
    ("widths", [64, 1.5], "each a whole number"),
    ("attention", [0.5], "each true or false"),
    ("prediction", "noise", '"epsilon" or "sample" or "v_prediction"'),
    ("head_dim", None, "head_dim is null"),
    ("colour", 1, "unknown field"),
])
def test_settings_outside_of_their_range_are_named(laptop, field, value, message):
    name = rewritten(laptop / "ddpm.json", lambda card: card["config"].update({field: value}), sealed=True)
    with pytest.raises(UserError, match=message): read_card(name)


@pytest.mark.parametrize("diffusion, message", [
    ({"T": 10**9}, "whole number from 1 to 100000"),
    ({"T": "400"}, 'T is "400"'),
    ({"beta_end": 20.0}, "number from 0 to 1"),
    ({"beta_start": float("nan")}, "beta_start is NaN"),
    ({"schedule": "linaer"}, 'must be "linear" or'),
    ([], "not one of ours"),
])
def test_a_diffusion_outside_of_its_range_is_named(laptop, diffusion, message):
    name = rewritten(laptop / "ddpm.json", lambda card: card.update(diffusion=diffusion), sealed=True)
    with pytest.raises(UserError, match=message): read_card(name)


@pytest.mark.parametrize("text", ["", "[]", "null", "5", '"card"', "[" * 100_000, "{\"config\": 1}", "\xff"])
def test_what_is_no_card(laptop, text):
    (laptop / "ddpm.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="the card"): read_card(str(laptop / "ddpm.safetensors"))


def test_a_network_that_is_promised_too_large_costs_nothing(laptop):
    "Four levels of 4096 channels would take 20 GB; the tensors in the file are compared before any is made."
    huge = dict(widths=[4096] * 4, attention=[True] * 4, groups=1, layers=16)
    name = rewritten(laptop / "ddpm.json", lambda card: card["config"].update(huge), sealed=True)
    with pytest.raises(UserError, match="do not fit"): load_weights(name)


def test_groups_that_do_not_divide_the_channels(laptop):
    name = rewritten(laptop / "ddpm.json", lambda card: card["config"].update(groups=15), sealed=True)
    with pytest.raises(UserError, match="do not fit"): load_weights(name)


def test_a_card_of_before_is_read_with_a_warning(laptop):
    name = rewritten(laptop / "ddpm.json", lambda card: card.pop("card_sha256"))
    with pytest.warns(UserWarning, match="not verified"): assert read_card(name)["architecture"] == "UNet"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, bad):
    model = MobileNetV3Small(4, 64)
    model.classifier[0].bias.data[3] = bad
    save_weights(model, tmp_path / "c.safetensors", {})
    with pytest.raises(UserError, match="NaN or infinity in 'classifier.0.bias'"):
        load_weights(str(tmp_path / "c.safetensors"))


def test_weights_that_may_not_be_read_are_one_sentence(laptop, monkeypatch):
    "Tests may run as root, who may read all."
    def closed(self): raise PermissionError(errno.EACCES, "Permission denied", str(self))
    card = read_card("laptop/ddpm")
    monkeypatch.setattr(Path, "read_bytes", closed)
    with pytest.raises(UserError, match=r"ddpm.safetensors' cannot be read \(Permission denied\); fetch them"):
        read_tensors(laptop / "ddpm.safetensors", card)


# --- the start that a denoiser was trained with ------------------------------------------------------------------
def spec(folder, start="matched"):
    return RunSpec(denoiser=str(folder / "ddpm.safetensors"), start=start, steps=2, count=1)


@pytest.mark.parametrize("damage", [
    lambda folder: (folder / "start.json").unlink(),
    lambda folder: (folder / "start.safetensors").unlink(),
    lambda folder: (folder / "start.json").write_text("{"),
    lambda folder: [(folder / name).unlink() for name in ("start.json", "start.safetensors")],
])
def test_a_start_that_is_implied_and_cannot_be_read_is_an_error(laptop, damage):
    assert has_start(str(laptop / "ddpm.safetensors"))
    damage(laptop)
    assert has_start(str(laptop / "ddpm.safetensors"))
    with pytest.raises(UserError, match="matched start beside.*--start standard"): spec(laptop)
    assert "start" not in spec(laptop, "standard").digests


def test_another_start_is_not_the_one_of_the_training(laptop):
    start = load_weights(str(laptop / "start.safetensors"))
    start.mean = torch.zeros_like(start.mean)
    save_weights(start, laptop / "start.safetensors", {})
    with pytest.raises(UserError, match="not the one of its training"): start_card(str(laptop / "ddpm.safetensors"))


def test_a_denoiser_without_a_start_has_none(laptop):
    for name in ("start.json", "start.safetensors"): (laptop / name).unlink()
    name = rewritten(laptop / "ddpm.json", lambda card: card.pop("start"), sealed=True)
    assert not has_start(name)
    with pytest.raises(UserError, match="no matched start"): spec(laptop)
