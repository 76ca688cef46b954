"""What a step costs by the size of the denoiser: known architectures, and a table that names the machine."""

import json

import pytest
import torch

from gradcheck.app import sizes
from gradcheck.core import UserError
from gradcheck.models.unet import UNet, UNetConfig

TINY = UNetConfig(size=16, widths=(8, 16), attention=(False, True), layers=1, groups=4, head_dim=4)


def test_the_large_one_is_googles(monkeypatch):
    pytest.importorskip("diffusers")
    with torch.device("meta"): denoiser = sizes.of_256()
    assert sum(p.numel() for p in denoiser.parameters()) == 113_673_219             # as its model card's file has
    monkeypatch.setattr(sizes, "diffusers_module", lambda: (_ for _ in ()).throw(UserError("needs diffusers")))
    with pytest.raises(UserError, match="needs diffusers"): sizes.of_256()


def test_the_command_names_the_machine_and_each_kind_of_step(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "SIZED", {"tiny": (16, 2, lambda: UNet(TINY))})
    monkeypatch.setattr(sizes.time_sizes, "__defaults__", (1, "cpu", ("tiny",)))
    code, out, err = cli("bench", "--sizes", "--repeats", "1", "--threads", "1", "--out", tmp_path / "sizes.json")
    assert code == 0, err
    result = json.loads((tmp_path / "sizes.json").read_text(encoding="utf-8"))
    row, = result["rows"]
    assert all(row[kind] > 0 for kind in sizes.KINDS)
    assert result["cpu"] in out and "1 threads" in out
    for word in ("tiny", *sizes.KINDS, "parameters"): assert word in out
