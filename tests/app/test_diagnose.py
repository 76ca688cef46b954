"""A diagnosis: what is known to be true is said, on tables that are made up and on models that are small; what it
advises can be run; and bad input is one sentence."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny import own_models

from gradcheck.app import symptoms, trials
from gradcheck.app.advice import answer, best_energy, finalists, findings, made_up, reality, recognises_until
from gradcheck.app.advice import sees_noise, success, summary
from gradcheck.app.diagnose import diagnose, kept_back
from gradcheck.app.report import command_for, loop_for
from gradcheck.app.symptoms import AS_IT_IS, KNOWN, NEVER_SAW, SAW, white
from gradcheck.app.trials import Budget, Trials, question_of, settings_to_try, views_of
from gradcheck.core import UserError, seeded
from gradcheck.data.classes import parse_target
from gradcheck.guidance.mixture import ExactDenoiser, interleaved_ring, nonrobust_guidance, robust_guidance
from gradcheck.guidance.mixture import sliced_wasserstein
from gradcheck.guidance.sampling import at_x0_hat, at_x_t, guided_steps
from gradcheck.guidance.stabilizers import make_stabilizer
from gradcheck.models.checkpoints import save_weights
from gradcheck.models.ddpm import DDPM
from gradcheck.models.exports import export_denoiser
from gradcheck.models.unet import UNet, UNetConfig

LENGTH = 100.0
UP = [0.9, 1.0, 0.8, 1.0, 0.9, 1.0, 1.0, 0.9]
MIDDLE = [0.5, 0.7, 0.4, 0.6, 0.5, 0.6, 0.7, 0.6]
DOWN = [0.1, 0.0, 0.3, 0.2, 0.0, 0.4, 0.1, 0.2]
MIXED = [0.9, 0.0, 0.1, 0.9, 0.0, 0.1, 0.9, 0.1]


def settings(final):
    return summary(final[final["way"] != "unguided"], LENGTH)


# what is decided


@pytest.mark.parametrize("final, kind, way", [
    (made_up(unguided=DOWN, plain=UP, both=UP), "as it is", "plain"),
    (made_up(unguided=DOWN, plain=UP, both=[p * 0.95 for p in UP]), "as it is", "plain"),
    (made_up(unguided=DOWN, plain=[p - 0.05 for p in UP], both=UP), "as it is", "plain"),       # even: the simpler
    (made_up(unguided=DOWN, plain=MIDDLE, both=UP), "with", "both"),
    (made_up(unguided=[0.1] * 8, plain=[0.22] * 8, both=[0.28] * 8), "with", "both"),           # plain helps too little
    (made_up(unguided=[0.1] * 8, plain=[0.0, 0.1, 0.1, 0.0, 0.1, 0.9, 0.1, 0.9], both=[0.4] * 8), "with", "both"),
    (made_up(unguided=[0.1] * 8, plain=[0.15] * 8, both=[0.05] * 6 + [1.0] * 2), "unknown", ""),     # both: not clear
    (made_up(unguided=DOWN, plain=DOWN, x0_hat=UP), "with", "x0_hat"),
    (made_up(unguided=DOWN, plain=UP), "as it is", "plain"),
    (made_up(unguided=DOWN, both=UP), "with", "both"),
    (made_up(unguided=DOWN, plain=DOWN, both=DOWN), "none", ""),
    (made_up(unguided=DOWN, plain=[0.0] * 8, both=[0.0] * 8), "none", ""),
    (made_up(unguided=UP, plain=UP, both=UP), "unknown", ""),                                   # nothing to gain
    (made_up(unguided=[0.0] * 8, plain=[0.0] * 8, both=[0, 0, 0, 0, 0, 1, 0, 1]), "unknown", ""),   # not clear
    (made_up(unguided=DOWN[:5], plain=UP[:5]), "unknown", ""),                                  # too few
    (made_up(unguided=DOWN), "unknown", ""),                                                    # nothing was tried
])
def test_can_it_guide(final, kind, way):
    said = answer(final, LENGTH)
    assert (said.kind, said.way) == (kind, way), said
    assert said.sentence.startswith({"as it is": "Yes, as it is", "with": "Yes, with", "none": "Not at any setting",
                                     "unknown": "Cannot be told"}[kind])


def test_no_gradient_is_said():
    said = answer(made_up(unguided=DOWN), LENGTH, flat=["plain", "both"])
    assert said.kind == "none"
    assert "zero" in said.sentence


def test_pictures_that_guidance_has_overdriven_do_not_count():
    final = made_up(unguided=DOWN, plain=UP, both=UP)
    final.loc[final["way"] == "plain", "injected"] = LENGTH + 1
    assert success(final[final["way"] == "plain"], LENGTH).eq(0).all()
    assert answer(final, LENGTH).way == "both"


def test_the_reason_has_the_numbers():
    why = answer(made_up(unguided=DOWN, plain=MIDDLE, both=UP), LENGTH).why
    for p in (DOWN, MIDDLE, UP): assert f"{np.mean(p):.2f}" in why
    assert "95 % interval" in why


def test_the_finalists_are_the_best_and_of_even_ones_the_simplest():
    assert [row["way"] for row in finalists(settings(made_up(plain=DOWN, both=UP, x0_hat=UP)))] == ["plain", "x0_hat"]
    assert [row["way"] for row in finalists(settings(made_up(plain=DOWN, both=UP, adam=UP)))] == ["plain", "adam"]
    assert [row["way"] for row in finalists(settings(made_up(plain=DOWN, both=UP, adam=DOWN)))] == ["plain", "both"]
    assert [row["way"] for row in finalists(settings(made_up(plain=DOWN)))] == ["plain"]


def test_of_energies_that_are_as_good_the_smallest_is_taken():
    rows = [made_up(plain=p).assign(energy=e) for e, p in ((50.0, UP), (14.0, UP), (4.0, MIDDLE))]
    assert best_energy(summary(pd.concat(rows), LENGTH))["energy"] == 14.0


def test_success_that_only_the_guide_sees_is_named():
    final = made_up(unguided=DOWN, plain=DOWN, both=DOWN).assign(guide=0.99)
    kind, sentence = reality(answer(final, LENGTH), final, settings(final))
    assert kind == "adversarial"
    assert "0.99" in sentence and f"{np.mean(DOWN):.2f}" in sentence


@pytest.mark.parametrize("guide, kind", [(UP, "real"), ([1.0] * 8, "real"), (DOWN, "real")])
def test_success_that_the_judge_sees_is_real(guide, kind):
    final = made_up(unguided=DOWN, plain=UP)
    final.loc[final["way"] == "plain", "guide"] = guide
    assert reality(answer(final, LENGTH), final, settings(final))[0] == kind


def test_success_that_the_guide_exaggerates_is_real_in_part():
    final = made_up(unguided=DOWN, plain=MIDDLE)
    final.loc[final["way"] == "plain", "guide"] = 1.0
    assert reality(answer(final, LENGTH), final, settings(final))[0] == "partly"


def test_no_success_is_no_adversarial_success():
    final = made_up(unguided=DOWN, plain=DOWN)
    assert reality(answer(final, LENGTH), final, settings(final))[0] == "none"


def test_without_a_judge_the_page_says_how_weak_that_is():
    final = made_up(unguided=DOWN, plain=UP)
    assert "weak evidence" in reality(answer(final, LENGTH, judged=False), final, settings(final), judged=False)[1]
    assert "weak" not in reality(answer(final, LENGTH), final, settings(final))[1]


# a world in the plane, where the distance from the truth is known

PLANE = dict(plain=(at_x_t, "none"), both=(at_x0_hat, "adam_rescaled"), x0_hat=(at_x0_hat, "none"),
             adam=(at_x_t, "adam_rescaled"), unguided=(at_x_t, "none"))


def guided(world, make, way, scale, steps=60, count=200):
    "Rows per point, as of pictures, and the distance of the points from those of class 1."
    where, stabilizer = PLANE[way]
    ddpm = DDPM(clip=False)
    guidance = make(world, 1, where=where, stabilizer=make_stabilizer(stabilizer).spanning(ddpm.T / steps), scale=scale)
    g = torch.Generator().manual_seed(0)
    x_T = torch.randn(count, 2, 1, 1, generator=g, dtype=torch.float64)
    taken = list(guided_steps(ddpm, ExactDenoiser(world, ddpm), guidance, x_T, g, steps, micro_batch=count))
    points = taken[-1].x_prev.flatten(1)
    p = world.class_logits(points).softmax(1)[:, 1].numpy()
    injected = sum(step.shift.flatten(1).norm(dim=1) for step in taken).numpy()
    truth = world.given(1).sample(count, torch.Generator().manual_seed(9))
    rows = dict(way=way, energy=scale, scale=scale, image=range(count), injected=injected, guide=p, judge=p)
    return pd.DataFrame(rows), sliced_wasserstein(points, truth).item()


@pytest.mark.parametrize("make, kind", [(robust_guidance, "as it is"), (nonrobust_guidance, "with")])
def test_in_the_plane_what_is_advised_lies_nearest_to_the_truth(make, kind):
    world = interleaved_ring()                                              # two wide
    asked = {(way, s): guided(world, make, way, s)
             for way in PLANE for s in ((0.0,) if way == "unguided" else (0.03, 0.1, 0.3, 1.0, 3.0, 10.0))}
    rows, distance = ({k: v[i] for k, v in asked.items()} for i in (0, 1))
    table = summary(pd.concat([v for (way, _), v in rows.items() if way != "unguided"]), length=3.0)
    chosen = {row["way"]: (row["way"], row["energy"]) for row in finalists(table)}
    said = answer(pd.concat([rows["unguided", 0.0], *(rows[key] for key in chosen.values())]), length=3.0)
    assert said.kind == kind
    assert distance[chosen[said.way]] <= min(distance.values()) + 0.02


# the gradient


def test_what_is_wrong_with_a_gradient():
    known = [KNOWN[SAW], KNOWN[NEVER_SAW]]
    assert findings(KNOWN[SAW], known) == []
    lacking = " ".join(findings(KNOWN[NEVER_SAW] | dict(agreement=np.nan), known))
    for word in ("step to step", "follows the noise", "fine grain"): assert word in lacking
    assert findings(white(64, 64) | dict(signal=np.nan), known) == ["There is no gradient to speak of at any step."]
    assert findings(KNOWN[SAW] | dict(broken=1.0, signal=np.nan), known) == ["It is NaN or infinite at all steps."]
    assert "NaN or infinite at 25%" in " ".join(findings(KNOWN[SAW] | dict(broken=0.25), known))
    assert "nothing at 90%" in " ".join(findings(KNOWN[SAW] | dict(vanishing=0.9), known))
    assert "robust classifier" in " ".join(findings(KNOWN[SAW] | dict(agreement=0.05), known))


@pytest.mark.parametrize("accuracy, until, words", [
    ([1, 1, 0.9, 0.3, 0.2, 0.3], 50, "seen noise up to about t = 50"),
    ([1, 1, 0.4, 0.3, 0.2, 0.3], 0, "clean pictures only"),
    ([1, 0.3, 0.4, 0.3, 0.9, 0.9], -1, "clean pictures only"),
    ([1, 1, 1, 1, 1, 0.9], 200, "under noise up to t = 200"),
    ([0.3, 0.2, 0.3, 0.2, 0.3, 0.2], None, "not even clean"),
])
def test_up_to_which_noise_it_recognises(accuracy, until, words):
    series = pd.Series(accuracy, [-1, 0, 50, 100, 150, 200], dtype=float)
    assert recognises_until(series, 4) == until
    assert words in sees_noise(series, 4, 200)


class UpTo(torch.nn.Module):
    "The bundled robust classifier, blind where the noise (by neighbouring pixels) is above that of t = 100."
    def __init__(self, robust, sigma):
        super().__init__()
        self.robust = robust
        self.sigma = sigma

    def forward(self, x):
        noise = (x[..., 1:] - x[..., :-1]).flatten(1).abs().median(1).values / 0.954
        return self.robust(x) * (noise < self.sigma)[:, None]


def up_to_100():
    from gradcheck.all import load_classifier
    made = UpTo(load_classifier("laptop/robust"), (1 - DDPM().abar_at(120, torch.zeros(1))).sqrt().item())
    made.class_names = ["baseball", "golfball", "volleyball", "tennisball"]
    return made


def test_a_classifier_that_saw_noise_up_to_100_is_told():
    from gradcheck.all import SportBalls, load_classifier
    from gradcheck.runs.evaluation import accuracy_by_t
    known = {"never": load_classifier("laptop/nonrobust"), "all": load_classifier("laptop/robust")}
    times = (-1, 0, 40, 80, 100, 150, 200, 300)
    table = accuracy_by_t(known | {"up to 100": up_to_100()}, DDPM(), SportBalls().held_out, times, count=32)
    assert 80 <= recognises_until(table["up to 100"], 4) <= 150
    assert "noise up to about t = 100" in sees_noise(table["up to 100"], 4, 400)
    assert "clean pictures only" in sees_noise(table["never"], 4, 400)
    assert "under noise up to t = " in sees_noise(table["all"], 4, 400)


# small models


GUIDES = '''
import torch

class Bright(torch.nn.Module):
    "Is it bright? By the mean over pixels."
    def forward(self, x):
        m = 10 * (x.mean((1, 2, 3)) - 0.16)
        return torch.stack([-m, m], 1)

class Grain(torch.nn.Module):
    "Is there a grid of single pixels in it?"
    def forward(self, x):
        grid = torch.ones(16, 16)
        grid[::2] *= -1
        grid[:, ::2] *= -1
        m = 40 * (x * grid).mean((1, 2, 3))
        return torch.stack([-m, m], 1)

class Linear(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.last = torch.nn.Linear(768, 2)
        torch.nn.init.constant_(self.last.weight, weight)

    def forward(self, x): return self.last(x.flatten(1))

class Odd(Bright):
    def forward(self, x): return {body}

def bright(): return Bright()
def named():
    made = Bright()
    made.class_names = ["dark", "light"]
    return made
def grain(): return Grain()
def constant(): return Linear(0.0)
def odd(): return Odd()
def normed(): return torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Dropout(0.1), Bright())
'''


DATA = """
import os
from gradcheck.data.sources import open_data

