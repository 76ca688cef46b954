import json
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import forks
import pytest
import torch
from safetensors.torch import load_file
from tiny import stopped_at

from gradcheck.models.cards import card_digest
from gradcheck.models.checkpoints import load_classifier, load_denoiser, load_weights, read_card, save_weights
from gradcheck.models.classifiers import MobileNetV3Small
from gradcheck.core import UserError
from gradcheck.models.ddpm import DDPM
from gradcheck.paper.train import fit_images, seconds_per_step, training_task
from gradcheck.data.sportballs import SportBalls
from gradcheck.core import read_meta, seeded
from gradcheck.models.training import Recipe, Trainer, denoising_loss
from gradcheck.models.unet import UNet, UNetConfig


def trainer(out, what="ddpm", steps=6, resume=False, data=SportBalls(), **changes):
    model, loss, recipe = training_task("smoke", what)
    return Trainer(
        model,
        loss,
        data,
        replace(recipe, steps=steps, **changes),
        out,
        resume=resume,
        identity=dict(task=what) | data.identity,
    )


def weights(path): return load_file(path / "checkpoint.safetensors")


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("what", ["ddpm", "robust", "judge"])
def test_resume_is_bit_for_bit(what, tmp_path, global_rng_untouched):
    trainer(tmp_path / "whole", what).run()
    first = trainer(tmp_path / "parts", what)
    first.recipe = replace(first.recipe, steps=6)
    stop_after(first, 3)
    second = trainer(tmp_path / "parts", what, resume=True)
    assert second.step == 3
    second.run()
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def stop_after(t, steps):
    "Run a trainer for some steps of its recipe, then leave it with a checkpoint, as a timer would."
    step = t.train_step
    def counted(*batch):
        if t.step == steps: raise KeyboardInterrupt
        return step(*batch)
    t.train_step = counted
    with pytest.raises(KeyboardInterrupt): t.run()
    t.save()


def test_kill_9_then_resume(tmp_path):
    code = f"""
import sys; sys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:2]]!r}
import torch; torch.set_num_threads(1)
from pathlib import Path
from test_training import trainer
t = trainer(Path({str(tmp_path / 'killed')!r}), steps=20, resume=True); t.every_s = 0.0; t.run()
"""
    process = forks.Forked([sys.executable, "-c", code])
    checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
    while not checkpoint.exists() and process.poll() is None: time.sleep(0.01)
    while read_meta(checkpoint)["step"] < 2 and process.poll() is None: time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < read_meta(checkpoint)["step"] < 20
    forks.run([sys.executable, "-c", code], check=True)
    trainer(tmp_path / "whole", steps=20).run()
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


# --- within so many minutes
# -------------------------------------------------------------------------------------------------
def spoken(out):
    return {
        k: v
        for k, v in json.loads((out / "robust.json").read_text(encoding="utf-8")).items()
        if k not in ("command", "seconds", "card_sha256")
    }


def test_minutes_shorten_the_recipe_and_the_card_says_so(tmp_path, cli, monkeypatch):
    train = ("train", "classifier", "--kind", "robust", "--preset", "smoke", "--out")
    monkeypatch.setattr(
        "gradcheck.paper.train.accuracy_by_t", lambda models, *args, **kwargs: {name: {-1: 1.0} for name in models}
    )
    monkeypatch.setattr("gradcheck.paper.train.seconds_per_step", lambda *args: 10.0)
    assert cli(*train, tmp_path / "whole", "--minutes", "0.5")[0] == 0                        # 30 s at 10 s a step
    card = spoken(tmp_path / "whole")
    assert (card["steps"], card["recipe"]["steps"], card["shortened_from"], card["recipe"]["warmup"]) == (
        3,
        3,
        4,
        1,
    ) and load_classifier(str(tmp_path / "whole" / "robust.safetensors"))
    # never longer than the recipe
    assert cli(*train, tmp_path / "long", "--minutes", "60")[0] == 0
    assert spoken(tmp_path / "long")["steps"] == 4 and "shortened_from" not in spoken(tmp_path / "long")

    with stopped_at(2): code = cli(*train, tmp_path / "parts", "--minutes", "0.5")[0]
    assert code == 130 and not (tmp_path / "parts" / "robust.safetensors").exists()
    begun = []
    # the time of the first call counts: nothing is measured again
    monkeypatch.setattr("gradcheck.paper.train.seconds_per_step", lambda *args: begun.append(1))
    assert cli(*train, tmp_path / "parts", "--minutes", "0.5", "--resume")[0] == 0 and not begun
    assert spoken(tmp_path / "parts") == spoken(tmp_path / "whole")                           # its digest too


