"""What pilots cost: little beside the run that they serve, and for the presets of figures exactly what they always
did."""
from dataclasses import replace

import pytest
import torch

from gradcheck.models.batches import TILE
from gradcheck.paper.figures import FIGURES, figure_specs
from gradcheck.paper.presets import get_preset
from gradcheck.paper.saved import figure_runs, uncalibrated
from gradcheck.paper.plan import plan, runs_digest
from gradcheck.paper.settings import preset_for, spec_for
from gradcheck.core import UserError
from gradcheck.runs import runs
from gradcheck.runs.chunks import loose_folder
from gradcheck.runs.loose import as_they_come, in_tiles
from gradcheck.runs.runs import Local, run
from gradcheck.runs.scales import (PILOTS, calibrate, is_small, matched_scales, not_faded, pilot_specs, probe_of, reach,
                                   share_of)
from gradcheck.runs.specs import PROBE, RunSpec


def plain(**fields): return spec_for("laptop", "nonrobust", "plain", **fields)


@pytest.mark.parametrize("mode", ["corrected", "paper"])
def test_pilots_of_the_laptops_preset_are_what_they_always_were(mode):
    "Their scales are in the keys of caches: another pilot would be another scale."
    asked = {s.key: s for f in FIGURES for s in uncalibrated(f, preset_for("laptop", mode=mode))}
    assert asked
    for spec in asked.values():
        as_ever = [replace(spec, scale=spec.scale * f, count=16) for f in PILOTS]
        assert pilot_specs(spec) == as_ever and probe_of(spec) == replace(spec, scale=PROBE, count=16)


@pytest.mark.parametrize("steps", [16, 20, 50, 400])
@pytest.mark.parametrize("count", [1, 4, 15])
def test_a_small_run_has_one_pilot_that_costs_at_most_a_quarter(steps, count):
    spec = plain(steps=steps, count=count)
    (pilot,) = pilot_specs(spec)
    whole = spec.count * spec.calls
    assert is_small(spec) and pilot == probe_of(spec) and pilot.count * pilot.calls <= whole / 4


def test_a_run_of_a_whole_tile_is_not_small():
    assert not is_small(plain(steps=400, count=TILE))
    assert is_small(plain(steps=400, count=TILE - 1))


@pytest.mark.parametrize("steps, probed", [(1, 1), (3, 3), (4, 4), (5, 4), (50, 10)])
def test_a_probe_has_no_more_steps_than_its_run(steps, probed):
    (probe,) = pilot_specs(plain(steps=steps, count=2))
    assert (probe.steps, probe.count) == (probed, 2)


def test_a_probe_guides_at_some_step_at_least():
    "Of 50 time steps, a probe in 10 would visit none between 300 and 295."
    narrow = plain(steps=50, count=1, interval=(300, 295))
    assert reach(replace(narrow, steps=10)) == 0 < reach(narrow) and probe_of(narrow).steps == 50
    assert share_of(narrow, narrow) == 1 and 0 < share_of(plain(steps=10), plain(steps=50)) < 1


@pytest.mark.parametrize("variant, steps", [("plain", 20), ("adam", 20), ("plain", 3), ("adam", 3)])
def test_the_scale_of_a_small_run_injects_about_what_was_asked_for(variant, steps, own_cache):
    spec = replace(spec_for("laptop", "nonrobust", variant, steps=steps, count=2), scale=PROBE)
    calibrate([spec], 20.0)
    kept = list(own_cache.rglob("*.safetensors"))
    scales = matched_scales(spec, [20.0, 40.0])
    assert len(kept) == 1 and kept == list(own_cache.rglob("*.safetensors"))         # the probe, and nothing else
    assert scales[1] == pytest.approx(2 * scales[0], rel=0.01)
    assert 20 / 3 < run(replace(spec, scale=scales[0])).energy.mean() < 3 * 20


def test_the_plan_of_a_small_figure_counts_its_probes_and_then_has_them(own_cache):
    small = preset_for("laptop", steps=10, count=1, mode="paper")
    asked = uncalibrated("figure_1", small)
    before = plan(["figure_1"], small).iloc[0]
    assert before["cached"] == 0 and before["runs"] == len(asked) + len(figure_specs("figure_1", small, scales=guess))
    calibrate(asked, 20.0, in_tiles(None, small.tile))
    assert plan(["figure_1"], small).iloc[0]["cached"] == len(asked)