def make(): return open_data(os.environ["PICTURES"], 16)
"""


@pytest.fixture
def small(tmp_path, monkeypatch):
    "A tiny denoiser and guides for it; few settings to try, few steps along which a gradient is looked at."
    monkeypatch.setattr(trials, "ENERGIES", (60.0,))
    monkeypatch.setattr(trials, "WAYS", ("plain", "x0_hat"))
    monkeypatch.setattr(symptoms, "PATH_STEPS", 3)
    monkeypatch.setattr(trials, "IMAGES", 4)
    with seeded(0): models = own_models(tmp_path)
    def guide(name, body="super().forward(x)"):
        path = tmp_path / f"guides{abs(hash(body)) % 10**6}.py"
        path.write_text(GUIDES.replace("{body}", body), encoding="utf-8")
        return f"{path}:{name}"
    def ask(name, **options):
        quiet = dict(report=lambda sentence: None, out=tmp_path / "out", minutes=60, steps=10, count=6)
        return diagnose(models["denoiser"], name, **quiet | options)
    return guide, ask


def test_a_classifier_that_can_guide_is_told_and_what_is_advised_runs(small, tmp_path, cli, monkeypatch):
    guide, ask = small
    told = ask(guide("bright"), target=1, judge=guide("bright", "1.0 * super().forward(x)").replace("bright", "odd"))
    assert told["answer"]["kind"] == "as it is", told["answer"]
    assert told["reality"]["kind"] == "real"
    assert told["judged"]
    use = told["use"]
    assert (use["where"], use["stabilizer"], use["steps"]) == ("x_t", "none", 10)
    assert use["low"] <= use["probability"] <= use["high"]
    kept = json.loads((tmp_path / "out" / "diagnosis.json").read_text(encoding="utf-8"))
    assert kept["use"]["command"] == use["command"]
    monkeypatch.chdir(tmp_path)
    code, _, err = cli(*shlex.split(use["command"])[1:], "--out", tmp_path / "sampled")
    assert code == 0, err
    sampled = json.loads((tmp_path / "sampled" / "run.json").read_text(encoding="utf-8"))
    assert sampled["target_probability_judge"] == pytest.approx(use["probability"], abs=1e-4)
    exec(compile(use["code"], "code", "exec"), {})
    assert Image.open("guided.png").size
    found = {}
    exec(compile(use["loop"], "loop", "exec"), found)
    assert found["images"].shape == (6, 3, 16, 16)
    assert found["images"].isfinite().all()
    assert found["images"].mean() > 0                                       # brighter than without guidance


def other_pipeline(folder, unet=(), scheduler=(), label=None):
    "The pipeline of `own_models` with other fields of its U-Net and its scheduler; its name."
    diffusers = pytest.importorskip("diffusers")
    config = dict(diffusers.UNet2DModel.load_config(folder / "pipeline" / "unet")) | dict(unet)
    made = diffusers.UNet2DModel.from_config(config), diffusers.DDPMScheduler(50, **dict(scheduler))
    diffusers.DDPMPipeline(*made).save_pretrained(folder / "other", safe_serialization=True)
    if label is not None:
        (folder / "other" / "gradcheck.json").write_text(json.dumps(dict(class_label=label)), encoding="utf-8")
    return str(folder / "other")


def test_the_loop_draws_the_class_of_a_class_conditional_denoiser(small, tmp_path):
    guide, _ = small
    denoiser = other_pipeline(tmp_path, dict(num_class_embeds=3), label=2)
    spec = question_of(denoiser=denoiser, classifier=guide("bright"), steps=5, count=6).spec("plain", scale=1.0)
    assert "torch.full((6,), 2)" in loop_for(spec)
    found = {}
    exec(compile(loop_for(spec), "loop", "exec"), found)
    assert found["images"].shape == (6, 3, 16, 16)


def flattened(folder):
    for name in ("unet", "scheduler"):
        for file in (folder / name).iterdir(): file.rename(folder / file.name)
        (folder / name).rmdir()
    (folder / "model_index.json").unlink()


def rewritten(file, **fields):
    def rewrite(folder):
        said = json.loads((folder / file).read_text(encoding="utf-8"))
        (folder / file).write_text(json.dumps(said | fields), encoding="utf-8")
    return rewrite


@pytest.mark.parametrize("change", [
    flattened,
    rewritten("model_index.json", scheduler=["diffusers", "DDIMScheduler"]),
    rewritten("scheduler/scheduler_config.json", variance_type="fixed_small_log"),
    rewritten("scheduler/scheduler_config.json", timesteps=50),
])
def test_no_loop_is_printed_that_diffusers_would_step_otherwise(small, tmp_path, change):
    guide, _ = small
    folder = Path(other_pipeline(tmp_path))
    change(folder)
    assert loop_for(question_of(denoiser=str(folder), classifier=guide("bright"), steps=5, count=6).spec("plain")) == ""


def test_no_loop_is_printed_for_a_denoiser_of_ours_in_patches(small, tmp_path):
    guide, _ = small
    config = UNetConfig(size=16, patch=2, widths=(16, 16), attention=(False, False), layers=1, groups=4)
    with seeded(0): save_weights(UNet(config), tmp_path / "ours.safetensors", {})
    export_denoiser(str(tmp_path / "ours.safetensors"), tmp_path / "ours")
    question = question_of(denoiser=str(tmp_path / "ours"), classifier=guide("bright"), steps=5, count=6)
    assert loop_for(question.spec("plain")) == ""


def test_of_a_learned_variance_it_is_said_that_it_is_not_used(small, tmp_path, cli):
    guide, _ = small
    denoiser = other_pipeline(tmp_path, dict(out_channels=6), dict(variance_type="learned_range"))
    spec = question_of(denoiser=denoiser, classifier=guide("bright"), steps=5, count=6).spec("plain", scale=1.0)
    assert loop_for(spec) == ""
    code, out, err = cli("sample", "--denoiser", denoiser, "--classifier", guide("bright"), "--steps", "2",
                         "--count", "2", "--out", tmp_path / "sampled")
    assert code == 0, err
    assert "learned variance is not used" in out


@pytest.mark.parametrize("names, target, said", [
    (["dark", "light"], 1, "--target=1"),
    (["1", "0"], 0, "--target=1"),
    (["10", "20"], 1, "--target=20"),
    (["10", "a b; rm"], 1, "'--target=a b; rm'"),
])
def test_the_command_guides_to_the_class_that_was_asked_for(small, tmp_path, names, target, said):
    guide, _ = small
    name = guide("named", f"super().forward(x) + 0 * {sum(map(ord, str(names)))}")
    path = Path(name.rpartition(":")[0])
    path.write_text(path.read_text(encoding="utf-8").replace('["dark", "light"]', str(names)), encoding="utf-8")
    asked = dict(denoiser=str(tmp_path / "pipeline"), classifier=name, steps=5)
    spec = question_of(names[target], **asked).spec("plain")
    assert spec.target == target
    assert said in command_for(spec)
    asked, = (word for word in shlex.split(command_for(spec)) if word.startswith("--target="))
    assert parse_target(asked.partition("=")[2], names) == target


def test_the_page_needs_nothing_else(small, tmp_path):
    guide, ask = small
    told = ask(guide("bright"), target=1)
    page = Path(told["page"]).read_text(encoding="utf-8")
    assert told["answer"]["sentence"] in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert "weak evidence" in page and not told["judged"]
    assert "of 16 x 16 pixels and 3 channels; that the classifier was trained on these cannot be checked" in page
    for part in ("use", "symptoms", "real", "pictures", "tried"): assert f'id="{part}"' in page
    assert page.count("data:image/png") == 3                                # unguided, plain, and the other


def test_a_second_call_computes_nothing(small, monkeypatch):
    guide, ask = small
    name = guide("bright")
    first = ask(name, target=1)
    def refuse(*args, **kwargs): raise AssertionError("was in the cache")
    monkeypatch.setattr("gradcheck.runs.runs.compute", refuse)
    monkeypatch.setattr(symptoms, "steps_seen", refuse)
    again = ask(name, target=1)
    assert json.dumps(first | {"seconds": 0}) == json.dumps(again | {"seconds": 0})


@pytest.mark.parametrize("damage", [lambda kept: b"", lambda kept: kept[:-9] + b"9" + kept[-8:]])
def test_a_kept_table_that_is_damaged_is_made_again(small, own_cache, damage):
    guide, ask = small
    name = guide("bright")
    first = ask(name, target=1)["symptoms"]
    path, = (own_cache / "derived").glob("symptoms-*")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="damaged or foreign"): again = ask(name, target=1)["symptoms"]
    assert json.dumps(first) == json.dumps(again)


def test_what_a_function_of_yours_makes_is_looked_at_each_time(small, tmp_path, own_cache, monkeypatch):
    "Of pictures that a function makes it is not known whether they are others."
    guide, _ = small
    paint(tmp_path / "PICTURES")
    (tmp_path / "mine.py").write_text(DATA, encoding="utf-8")
    monkeypatch.setenv("PICTURES", str(tmp_path / "PICTURES"))
    asked = dict(denoiser=str(tmp_path / "pipeline"), classifier=guide("named"), steps=5, count=6)
    for data in (f"{tmp_path / 'mine.py'}:make", str(tmp_path / "PICTURES")):
        symptoms.recognised(question_of(data=data, **asked))
        assert len([*own_cache.glob("derived/recognition-*")]) == (data == str(tmp_path / "PICTURES"))


def test_a_guide_that_was_fooled_is_told(small):
    guide, ask = small
    told = ask(guide("grain"), target=1, judge=guide("bright"))
    assert told["answer"]["kind"] in ("none", "unknown")
    assert told["reality"]["kind"] == "adversarial", told


def test_a_constant_classifier_has_no_gradient(small):
    guide, ask = small
    told = ask(guide("constant"))
    assert told["answer"]["kind"] == "none"
    assert "zero" in told["answer"]["sentence"]
    assert told["use"] is None
    assert told["findings"] == ["There is no gradient to speak of at any step."]


def test_views_keep_the_size_and_begin_with_the_image():
    x = torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    views = views_of(x, torch.Generator().manual_seed(0))
    assert views.shape == (8, 2, 3, 16, 12)
    assert torch.equal(views[0], x) and torch.equal(views[1], x.flip(-1))
    assert all(not torch.equal(views[0], view) for view in views[1:])
    assert views.abs().max() <= 1


def paint(folder):
    "Pictures of two classes, dark and bright, of 16 x 16 pixels."
    for name, level in (("dark", 60), ("light", 200)):
        (folder / name).mkdir(parents=True)
        for i in range(40):
            noise = torch.randint(-40, 40, (16, 16, 3), generator=torch.Generator().manual_seed(i))
            Image.fromarray((level + noise).byte().numpy()).save(folder / name / f"{i}.png")


def test_the_command_with_data(small, tmp_path, cli, monkeypatch):
    guide, _ = small
    paint(tmp_path / "PICTURES")
    monkeypatch.chdir(tmp_path)
    file = Path(guide("named").rpartition(":")[0]).name
    code, out, err = cli("diagnose", "--denoiser", "pipeline", "--classifier", f"{file}:named", "--data", "PICTURES",
                         "--target", "light", "--minutes", "60", "--steps", "10", "--count", "6")
    assert code == 0, err
    assert "results/diagnose/index.html" in out
    told = json.loads(Path("results/diagnose/diagnosis.json").read_text(encoding="utf-8"))
    assert told["target"] == "light"
    assert "recognises" in told["sees"] or "seen noise" in told["sees"]
    assert list(told["recognition"]) == [AS_IT_IS, SAW, NEVER_SAW]
    assert told["recognition"][AS_IT_IS]["-1"] == 1.0
    assert not any("no data" in sentence for sentence in told["left_out"])


# the budget


def test_what_there_is_no_time_for_is_left_out_and_said(small, tmp_path, monkeypatch):
    guide, ask = small
    clock = iter(range(0, 10**9, 10))
    monkeypatch.setattr(trials.time, "monotonic", lambda: next(clock))       # every look at the clock takes 10 s
    def slow(minutes, rate): return Budget(minutes, rate, trials.time.monotonic)
    monkeypatch.setattr("gradcheck.app.diagnose.Budget", slow)
    monkeypatch.setattr("gradcheck.app.diagnose.seconds_per_step", lambda question: 1e-3)
    told = ask(guide("bright"), target=1, minutes=2)
    left_out = " ".join(told["left_out"])
    assert "no time was left" in left_out
    assert len(told["tried"]) < len(settings_to_try(question_of(denoiser="laptop/ddpm", classifier="laptop/robust")))
    assert "no time was left" in Path(told["page"]).read_text(encoding="utf-8")


@pytest.mark.parametrize("more, everything", [(1.01, False), (10.0, True)])
def test_a_budget_that_is_taken_lets_the_plain_gradient_be_tried(more, everything):
    question = question_of(denoiser="laptop/ddpm", classifier="laptop/nonrobust", steps=4)
    finals, every = trials.final_specs(question), trials.every_spec(question)
    least = Budget(1, rate=0.1).seconds([*every[:3], *finals[:2]])              # what `budget_for` asks for
    budget = Budget(more * least / 60, rate=0.1, clock=lambda: 0.0)
    later, price = kept_back(question, budget)
    assert (later == finals, price > 0) == (everything, everything)
    tried = Trials(question, budget, 1.0, later, price)
    assert tried.allows(every[1]) and tried.allows(every[2])


def test_a_budget_is_kept_before_it_is_gone():
    now = [0.0]
    question = question_of(denoiser="laptop/ddpm", classifier="laptop/nonrobust", steps=4)
    budget = Budget(1, rate=0.1, clock=lambda: now[0])
    run = question.spec("x0_hat", scale=1.0)
    assert budget.seconds([run]) == pytest.approx(0.1 * 16 * 4 * 2.2)
    assert budget.fits([run]) and not budget.fits([run] * 5)
    now[0] = 50.0
    assert not budget.fits([run])
    assert [*Trials(question, budget, 1.0, later=[run] * 5).all().left_out]


# bad input


@pytest.mark.parametrize("body, sentence", [
    ("super().forward(x).softmax(1)", "probabilities"),
    ("super().forward(x).sigmoid()", "probabilities"),
    ("super().forward(x) * float('nan')", "NaN"),
    ("super().forward(x).detach()", "gradient"),
    ("torch.nn.functional.dropout(super().forward(x), 0.5)", "at random"),
    ("super().forward(x) - super().forward(x).mean(0)", "beside others"),
    ("super().forward(x[:, :, :, :8].reshape(len(x), 3, 8, 8))", "fails on images"),
    ("super().forward(x).abs().sqrt() * 0 + (x.mean((1, 2, 3)) * 0).sqrt()[:, None]", "NaN or infinite"),
    ("super().forward(x) + (x.std((1, 2, 3)) < 0.62).float()[:, None] * float('inf')", "NaN or infinity"),
    ("super().forward(x) * torch.where((x.std((1, 2, 3)) > 0.74)[:, None], float('nan'), 1.0)", "answers pictures"),
])
def test_a_classifier_that_cannot_guide_is_one_sentence(small, body, sentence):
    guide, ask = small
    with pytest.raises(UserError, match=sentence): ask(guide("odd", body))


@pytest.mark.parametrize("body, sentence", [
    ("super().forward(x) + 0.1 * (x + 1).clamp(min=0).sqrt().mean((1, 2, 3))[:, None]", "exactly -1"),
    ("super().forward(x) + 0.1 * (1 - x).clamp(min=0).sqrt().mean((1, 2, 3))[:, None]", "exactly 1"),
    ("super().forward((x - x.mean((1, 2, 3), True)) / x.std((1, 2, 3), keepdim=True) + x)", "one colour"),
    ("super().forward(x) + 0.1 * (1.1 - x * x).sqrt().mean((1, 2, 3))[:, None]", "beyond"),
])
def test_a_gradient_that_is_nan_for_some_pictures_is_told(small, body, sentence):
    guide, ask = small
    told = ask(guide("odd", body), target=1)
    note = " ".join(note for note in told["notes"] if "NaN or infinite" in note)
    assert sentence in note
    assert sum(word in note for word in ("exactly -1", "exactly 1", "one colour", "beyond")) == 1
    assert note in Path(told["page"]).read_text(encoding="utf-8").replace("&#39;", "'")


def test_a_gradient_that_is_nan_under_noise_is_among_the_findings(small):
    guide, ask = small
    told = ask(guide("odd", "super().forward(x) + 0.1 * (1.1 - x * x).sqrt().mean((1, 2, 3))[:, None]"), target=1)
    assert "NaN or infinite at" in told["findings"][0]
    assert told["symptoms"][AS_IT_IS]["broken"] > 0
    assert any(sentence.startswith("The plain gradient: the guidance gradient is not finite")
               for sentence in told["left_out"])


def test_where_each_way_fails_it_is_one_sentence(monkeypatch):
    def fails(question, way, budget): raise UserError(f"{way} is broken")
    monkeypatch.setattr(trials, "scale_of_one", fails)
    question = question_of(denoiser="laptop/ddpm", classifier="laptop/nonrobust", steps=4)
    with pytest.raises(UserError, match="each way .* .plain, both, x0_hat, adam. fails; plain: plain is broken"):
        Trials(question, Budget(60, rate=0.01), 1.0).all()


def test_how_a_classifier_came_is_told(small):
    guide, ask = small
    told = ask(guide("bright", "torch.nn.functional.relu(super().forward(x))").replace("bright", "normed"), target=1)
    assert any("came in training mode" in note for note in told["notes"])
    assert any("were its weights loaded?" in note for note in told["notes"])


def test_a_judge_that_answers_with_nan_is_one_sentence(small):
    guide, ask = small
    levels = "(x * 127.5 + 127.5)"                                          # whole numbers, of pictures of 8 bits
    whole = f"torch.isclose({levels}.round(), {levels}, atol=1e-3).all()"
    blind = f"super().forward(x) + torch.where({whole}, float('nan'), 0.0)"
    with pytest.raises(UserError, match="answers pictures that the denoiser makes"):
        ask(guide("bright"), target=1, judge=guide("odd", blind))


def denoiser_that_says(folder, bias, prediction, weight=0.0):
    "A pipeline whose U-Net answers everything with a constant, or with a sum of so large a weight."
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DModel.from_pretrained(folder / "pipeline" / "unet")
    torch.nn.init.constant_(unet.conv_out.weight, weight)
    torch.nn.init.constant_(unet.conv_out.bias, bias)
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=50, prediction_type=prediction, clip_sample=False)
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(folder / "other", safe_serialization=True)
    return str(folder / "other")


def test_a_denoiser_that_says_nan_is_one_sentence(small, tmp_path):
    guide, _ = small
    with pytest.raises(UserError, match="denoiser .* returns NaN or infinity at t = 49"):
        diagnose(denoiser_that_says(tmp_path, 0.0, "epsilon", 3e38), guide("bright"), steps=10, out=tmp_path / "out")


@pytest.mark.parametrize("data", [False, True])
def test_a_denoiser_of_bright_pictures_only_is_told(small, tmp_path, data):
    guide, _ = small
    paint(tmp_path / "PICTURES")
    asked = dict(steps=10, count=6, out=tmp_path / "out", minutes=60, report=lambda sentence: None)
    denoiser = denoiser_that_says(tmp_path, 0.5, "sample")
    if not data:
        assert any("have no value below 0; if" in note for note in diagnose(denoiser, guide("named"), **asked)["notes"])
        return
    with pytest.raises(UserError, match="have no value below 0, of the data's .* are; if it was trained on .0, 1."):
        diagnose(denoiser, guide("named"), data=str(tmp_path / "PICTURES"), **asked)


@pytest.mark.parametrize("options, sentence", [
    (dict(minutes=1e-6), "are too few"),
    (dict(minutes=-1), "minutes were asked for"),
    (dict(minutes="soon"), "give a number"),
    (dict(steps=1), "sampling steps"),
    (dict(steps=51), "sampling steps"),
    (dict(count=5), "images were"),                                                    # of one sign by chance: 1 in 16
    (dict(seed=1_000_000), "on which settings are tried"),
    (dict(target=7), "class"),
    (dict(judge="laptop/judge"), "same images"),
    (dict(data="nowhere"), "no data set"),
    (dict(device="tpu"), "device"),
])
def test_bad_options_are_one_sentence(small, options, sentence):
    guide, ask = small
    with pytest.raises(UserError, match=sentence) as e: ask(guide("bright"), **options)
    assert "\n" not in str(e.value)


def test_the_command_says_it_in_one_line(cli, tmp_path):
    code, out, err = cli("diagnose", "--denoiser", "laptop/ddpm", "--classifier", "laptop/nonrobust", "--minutes", "0",
                         "--out", tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("gradcheck: ") and err.count("\n") == 1


def test_images_in_the_other_range_are_found_out(monkeypatch):
    question = question_of(denoiser="laptop/ddpm", classifier="laptop/robust", data="sportballs")
    symptoms.check_range_of(question)
    robust = symptoms.open_classifier("laptop/robust")
    others = {r"\[0, 1\]": lambda x: robust(2 * x - 1), r"\[0, 255\]": lambda x: robust(x / 127.5 - 1)}
    for taken, mapped in others.items():
        monkeypatch.setattr(symptoms, "open_classifier", lambda name, mapped=mapped: mapped)
        with pytest.raises(UserError, match=taken): symptoms.check_range_of(question)


def test_a_classifier_that_refuses_other_ranges_is_not_asked_for_them(monkeypatch):
    question = question_of(denoiser="laptop/ddpm", classifier="laptop/robust", data="sportballs")
    robust = symptoms.open_classifier("laptop/robust")
    def strict(x):
        if x.abs().max() <= 1: return robust(x)
        raise UserError("the classifier fails on images of shape (3, 64, 64) (AssertionError).")
    monkeypatch.setattr(symptoms, "open_classifier", lambda name: strict)
    symptoms.check_range_of(question)


# the bundled models


def test_what_is_known_is_of_these_weights_and_comes_out_again():
    from gradcheck.app import known
    kept = json.loads((symptoms.PLACE / "known.json").read_text(encoding="utf-8"))
    digests = kept["made_of"]["digests"]
    assert digests == {name: known.denoiser_card(name)["sha256"] if name == "laptop/ddpm"
                       else known.classifier_card(name, (3, 64, 64))["sha256"] for name in digests}
    assert {SAW: "laptop/robust", NEVER_SAW: "laptop/nonrobust"}.keys() == {row["lens"] for row in kept["rows"]}
    again = known.looked_at(known.pictures(), some=(12,)).set_index("lens")         # a step of twenty
    then = symptoms.known_by_step().query(f"t == {again['t'].iloc[0]}").set_index("lens")
    for measure in symptoms.MEASURES.keys() - {"steady"}:                            # which takes two of them
        assert again[measure].to_dict() == pytest.approx(then[measure].to_dict(), abs=0.02), measure


def test_white_noise_has_what_white_noise_has():
    g = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    other = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    row = symptoms.row_of(g, other, torch.zeros_like(g), other, repeats=2)
    for measure, value in white(16, 16).items():
        if measure != "saturated": assert row[measure] == pytest.approx(value, abs=0.01), measure


@pytest.mark.slow                                                # unguided pictures, and all twenty steps
def test_what_is_known_of_the_bundled_classifiers_is_what_they_have():
    from gradcheck.pictures import uint8_to_images
    for label, name in {SAW: "laptop/robust", NEVER_SAW: "laptop/nonrobust"}.items():
        question = question_of(denoiser="laptop/ddpm", classifier=name, robust="laptop/robust")
        base = trials.run_one(question, question.trial("unguided", 0.0), "no guidance")
        table = symptoms.symptoms(question, uint8_to_images(base.samples)).loc[AS_IT_IS]
        for measure, value in KNOWN[label].items(): assert table[measure] == pytest.approx(value, abs=0.03), measure


FOOLED = '''
import torch
from torch import nn
from gradcheck.data.sportballs import SportBalls

class RandomFeatures(nn.Module):
    "Features that nobody trained, behind which a head was: two thirds of the balls are recognised."
    class_names = ["baseball", "basketball", "volleyball", "soccer ball"]
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 1024), nn.ReLU())
        self.head = nn.Linear(1024, 4)

    def forward(self, x): return self.head(self.features(x))

def make():
    net = RandomFeatures()
    x, y = SportBalls().batch(range(1500))
    with torch.no_grad(): features = net.features(x)
    centre = features.mean(0)
    spread = features.std(0) + 1e-3
    seen = ((features - centre) / spread).double()
    head = nn.Linear(1024, 4).double()
    def loss():
        head.zero_grad()
        value = nn.functional.cross_entropy(head(seen), y) + 1e-4 * head.weight.square().sum()
        value.backward()
        return value
    torch.optim.LBFGS(head.parameters(), max_iter=60, line_search_fn="strong_wolfe").step(loss)
    weight = head.weight.detach() / spread
    net.head.weight.data = weight.float()
    net.head.bias.data = (head.bias.detach() - weight @ centre.double()).float()
    return net
'''


@pytest.mark.slow                                                # trains a head, and draws pictures of 64 x 64 pixels
def test_random_features_under_a_trained_head_are_fooled(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "WAYS", ("plain", "x0_hat"))
    monkeypatch.setattr(trials, "ENERGIES", (50.0,))
    monkeypatch.setattr(symptoms, "PATH_STEPS", 2)
    path = tmp_path / "fooled.py"
    path.write_text(FOOLED, encoding="utf-8")
    told = diagnose("laptop/ddpm", f"{path}:make", judge="laptop/judge", target="volleyball", minutes=60, steps=15,
                    count=8, out=tmp_path / "out")
    assert told["answer"]["kind"] in ("none", "unknown")
    assert told["reality"]["kind"] == "adversarial", told["reality"]
    assert told["reality"]["sentence"].startswith("No, it is adversarial")


@pytest.mark.slow                                                # all that a diagnosis tries, as in five minutes
@pytest.mark.parametrize("name, target, kinds, where", [
    ("robust", 0, ("as it is",), ("x_t",)),
    ("nonrobust", 2, ("with",), ("x0_hat",)),
])
def test_the_bundled_classifiers(name, target, kinds, where, tmp_path):
    told = diagnose("laptop/ddpm", f"laptop/{name}", judge="laptop/judge", target=target, minutes=60, out=tmp_path)
    assert told["answer"]["kind"] in kinds
    assert told["use"]["where"] in where
    assert told["reality"]["kind"] == "real"
