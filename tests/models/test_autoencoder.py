"""The autoencoder: its weights, what it takes, what it learns, and a code that does not know its neighbours."""
import json

import pytest
import torch
from safetensors.torch import load_file
from tiny import stopped_at

from gradcheck.core import UserError
from gradcheck.data.sportballs import SportBalls
from gradcheck.models.autoencoder import Autoencoder, codes, reconstruction_error
from gradcheck.models.cards import WEIGHTS
from gradcheck.models.catalogue import in_memory, open_autoencoder
from gradcheck.models.checkpoints import load_weights, read_card, save_weights
from gradcheck.models.training import Trainer
from gradcheck.paper.train import recipe_of, training_task
from gradcheck.paper.presets import get_preset


@pytest.fixture(scope="module")
def held_out():
    return SportBalls().held_out.batch(range(64))[0]


def test_the_bundled_codes_are_64_numbers_and_know_a_picture(held_out):
    bundled = open_autoencoder()
    z = codes(bundled, held_out)
    assert z.shape == (64, 64) and z.dtype == torch.float32 and z.std(0).min() > 0.01
    assert not any(p.requires_grad for p in bundled.parameters())
    card = read_card("laptop/autoencoder", "Autoencoder")
    assert in_memory("autoencoder", "laptop/autoencoder", card["sha256"]) is not None


def test_the_error_is_the_one_on_the_card():
    images = SportBalls().held_out.batch(range(2000))[0]
    card = read_card("laptop/autoencoder")
    error, variance = reconstruction_error(open_autoencoder(), images)
    assert error == pytest.approx(card["held_out_error"], rel=1e-3)
    assert variance == pytest.approx(card["held_out_variance"], rel=1e-3) and error < variance / 5
    assert (WEIGHTS / "laptop" / "autoencoder.safetensors").stat().st_size < 3e6


def test_a_code_does_not_depend_on_the_batch(held_out):
    bundled = open_autoencoder()
    together = codes(bundled, held_out)
    for size in (1, 7, 32): assert torch.equal(codes(bundled, held_out, batch=size), together)
    assert torch.equal(codes(bundled, held_out.flip(0)).flip(0), together)


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 64, 64), (3, 64, 64), (2, 3, 64, 32)])
def test_other_shapes_are_one_sentence(shape):
    with pytest.raises(UserError, match=r"takes float32 images of shape \(N, 3, 64, 64\)") as said:
        Autoencoder()(torch.zeros(shape))
    assert "\n" not in str(said.value)


def test_bytes_and_sizes_that_cannot_be_halved_are_refused():
    with pytest.raises(UserError, match="given uint8"): Autoencoder()(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(UserError, match="a multiple of 16"): Autoencoder(size=40)


def test_weights_come_back_and_damage_is_seen(tmp_path, held_out):
    net = Autoencoder(widths=(8, 8), code=5)
    path = tmp_path / "mine.safetensors"
    save_weights(net, path, dict(kind="autoencoder"), dtype=torch.float32)
    assert torch.equal(codes(load_weights(path, "Autoencoder"), held_out), codes(net, held_out))
    with pytest.raises(UserError, match="architecture 'Autoencoder'"): load_weights(path, "UNet")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="SHA-256"): open_autoencoder(path)


def trained(out, steps=30, **options):
    model, loss, recipe = training_task("smoke", "autoencoder")
    recipe = recipe.__class__(steps=steps, batch_size=8, warmup=2, ema=0.0)
    trainer = Trainer(model, loss, SportBalls(), recipe, out, **options)
    return trainer, trainer.run()


def test_training_lowers_the_error_and_is_the_same_twice(tmp_path, held_out, global_rng_untouched):
    fresh = training_task("smoke", "autoencoder")[0]
    model = trained(tmp_path / "one")[1]
    assert reconstruction_error(model, held_out)[0] < reconstruction_error(fresh, held_out)[0] / 2
    again = trained(tmp_path / "two")[1]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


def test_it_goes_on_where_it_was_stopped(tmp_path):
    whole = trained(tmp_path / "whole", steps=6)[1]
    with stopped_at(3), pytest.raises(KeyboardInterrupt): trained(tmp_path / "parts", steps=6)
    trainer, resumed = trained(tmp_path / "parts", steps=6, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))


def test_the_command_trains_one_and_its_card_says_how_good(tmp_path, cli, monkeypatch):
    monkeypatch.setattr("gradcheck.paper.train.HELD_OUT", 32)
    code, said, _ = cli("train", "autoencoder", "--preset", "smoke", "--out", tmp_path)
    assert code == 0 and "autoencoder.safetensors" in said
    card = json.loads((tmp_path / "autoencoder.json").read_text(encoding="utf-8"))
    assert card["architecture"] == "Autoencoder" and card["steps"] == 4 and card["recipe"]["seed"] == 0
    assert 0 < card["held_out_error"] and 0 < card["held_out_variance"]
    assert load_file(tmp_path / "autoencoder.safetensors")["encoder.5.weight"].shape == (64, 2048)
    assert open_autoencoder(tmp_path / "autoencoder.safetensors").code == 64


def test_recipes():
    laptop = get_preset("laptop")
    assert recipe_of(laptop, "autoencoder").steps == read_card("laptop/autoencoder")["recipe"]["steps"]
    assert recipe_of(laptop, "robust") is laptop.recipes["robust"]
    with pytest.raises(UserError, match="model"): recipe_of(laptop, "automaton")