@pytest.fixture
def shortened_and_stopped(tmp_path, cli, monkeypatch):
    "What runs the same training again with other options; it was shortened to 3 of 4 steps, and stopped after 2."
    train = ("train", "classifier", "--preset", "smoke", "--out", tmp_path, "--minutes", "0.5")
    monkeypatch.setattr("gradcheck.paper.train.seconds_per_step", lambda *args: 10.0)
    with stopped_at(2): assert cli(*train, "--seed", "1")[0] == 130
    return lambda *more: cli(*train, *more, "--resume")


@pytest.mark.parametrize("more, was", [
    (("--seed", "2"), "recipe was {'seed': 1}"),
    ((), "recipe was {'seed': 1}"),
    (("--seed", "1", "--steps", "2"), "recipe was {'steps': 3}"),
    (("--seed", "1", "--architecture", "ResNet"), "architecture was MobileNetV3Small"),
])
def test_what_was_shortened_goes_on_as_it_was_begun_or_not_at_all(shortened_and_stopped, tmp_path, more, was):
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    code, _, err = shortened_and_stopped(*more)
    assert code == 2 and was in err and "choose another folder" in err and err.count("\n") == 1
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_minutes_as_they_are_measured(tmp_path, cli, quickly_examined):
    assert cli("train", "ddpm", "--preset", "smoke", "--minutes", "0.0001", "--out", tmp_path)[0] == 0
    card = json.loads((tmp_path / "ddpm.json").read_text(encoding="utf-8"))
    assert (
        card["steps"] == 1 == card["recipe"]["warmup"]
        and card["shortened_from"] == 4
        and (tmp_path / "start.safetensors").is_file()
    )
    model, loss, recipe = training_task("smoke", "ddpm")
    before, seconds = (
        {k: v.clone() for k, v in model.state_dict().items()},
        seconds_per_step(model, loss, SportBalls(), recipe, "cpu", steps=2),
    )
    # measured on a copy
    assert 0 < seconds < 60 and all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_log_and_learning_rate(tmp_path):
    t = trainer(tmp_path, steps=4)
    t.run()
    line = json.loads((tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert line["step"] == 4 and line["images"] == 32 and line["loss"] > 0 and line["images_per_second"] > 0
    r = Recipe(steps=1000, lr=1.0, warmup=10)
    assert (
        r.lr_at(0) == pytest.approx(0.1)
        and r.lr_at(10) == pytest.approx(1, abs=1e-3)
        and r.lr_at(1000) == pytest.approx(0)
        and r.lr_at(500) == pytest.approx(0.5)
    )


def test_it_learns(tmp_path):
    "Forty steps on a fixed batch lower the loss by more than half."
    with seeded(0):
        model = UNet(
            UNetConfig(
                size=64, patch=4, widths=(32, 32), attention=(False, False), layers=1, groups=4, prediction="sample"
            )
        )

    class OneBatch:
        def batches(self, n, seed, start):
            batch = SportBalls().batch(range(n))
            while True: yield batch
    losses = []
    def loss(model, *batch):
        losses.append(denoising_loss(model, DDPM(), *batch))
        return losses[-1]
    Trainer(model, loss, OneBatch(), Recipe(steps=20, batch_size=8, lr=2e-3, warmup=5), tmp_path).run()
    assert torch.stack(losses[-5:]).mean() < 0.5 * torch.stack(losses[:5]).mean()


def test_perfect_denoisers_have_zero_loss():
    x0, _ = SportBalls().batch(range(4))
    class Oracle:
        def __init__(self, prediction): self.prediction = prediction
        def __call__(self, x_t, t):
            abar = DDPM().abar_at(t, x0)
            eps = DDPM().eps_from(x_t, t, x0)
            return {"sample": x0, "epsilon": eps, "v_prediction": abar.sqrt() * eps - (1 - abar).sqrt() * x0}[
                self.prediction
            ]

    for prediction in ("sample", "epsilon", "v_prediction"):
        assert denoising_loss(Oracle(prediction), DDPM(), x0, None, torch.Generator().manual_seed(0)) < 1e-6


def test_refusals(tmp_path):
    trainer(tmp_path, steps=2).run()
    with pytest.raises(UserError, match="--resume"): trainer(tmp_path, steps=2)
    with pytest.raises(UserError, match="another training run .recipe was"): trainer(tmp_path, steps=3, resume=True)
    with pytest.raises(UserError, match="task was ddpm"): trainer(tmp_path, "robust", steps=2, resume=True)
    with pytest.raises(UserError, match="draws was independent"):
        trainer(tmp_path, steps=2, resume=True, data=SportBalls(draws="coupled"))
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"): trainer(tmp_path, steps=2, resume=True)
    with pytest.raises(UserError, match="'ddpm'"): training_task("smoke", "dpm")
    with pytest.raises(UserError, match="1 class, which leaves"): training_task("smoke", "judge", classes=1)


# --- final weights
# ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def saved(tmp_path):
    with seeded(3): net = MobileNetV3Small(4, 64).eval()
    save_weights(net, tmp_path / "c.safetensors", {"note": "test"}, dtype=torch.float32)
    return net, tmp_path / "c.safetensors"


def test_weights_round_trip(saved):
    net, path = saved
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    loaded = load_classifier(str(path))
    with torch.no_grad(): assert torch.allclose(loaded(x), net(x), atol=1e-5)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert read_card(str(path))["parameters"] == 1_521_956


def test_damaged_and_foreign_weights(saved, tmp_path):
    _, path = saved
    whole, card = path.read_bytes(), path.with_suffix(".json").read_text(encoding="utf-8")
    flipped = bytearray(whole)
    flipped[-1000] ^= 1
    for data in (whole[:-50], bytes(flipped), b"", b"PK\x03\x04 a pickle"):
        path.write_bytes(data)
        with pytest.raises(UserError, match="damaged"): load_classifier(str(path))
    path.write_bytes(whole)
    with pytest.raises(UserError, match="UNet is needed"): load_denoiser(str(path))
    other = json.loads(card)
    other["config"]["classes"] = 7
    path.with_suffix(".json").write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(UserError, match="does not agree"): load_classifier(str(path))
    path.with_suffix(".json").write_text(json.dumps(other | {"card_sha256": card_digest(other)}), encoding="utf-8")
    with pytest.raises(UserError, match="do not fit"): load_classifier(str(path))
    path.with_suffix(".json").write_text("{")
    with pytest.raises(UserError, match="not readable as JSON"): load_classifier(str(path))
    with pytest.raises(UserError, match="laptop/ddpm"): load_classifier("laptop/dppm")


def draws_of(card): return card["data"]["draws"] if "data" in card else card["draws"]


@pytest.mark.parametrize(
    "name, architecture",
    [
        ("laptop/ddpm", "UNet"),
        ("laptop/robust", "MobileNetV3Small"),
        ("laptop/nonrobust", "MobileNetV3Small"),
        ("laptop/judge", "MobileNetV3Small"),
        ("laptop/start", "GaussianStart"),
        ("coupled/ddpm", "UNet"),
        ("coupled/robust", "MobileNetV3Small"),
        ("coupled/nonrobust", "MobileNetV3Small"),
        ("coupled/start", "GaussianStart"),
    ],
)
def test_bundled_weights_load_and_their_cards_are_complete(name, architecture):
    card = read_card(name)
    assert card["architecture"] == architecture
    trained = {"steps", "loss", "recipe"} if architecture != "GaussianStart" else set()
    assert {"command", "images", "sha256"} | trained <= card.keys() and {"data", "data_seed"} & card.keys()
    assert draws_of(card) == ("coupled" if name.startswith("coupled/") else "independent")
    assert all(p.isfinite().all() for p in load_weights(name, architecture).state_dict().values())


@pytest.mark.parametrize(("images", "size", "fitted"), [(5000, 64, 3000), (500, 64, 500), (5000, 256, 682)])
def test_a_start_is_fitted_on_as_many_images_as_its_card_says(images, size, fitted):
    class Data:
        canvas = size
        def __len__(self): return images
    assert fit_images(Data()) == fitted
