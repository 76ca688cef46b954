"""Networks in half precision: a folder and keys of their own, where it pays, held against the same reference."""
import json
import subprocess
from dataclasses import replace

import pandas as pd
import pytest
import torch
from test_compare import CLAIMS, CURVES, contents, plant
from tiny import stopped_at

from gradcheck.core import UserError, project_root
from gradcheck.models import networks
from gradcheck.models.networks import as_guide, has_units, peak_rate
from gradcheck.models.training import Recipe, on_device
from gradcheck.paper.compare import compare, write_reference
from gradcheck.paper.figures import figure_specs
from gradcheck.paper.presets import PRESETS, get_preset
from gradcheck.paper.reproduce import check_precision
from gradcheck.paper.settings import folder_of, preset_for, setting_of, spec_for
from gradcheck.runs import pace
from gradcheck.runs.cluster import Dask, computes_here
from gradcheck.runs.pace import check_pays, faster_precision, few_images, paces, speed_in
from gradcheck.runs.runs import Local, Machine, models


def as_it_is(spec, energies): return [spec.scale for _ in energies]


def test_a_precision_is_in_the_keys_and_in_the_folders_name():
    half, plain = preset_for("smoke", precision="bfloat16"), preset_for("smoke")
    assert folder_of(half, setting_of(dict(preset="smoke", precision="bfloat16"))) == "smoke-bfloat16"
    assert preset_for("smoke", precision="float32") == plain and half.scales == plain.scales
    mine, theirs = (figure_specs("figure_2", p, as_it_is) for p in (half, plain))
    assert {s.precision for s in mine.values()} == {"bfloat16"}
    assert not {s.key for s in mine.values()} & {s.key for s in theirs.values()}


def half(precision="bfloat16"): return spec_for("smoke", "nonrobust", "plain", precision=precision)


def machine(monkeypatch, peak, speed):
    "One whose matrix products and steps are so many times as fast in half precision as in float32."
    monkeypatch.setattr(networks, "peak_rate", lambda precision, size: {"float32": 1.0, "bfloat16": peak}[precision])
    seconds = {"float32": 1.0, "bfloat16": 1 / speed}
    monkeypatch.setattr(pace, "steps_of", lambda spec, *how: spec.precision)
    monkeypatch.setattr(pace, "paces", lambda streams, *how: [seconds[s] for s in streams])


@pytest.mark.parametrize("peak, speed, refused, chosen", [(2.0, 0.8, "0.80 times as fast", "float32"),
                                                          (0.5, 2.0, "no units for it", "float32"),
                                                          (2.0, 1.05, None, "float32"),
                                                          (2.0, 1.3, None, "bfloat16")])
def test_it_is_refused_where_a_step_would_be_slower_and_chosen_where_it_pays(monkeypatch, peak, speed, refused, chosen):
    machine(monkeypatch, peak, speed)
    check_pays(half("float32"))
    assert faster_precision(half("float32"), 8) == chosen
    if not refused: return check_pays(half())
    with pytest.raises(UserError, match=f"would be slower .*{refused}"): check_pays(half())


def test_one_slow_moment_refuses_nothing(monkeypatch):
    speeds = iter([0.8, 1.2, 0.8, 0.7])
    monkeypatch.setattr(pace, "speed_in", lambda *_: next(speeds))
    check_pays(half())
    with pytest.raises(UserError, match="0.80 times as fast"): check_pays(half())


@pytest.mark.parametrize("side, images", [(16, 4), (64, 4), (96, 1), (256, 1)])
def test_large_pictures_are_measured_by_one(side, images): assert few_images((3, side, side)) == images


@pytest.mark.parametrize("length, steps, patience, told", [(9, 3, 60, 4), (9, 3, 0, 2), (2, 3, 60, 2), (1, 3, 60, 1)])
def test_what_is_compared_takes_turns_until_enough_is_known(length, steps, patience, told):
    order = []

    def stream(name):
        for _ in range(length): yield order.append(name) or name
    found = paces([stream("a"), stream("b")], "cpu", steps, patience)
    assert order[:2 * told] == ["a", "b"] * told and len(order) == 2 * told
    assert len(found) == 2 and all(0 <= seconds < 60 for seconds in found)


def test_a_machine_is_measured():
    assert has_units("float32") and 0 <= speed_in(half("float32"), "bfloat16", 1) < 100


@pytest.mark.parametrize("rate, size", [(1e9, 256), (1e11, 1024), (1e14, 2048)])
def test_a_peak_is_measured_by_products_that_are_quick(monkeypatch, rate, size):
    "On a CPU that takes long for half precision, one product of the largest matrices would take a minute."
    asked = []

    def product(precision, n, rounds=2):
        asked.append((n, rounds))
        return 2 * n**3 / rate
    monkeypatch.setattr(networks, "product_seconds", product)
    assert peak_rate("bfloat16") == pytest.approx(rate)
    assert asked[-1] == (size, 6)
    assert sum(2 * n**3 / rate * rounds for n, rounds in asked) < 1


