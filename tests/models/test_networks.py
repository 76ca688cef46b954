"""Oracles: diffusers' UNet2DModel, and torchvision's key list (written down from torchvision 0.29; it does not load
beside a CPU torch)."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import generator

from gradcheck.models.classifiers import KINDS, MobileNetV3Small, noise_levels
from gradcheck.core import UserError
from gradcheck.core import seeded
from gradcheck.models.unet import LAPTOP, PAPER, UNet, UNetConfig

diffusers = pytest.importorskip("diffusers")


def twin(c):
    "diffusers' network with our configuration (patch 1)."
    down = tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in c.attention)
    up = tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(c.attention))
    return diffusers.UNet2DModel(
        sample_size=c.size,
        in_channels=c.channels,
        out_channels=c.channels,
        layers_per_block=c.layers,
        block_out_channels=c.widths,
        down_block_types=down,
        up_block_types=up,
        norm_num_groups=c.groups,
        attention_head_dim=c.head_dim,
    )


@pytest.mark.parametrize("config", [
    UNetConfig(size=16, widths=(16, 32), attention=(False, True), layers=2, groups=8, head_dim=8),
    UNetConfig(size=16, widths=(8, 16, 24), attention=(True, False, True), layers=1, groups=4, head_dim=4),
])
def test_equals_diffusers(config):
    with seeded(0): reference, net = twin(config).eval(), UNet(config).eval()
    net.load_state_dict(reference.state_dict())
    x, t = torch.randn(3, 3, 16, 16, generator=generator()), torch.tensor([0, 17, 399])
    with torch.no_grad(): a, b = net(x, t), reference(x, t).sample
    assert (a - b).abs().max() < 1e-5 and b.std() > 0.01


def test_paper_configuration_is_the_authors_architecture():
    with torch.device("meta"): net, reference = UNet(PAPER), twin(PAPER)
    shapes = lambda m: {k: v.shape for k, v in m.state_dict().items()}
    assert shapes(net) == shapes(reference)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_patches_keep_shape_and_place(prediction):
    with seeded(0): net = UNet(replace(LAPTOP, prediction=prediction)).eval()
    assert net.prediction == prediction
    x = torch.randn(2, 3, 64, 64, generator=generator())
    with torch.no_grad(): assert net(x, torch.tensor([5, 300])).shape == x.shape


def test_mobilenet_has_torchvisions_names_shapes_and_count():
    listed = json.loads((Path(__file__).parent / "torchvision_mobilenet_v3_small.json").read_text(encoding="utf-8"))
    with seeded(0): net = MobileNetV3Small(classes=4)
    assert {k: list(v.shape) for k, v in net.state_dict().items()} == listed
    assert sum(p.numel() for p in net.parameters()) == 1_521_956
    # as torchvision publishes
    with seeded(0): assert sum(p.numel() for p in MobileNetV3Small(classes=1000).parameters()) == 2_542_856


def test_noise_levels():
    levels = {kind: noise_levels(kind, 4000, 400, generator()) for kind in KINDS}
    assert (levels["nonrobust"] == -1).all()
    assert (
        levels["robust"].min() == 0
        and levels["robust"].max() == 399
        and abs(levels["robust"].float().mean() - 199.5) < 10
    )
    assert levels["judge"].max() < 40 and abs((levels["judge"] == -1).float().mean() - 0.5) < 0.05


def test_bad_input():
    with seeded(0):
        net, classifier = (
            UNet(UNetConfig(size=16, widths=(8,), attention=(False,), layers=1, groups=4)),
            MobileNetV3Small(size=64),
        )
    with pytest.raises(UserError, match=r"takes \(3, 16, 16\)"): net(torch.zeros(1, 1, 16, 16), torch.tensor([0]))
    with pytest.raises(UserError, match=r"takes \(3, 64, 64\)"): classifier(torch.zeros(1, 3, 32, 32))
    with pytest.raises(UserError, match="'epsilon'"): UNet(UNetConfig(prediction="epsilonn"))