def guess(spec, energies): return [1.0 for _ in energies]


def bytes_in(folder): return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.safetensors")}


def test_a_few_images_as_they_come_are_kept_apart_from_those_of_figures(own_cache):
    spec = plain(steps=3, count=2)
    loose = run(spec, **as_they_come(spec))
    assert not bytes_in(own_cache / spec.key) and len(bytes_in(loose_folder())) == 1
    filled = run(spec)
    assert bytes_in(own_cache / spec.key) and len(bytes_in(loose_folder())) == 1
    assert (loose.samples.int() - filled.samples.int()).abs().max() <= 1


def test_whole_tiles_are_the_runs_that_figures_keep(own_cache, monkeypatch):
    sizes = []
    compute = runs.compute
    monkeypatch.setattr(runs, "compute", lambda *args: sizes.append(args[4].tile) or compute(*args))
    spec = plain(steps=2, count=TILE)
    run(spec, **as_they_come(spec))
    assert sizes == [TILE] and not loose_folder().exists() and len(bytes_in(own_cache / spec.key)) == 1
    run(spec, **as_they_come(spec))
    few = replace(spec, count=3)
    run(few, **as_they_come(few))
    assert sizes == [TILE, 1]


def test_a_figure_of_few_images_costs_as_few(own_cache, monkeypatch):
    "Its probes too: nothing is filled up beyond what was asked for."
    seen = []
    compute = runs.compute
    monkeypatch.setattr(runs, "compute", lambda spec, images, *how: seen.append((len(images), how[2].tile))
                        or compute(spec, images, *how))
    figure_runs("figure_1", preset_for("laptop", steps=5, count=1, mode="paper"))
    assert set(seen) == {(1, 1)} and get_preset("laptop").tile == TILE and get_preset("smoke").tile == 4
    assert in_tiles(None, 3).machine.tile == 3 and Local().machine.tile == TILE


@pytest.mark.parametrize("preset", [preset_for("laptop", steps=2, count=3), preset_for("smoke", steps=2)],
                         ids=["of few images", "smoke"])
def test_a_figure_of_few_images_leaves_nothing_that_is_taken_for_whole_tiles(own_cache, preset):
    "Which `sample --fill` promises; what it left is known to the plan, and found again."
    runs_of = figure_runs("figure_4", preset)
    assert {p.parts[0] for p in bytes_in(own_cache)} == {"loose"}
    assert plan(["figure_4"], preset, "cpu")["image_steps"].sum() == 0 and runs_digest("figure_4", preset)
    spec = next(iter(runs_of.values())).spec
    assert torch.equal(run(spec, **as_they_come(spec)).samples, next(iter(runs_of.values())).samples)
    before = bytes_in(own_cache)
    figure_runs("figure_4", preset)
    assert bytes_in(own_cache) == before


def test_the_same_images_as_they_come_are_the_same_bytes_twice(tmp_path, monkeypatch):
    made = []
    for folder in "ab":
        monkeypatch.setenv("GRADCHECK_CACHE", str(tmp_path / folder))
        spec = plain(steps=3, count=3)
        run(spec, **as_they_come(spec))
        made.append(bytes_in(tmp_path / folder))
    assert made[0] == made[1] and len(made[0]) == 1


def test_sample_fills_batches_up_where_that_is_asked_for(cli, tmp_path, own_cache):
    few = ("sample", "--steps", 2, "--count", 2, "--out", tmp_path)
    assert cli(*few)[0] == 0 and len(bytes_in(own_cache)) == len(bytes_in(loose_folder())) == 1
    assert cli(*few, "--fill")[0] == 0 and len(bytes_in(own_cache)) == 2


def test_a_scale_that_no_gradient_is_worth():
    assert not_faded(RunSpec(scale=20.0)) == RunSpec(scale=20.0)
    with pytest.raises(UserError, match=r"steps 3 and count 4, it would take a scale of 1.75e\+09; take more steps"):
        not_faded(RunSpec(scale=1.75e9, steps=3, count=4))