@pytest.mark.parametrize("peak, device, trained", [
    (2.0, "cpu", "bfloat16"),
    (0.5, "cpu", "float32"),
    (0.5, "cuda", "bfloat16"),
])
def test_a_training_is_in_half_precision_where_there_are_units(monkeypatch, capsys, peak, device, trained):
    machine(monkeypatch, peak, 1.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    asked = Recipe(steps=4, precision="bfloat16")
    recipe = on_device(asked, device)
    assert recipe == replace(asked, precision=trained)
    said = "gradcheck: this CPU has no units for bfloat16; the training is in float32, which is faster here.\n"
    assert capsys.readouterr().err == (said if recipe != asked else "")


def test_a_training_goes_on_in_the_precision_that_it_began_with(monkeypatch, tmp_path, cli, quickly_examined):
    "On a machine without units it begins in float32, and on one with them it is no other training for that."
    half = replace(get_preset("smoke"), recipes={"judge": Recipe(steps=4, batch_size=8, precision="bfloat16")})
    monkeypatch.setitem(PRESETS, "smoke", half)
    train = ("train", "classifier", "--kind", "judge", "--preset", "smoke", "--out", tmp_path)
    machine(monkeypatch, 0.5, 1.0)
    with stopped_at(2): assert cli(*train)[0] == 130
    machine(monkeypatch, 2.0, 1.0)
    code, _, err = cli(*train, "--resume")
    assert code == 0, err
    card = json.loads((tmp_path / "judge.json").read_text(encoding="utf-8"))
    assert card["recipe"]["precision"] == "float32" and card["steps"] == 4


@pytest.mark.parametrize("peak, precision, said", [(0.5, "bfloat16", True), (2.0, "bfloat16", False),
                                                   (0.5, "float32", False)])
def test_a_sample_in_half_precision_without_units_says_so(monkeypatch, tmp_path, cli, peak, precision, said):
    machine(monkeypatch, peak, 1.0)
    code, out, err = cli("sample", "--precision", precision, "--steps", 1, "--count", 1, "--out", tmp_path)
    assert code == 0, err
    assert ("this CPU has no units for bfloat16" in out) == said


@pytest.mark.parametrize("peak, here, said", [(0.5, True, True), (2.0, True, False), (0.5, False, False)])
def test_a_presets_own_precision_without_units_is_said(monkeypatch, peak, here, said):
    "The paper's preset is in half precision; nobody asked for it, so it is no error."
    machine(monkeypatch, peak, 1.0)
    told = []
    check_precision(get_preset("paper"), {}, None if here else Dask.__new__(Dask), told.append)
    assert ["no units for bfloat16" in line for line in told] == [True] * said


def test_classifiers_that_guide_are_in_half_precision_on_a_gpu_only():
    classifier = torch.nn.Linear(2, 2)
    assert as_guide(classifier, "bfloat16", "cpu") is classifier
    assert as_guide(classifier, "float32", "cuda") is classifier
    assert as_guide(classifier, "bfloat16", "cuda").precision == "bfloat16"
    denoiser, guide, _ = models(half())
    assert denoiser.precision == "bfloat16" and not isinstance(guide, networks.Autocast)


def test_who_computes_is_who_is_measured():
    assert computes_here(None) and computes_here(Local(Machine("cpu"))) and not computes_here(Dask.__new__(Dask))


def test_the_command_samples_in_half_precision_or_says_why_not(cli, monkeypatch, tmp_path):
    asked = ("reproduce", "figure_1", "--preset", "smoke", "--out", tmp_path)
    code, _, err = cli(*asked, "--precision", "half")
    assert code == 2 and "choose one of float32, bfloat16, float16" in err
    machine(monkeypatch, 2.0, 0.9)
    code, _, err = cli(*asked, "--precision", "bfloat16")
    assert code == 2 and "would be slower" in err and not list(tmp_path.rglob("*.png"))
    machine(monkeypatch, 2.0, 1.0)
    code, _, err = cli(*asked, "--precision", "bfloat16")
    assert code == 0, err
    table = pd.read_csv(tmp_path / "smoke-bfloat16" / "figure_1.csv")
    assert table["mean"].notna().all()


def test_the_reference_is_that_of_float32_and_the_precision_is_said(tmp_path):
    results = tmp_path / "results"
    for figure, table in (("figure_1", CURVES), ("claims", CLAIMS)): plant(results, figure, table)
    reference = write_reference(results, tmp_path / "reference")
    for figure, table in (("figure_1", CURVES.assign(mean=0.51)), ("claims", CLAIMS)):
        plant(results, figure, table, setting=dict(precision="bfloat16"))
    before = contents(reference)
    c = compare(results, reference)
    assert c.figures["outcome"].tolist() == ["within its interval", "identical"] and not c.changed
    assert "networks in bfloat16" in c.text and contents(reference) == before
    plant(results, "figure_1", CURVES, setting=dict(precision="bfloat16", seed=1))
    plant(results, "claims", CLAIMS, setting=dict(precision="bfloat16", seed=1))
    with pytest.raises(UserError, match="same setting"): compare(results, reference)


@pytest.mark.parametrize("given, said", [
    (["FAST=1"], True),
    (["FAST=yes"], True),
    ([], False),
    (["FAST=0"], False),
    (["FAST=no"], False),
])
def test_make_figures_fast(given, said):
    call = ["make", "-n", "-C", project_root(), "figures", *given]
    done = subprocess.run(call, capture_output=True, encoding="utf-8", check=True)
    assert ("--precision bfloat16" in done.stdout) is said


def test_a_switch_of_make_that_is_neither_on_nor_off_is_refused():
    call = ["make", "-n", "-C", project_root(), "figures", "AGAIN=nope"]
    done = subprocess.run(call, capture_output=True, encoding="utf-8")
    assert done.returncode == 2 and "AGAIN=nope: give 1 or 0" in done.stderr


def test_a_precision_that_is_the_presets_own_is_no_setting():
    assert setting_of(dict(preset="smoke", precision="float32")) == {} == setting_of(dict(preset="smoke"))
    assert setting_of(dict(preset="paper", precision="float32")) == dict(precision="float32")
    assert setting_of(dict(preset="paper", precision="bfloat16")) == {}
