"""Runs on the bundled weights: what they depend on, what survives a kill, what is done with a damaged cache."""
import re
import signal
import sys
import time
from dataclasses import replace

import forks
import pytest
import torch
from PIL import Image

from gradcheck.core import UserError, seeded
from gradcheck.models.checkpoints import save_weights
from gradcheck.models.ddpm import GaussianStart
from gradcheck.models.unet import UNet, UNetConfig
from gradcheck.paper.presets import get_preset
from gradcheck.paper.settings import preset_for, spec_for
from gradcheck.paper.variants import COST, ENERGY, as_costly, cost, is_cheaper
from gradcheck.paper.figures import FIGURES, figure_specs
from gradcheck.paper.saved import figure_runs
from gradcheck.paper.plan import plan, plan_text
from gradcheck.models.batches import MicroBatch
from gradcheck.pictures import images_to_uint8, uint8_to_images
from gradcheck.runs.cluster import portable
from gradcheck.runs.loose import in_tiles
from gradcheck.runs.chunks import cache_folder
from gradcheck.runs.runs import chunk_path, chunks_of, read_chunk, run, steps_of
from gradcheck.runs.scales import interpolate_scales, matched_scales, with_scale
from gradcheck.data.sportballs import CLASSES
from gradcheck.data.classes import class_in_data, parse_target, same_classes
from gradcheck.runs.specs import RunSpec

SPEC = spec_for("laptop", "nonrobust", "both", steps=4, count=6)


def equal(a, b):
    return (
        torch.equal(a.samples, b.samples)
        and torch.equal(a.judge, b.judge)
        and all(torch.equal(a.trace[k].nan_to_num(9), b.trace[k].nan_to_num(9)) for k in a.trace)
    )


@pytest.mark.parametrize(
    "variant", ["unguided", "plain", "x0_hat", "adam", "both", "stopped", "x0_hat_smooth", "recurrent"]
)
def test_a_picture_does_not_depend_on_the_batch(variant, tmp_path, global_rng_untouched):
    spec = spec_for("laptop", "nonrobust", variant, steps=4, count=5)
    whole = list(steps_of(spec, range(18), micro_batch=None))
    split = list(steps_of(spec, range(5), micro_batch=MicroBatch(2, tile=1)))
    alone = list(steps_of(spec, range(3, 4), micro_batch=None))
    # the noise, bit for bit
    assert torch.equal(whole[0].x_t[3], alone[0].x_t[0]) and torch.equal(whole[0].x_t[:5], split[0].x_t)
    final = images_to_uint8(whole[-1].x_prev).int()
    assert (images_to_uint8(split[-1].x_prev).int() - final[:5]).abs().max() <= 1
    assert (images_to_uint8(alone[-1].x_prev).int()[0] - final[3]).abs().max() <= 1


def test_the_same_seed_gives_the_same_bytes_twice(tmp_path, global_rng_untouched):
    threes = in_tiles(None, 3)
    a, b = (run(SPEC, 3, threes, tmp_path / name) for name in "ab")
    assert equal(a, b)
    files = [sorted((tmp_path / x).rglob("*.safetensors")) for x in "ab"]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]] and len(files[0]) == 2
    assert not equal(a, run(replace(SPEC, seed=1), 3, threes))


def test_the_cache_is_used_and_a_larger_count_extends_a_run(tmp_path, monkeypatch):
    small = run(replace(SPEC, count=3), 3, cache=tmp_path)
    import gradcheck.runs.runs as runs
    computed = []
    compute = runs.compute
    monkeypatch.setattr(
        runs, "compute", lambda spec, images, *rest: computed.append(images) or compute(spec, images, *rest)
    )
    large = run(SPEC, 3, cache=tmp_path)
    assert computed == [range(3, 6)] and torch.equal(large.samples[:3], small.samples)
    run(SPEC, 3, cache=tmp_path)
    assert len(computed) == 1
    assert large.trace["cosine"].shape == (4, 6) and large.samples.shape == (6, 3, 64, 64) and len(large.times) == 4


def test_kill_9_in_the_middle_then_resume(tmp_path):
    code = f"""
import torch; torch.set_num_threads(1)
from gradcheck.runs.loose import in_tiles
from gradcheck.runs.runs import *
from gradcheck.runs.specs import RunSpec
run(RunSpec(where='x0_hat', stabilizer='adam', steps=4, count=8), 2, in_tiles(None, 2), {str(tmp_path)!r})
"""
    spec = RunSpec(where="x0_hat", stabilizer="adam", steps=4, count=8)
    process = forks.Forked([sys.executable, "-c", code])
    while not list(tmp_path.rglob("*.safetensors")) and process.poll() is None: time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = [images for images in chunks_of(spec, 2) if read_chunk(chunk_path(spec, images, tmp_path), spec)]
    assert 1 <= len(finished) < 4
    assert equal(*(run(spec, 2, in_tiles(None, 2), cache) for cache in (tmp_path, tmp_path / "unbroken")))


@pytest.mark.parametrize("seed", [0, 32_767, 32_768, 2**32, 2**53 + 1, 2**63 - 1])
def test_a_seed_is_taken_exactly(seed):
    for written in (seed, str(seed)): assert RunSpec(seed=written).seed == seed
    assert len({RunSpec(seed=s).key for s in {seed, max(seed - 1, 0), min(seed + 1, 2**63 - 1)}}) >= 2


@pytest.mark.parametrize(
    "seed", [-1, 2**63, 2**64, 10**300, "", "1e3", 0.5, float("nan"), float("inf"), None, True, "é"]
)
def test_what_is_no_seed_is_refused_before_any_work(seed):
    with pytest.raises(UserError, match="whole number") as e: RunSpec(seed=seed)
    assert len(str(e.value)) < 200


def test_the_largest_seed_samples():
    assert run(replace(SPEC, seed=2**63 - 1, steps=2, count=1), 1).samples.shape == (1, 3, 64, 64)


def test_pictures_of_renewed_streams_are_not_taken_from_old_files():
    old, new = replace(SPEC, seed=7), replace(SPEC, seed=40_000)
    assert chunk_path(old, range(16), "c").stem == "000000-000016"
    assert chunk_path(old, range(10_944, 10_960), "c").stem == "010944-010960-streams2"
    assert chunk_path(new, range(10_944, 10_960), "c").stem == "010944-010960"      # there the key knows


def test_more_than_fits_is_refused_with_what_it_would_take(monkeypatch):
    with pytest.raises(UserError, match="12,288 GB"): RunSpec(count=10**9)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"total": 10**6}))
    with pytest.raises(UserError, match="of memory, this machine has"): run(replace(SPEC, count=100))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_a_damaged_chunk_is_computed_again_with_a_warning(damage, tmp_path):
    spec = replace(SPEC, count=2)
    first = run(spec, 2, cache=tmp_path)
    path = chunk_path(spec, range(2), tmp_path)
    data = bytearray(path.read_bytes())
    if damage == "flipped": data[-5] ^= 1
    if damage == "foreign":
        other = replace(spec, seed=5)
        run(other, 2, cache=tmp_path)
        data = chunk_path(other, range(2), tmp_path).read_bytes()
    path.write_bytes({"truncated": data[:-40], "empty": b""}.get(damage, bytes(data)))
    with pytest.warns(UserWarning, match="computed again"): again = run(spec, 2, cache=tmp_path)
    assert equal(first, again)
    assert equal(first, run(spec, 2, cache=tmp_path))


def nominal(spec, energies): return [spec.scale * e / ENERGY for e in energies]              # no pilots


def test_figures_share_runs():
    keys = {
        (figure, label): spec.key
        for figure in FIGURES
        for label, spec in figure_specs(figure, "laptop", scales=nominal).items()
    }
    assert (
        keys["figure_1", "non-robust"]
        == keys["figure_2", "no modification"]
        == keys["table_1", "non-robust, no modification"]
    )
    assert (
        keys["figure_1", "robust"] == keys["figure_3", "no stabilisation"]
        and keys["figure_4", "unguided"] == keys["table_1", "no guidance"]
    )
    assert keys["figure_7", "non-robust, ADAM"] == keys["figure_6", "non-robust, ADAM · baseball"]
    assert {k for (f, _), k in keys.items() if f == "claims"} == {
        k for (f, _), k in keys.items() if f in ("figure_5", "table_1")
    }
    assert (
        len({k for (f, _), k in keys.items() if f in ("figure_1", "figure_2", "figure_3", "figure_4", "table_1")}) == 9
    )


def test_layouts_follow_the_preset_and_what_is_changed():
    p = get_preset("laptop")
    specs = figure_specs("figure_5", "laptop", scales=nominal)
    assert len(specs) == 1 + 8 * len(p.energies) and {(s.steps, s.count) for s in specs.values()} == {
        (p.sweep_steps, p.sweep_count)
    }
    assert [s.scale for label, s in specs.items() if label.startswith("robust, ADAM ·")] == [
        spec_for("laptop", "robust", "adam").scale * e / ENERGY for e in p.energies
    ]
    assert {
        (s.steps, s.count, s.seed)
        for s in figure_specs("figure_5", preset_for("laptop", steps=7, count=3), scales=nominal, seed=2).values()
    } == {(7, 3, 2)}
    assert [
        s.target
        for label, s in figure_specs("figure_6", "smoke", scales=nominal).items()
        if label.startswith("robust, ADAM ·")
    ] == [0, 1, 2, 3]


def test_costs():
    plain, x0_hat = (spec_for("laptop", "nonrobust", v, steps=50) for v in ("plain", "x0_hat"))
    assert (
        cost(replace(plain, where="unguided")) == 50
        and cost(plain) == pytest.approx(50 * COST["x_t"])
        and cost(replace(plain, repeats=3)) == pytest.approx(3 * cost(plain))
    )
    assert cost(replace(x0_hat, interval=(300, 100))) == pytest.approx(50 + 25 * (COST["x0_hat"] - 1))
    assert (
        as_costly(x0_hat, cost(x0_hat)) == x0_hat
        and as_costly(plain, 1e9).steps == 400
        and as_costly(x0_hat, 1).steps == 2
    )
    long = replace(plain, steps=400)
    assert not is_cheaper(long, cost(long)) and is_cheaper(long, 300 * COST["x0_hat"])   # which are 550 of its steps
    specs = figure_specs("table_1_appendix", "laptop", scales=nominal)
    assert len(specs) == 1 + 15 * 2
    for label, spec in specs.items():
        if label.endswith("equal cost"): assert cost(spec) == pytest.approx(50 * COST["x0_hat"], rel=0.05), label


@pytest.mark.parametrize("steps, interval", [(5, (300, 295)), (2, (398, 396)), (1, (398, 0))])
def test_an_interval_between_two_steps_is_refused_not_left_unguided(steps, interval, own_cache):
    "Each of the sampling steps passes it by."
    with pytest.raises(UserError, match=f"holds none of the {steps} time steps"):
        run(replace(SPEC, steps=steps, count=1, interval=interval))
    assert not own_cache.exists()


def test_an_interval_without_guidance_is_refused(own_cache):
    with pytest.raises(UserError, match="without guidance"):
        run(replace(SPEC, where="unguided", steps=2, count=1, interval=(300, 100)))
    assert not own_cache.exists()


def test_an_interval_and_recurrence_in_a_run():
    some = run(replace(SPEC, interval=(300, 100), scale=20.0), 6)
    inside = (some.times <= 300) & (some.times >= 100)
    assert (
        (some.trace["energy"][inside] > 0).all()
        and (some.trace["energy"][~inside] == 0).all()
        and inside.any()
        and not inside.all()
    )
    twice = run(replace(SPEC, repeats=2), 6)
    assert twice.trace["cosine"].shape == (2 * SPEC.steps, 6) and twice.times.tolist() == sorted(
        [*run(SPEC, 6).times.tolist()] * 2, reverse=True
    )
    assert (twice.trace["energy"][:-2] > 0).all() and not torch.equal(twice.samples, run(SPEC, 6).samples)


MINE = (
    "from gradcheck.guidance.stabilizers import Stabilizer\n"
    "class Mine(Stabilizer):\n"
    "    def __call__(self, g): return {} * g\n"
    "class Half: pass\n"
)


def test_a_stabilizer_of_ones_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(MINE.format(2))
    spec = replace(SPEC, stabilizer=f"{file}:Mine", where="x_t")
    theirs = replace(SPEC, stabilizer="none", where="x_t", scale=2 * spec.scale)
    # g' = 2 g: another norm, the same pictures
    assert equal(run(spec, 6), run(theirs, 6)) is False and torch.equal(run(spec, 6).samples, run(theirs, 6).samples)
    before = spec.key
    file.write_text(MINE.format(3))
    # a changed file is a changed setting
    assert replace(spec).key != before
    file.write_text(MINE.format(2) + "class Other(Mine): pass\n")
    # two classes of one file are two settings
    assert replace(spec).key != replace(spec, stabilizer=f"{file}:Other").key
    with pytest.raises(UserError, match="is a Half; give an object with __call__"): RunSpec(stabilizer=f"{file}:Half")
    p = preset_for("laptop", stabilizer=f"{file}:Mine")
    assert (
        re.fullmatch("laptop-Mine-[0-9a-f]{6}", p.name)
        and p.scales is None
        and "Mine" in figure_specs("figure_2", p, scales=nominal)
        and "x̂₀-prediction + Mine" in figure_specs("figure_3", p, scales=nominal)
    )
    assert {s.stabilizer for s in figure_specs("figure_2", p, scales=nominal).values()} == {"none", f"{file}:Mine"}
    with pytest.raises(UserError, match="about ADAM"): figure_specs("claims", p, scales=nominal)


def test_scales_of_equal_energy(tmp_path):
    for variant in ("adam", "plain"):
        spec = spec_for("smoke", "nonrobust", variant, steps=6)
        for wanted, scale in zip((6.0, 60.0), matched_scales(spec, (6.0, 60.0))):
            assert run(replace(spec, scale=scale, count=16), 16).energy.mean() == pytest.approx(wanted, rel=0.25)


def test_interpolated_scales():
    s = [0.1, 1.0, 10.0]
    assert interpolate_scales(s, [2, 20, 200], [2, 20, 200]) == s and interpolate_scales(
        s, [2, 20, 200], [0.2, 2000]
    ) == [0.01, 100.0]
    # noise in a pilot does not break it
    assert interpolate_scales(s, [5, 4.9, 50], [50]) == pytest.approx([10.0])
    # nor a guidance that is not there
    assert all(
        0 < x < 1e9 for energies in ([0, 0, 0], [0, 0, 3], [5, 5, 5]) for x in interpolate_scales(s, energies, [2, 200])
    )


@pytest.mark.parametrize("energy", [0, 0.0, -1.0, float("nan"), float("inf")])
def test_an_energy_that_is_none_is_refused_before_the_pilots(energy, own_cache):
    for call in (lambda: matched_scales(SPEC, [20.0, energy]), lambda: with_scale(SPEC, energy)):
        with pytest.raises(UserError, match="above 0"): call()
    with pytest.raises(UserError, match="above 0"): interpolate_scales([0.1, 1.0], [2, 20], [energy])
    assert not own_cache.exists()


def test_a_picture_that_is_not_finite_is_no_picture(own_cache):
    with pytest.raises(UserError, match="not finite"): run(replace(SPEC, where="x_t", scale=1e38, count=1, steps=3), 1)
    assert not list(own_cache.rglob("*.safetensors"))


def test_the_plan_counts_what_is_there_and_writes_nothing(own_cache):
    table = plan(["figure_1", "figure_2", "figure_5"], "smoke").set_index("figure")
    assert not own_cache.exists() and (table["cached"] == 0).all() and (table["seconds"] > 0).all()
    p = get_preset("smoke")
    # Figure 2 needs three that Figure 1 has not made; Figure 5 has a probe for each of its eight curves
    assert table["runs"].tolist() == [2, 3, 1 + 8 * (len(p.energies) + 1)]
    assert table.loc["figure_1", "image_steps"] == 2 * p.steps * p.count
    figure_runs("figure_1", "smoke")
    again = plan(["figure_1", "figure_2"], "smoke").set_index("figure")
    assert (
        again.loc["figure_1", ["runs", "cached", "image_steps", "seconds"]].tolist() == [2, 2, 0, 0]
        and again.loc["figure_2", "cached"] == 0
    )
    assert (
        "figure_2" in plan_text(again.reset_index())
        and "all" in plan_text(again.reset_index())
        and cache_folder() == own_cache
    )


def test_every_field_but_the_count_changes_the_key():
    base = RunSpec()
    changed = dict(
        classifier="laptop/robust",
        judge="laptop/robust",
        target=1,
        objective="logit",
        where="x0_hat",
        stabilizer="ema",
        scale=1.5,
        steps=10,
        seed=1,
        sampler="ddim",
        start="standard",
        clip=False,
        precision="bfloat16",
        state="float16",
        interval=(300, 100),
        repeats=2,
    )
    keys = {replace(base, **{k: v}).key for k, v in changed.items()} | {base.key}
    cone = replace(base, where="x_t_cone", robust="laptop/robust")
    assert replace(cone, robust="laptop/judge").key != cone.key
    best = replace(base, where="unguided", candidates=2)
    assert replace(best, candidates=3).key != best.key
    assert len(keys) == len(changed) + 1
    assert (
        replace(base, count=7).key == base.key
        and replace(base, scale=10).key == base.key
        and replace(base, target="baseball").key == base.key
    )
    assert set(changed) | {"count", "denoiser", "robust", "candidates"} == set(base.__dataclass_fields__)


def test_pixels_round_trip():
    grey = torch.arange(256).byte()
    assert torch.equal(images_to_uint8(uint8_to_images(grey)), grey)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(stabilizer="adm"), "'adam'"),
        (dict(where="x0hat"), "'x0_hat'"),
        (dict(target=4), "soccer ball"),
        (dict(steps=2.5), "whole number"),
        (dict(count="x"), "whole number"),
        (dict(scale="ten"), "a number"),
        (dict(steps=401), "T = 400"),
        (dict(steps=0), "T = 400"),
        (dict(scale=float("nan")), "finite"),
        (dict(scale=-1.0), "finite"),
        (dict(count=0), "from 1 to 1,000,000"),
        (dict(classifier="laptop/rubust"), "laptop/robust"),
        (dict(sampler="dim"), "'ddim'"),
        (dict(interval="100-300"), "as in 300-100"),
        (dict(interval=(5, -1)), "as in 300-100"),
        (dict(repeats=0), "from 1 to 1,000"),
        (dict(stabilizer="no.py:X"), "cannot be imported"),
        (dict(start="zero"), "matched"),
        (dict(objective="logits"), "'logit'"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(UserError, match=message): RunSpec(**change)


def test_targets_have_names():
    assert parse_target("soccer ball", CLASSES) == 3 and parse_target("2", CLASSES) == 2
    with pytest.raises(UserError, match="'volleyball'"): parse_target("voleyball", CLASSES)
    for wrong in ("-1", -1, "4", 4, 10**30, "9" * 5000):
        with pytest.raises(UserError, match="3 .soccer ball."): parse_target(wrong, CLASSES)


NUMBERED = ("1", "2", "3")


CALLED_BY_NUMBERS = """
import torch
def make():
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 3))
    model.class_names = ["1", "2", "3"]
    return model
"""


def test_a_copy_of_a_setting_and_a_cluster_mean_the_same_class(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(CALLED_BY_NUMBERS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    spec = RunSpec(classifier="own.py:make", judge=None, target="3", steps=2, count=1)
    assert spec.target == 2 and replace(replace(spec, seed=1), seed=0) == spec
    assert portable(spec).target == 2 and portable(spec).key == spec.key
    p = preset_for("smoke", denoiser="laptop/ddpm", classifier="own.py:make")
    sampled = {label: s.target for label, s in figure_specs("figure_6", p, scales=nominal).items()}
    assert {label[-1]: target for label, target in sampled.items()} == {"1": 0, "2": 1, "3": 2}


@pytest.fixture
def tiny(tmp_path):
    "A denoiser for 16 x 16 with its matched start, and a classifier for it."
    with seeded(0):
        net = UNet(UNetConfig(size=16, widths=(8, 16), attention=(False, False), layers=1, groups=4, head_dim=4))
    save_weights(net, tmp_path / "ddpm.safetensors", dict(diffusion=dict(T=50)))
    save_weights(GaussianStart.fit(torch.rand(20, 3, 16, 16), rank=4), tmp_path / "start.safetensors", {})
    (tmp_path / "own.py").write_text(CALLED_BY_NUMBERS, encoding="utf-8")
    return tmp_path


def own(folder): return dict(denoiser=f"{folder}/ddpm.safetensors", classifier=f"{folder}/own.py:make")


def damage(folder, how):
    if how == "no card": (folder / "start.json").unlink()
    if how == "no weights": (folder / "start.safetensors").unlink()
    if how == "half a card": (folder / "start.json").write_text("{", encoding="utf-8")


@pytest.mark.parametrize("how", ["no card", "no weights", "half a card"])
def test_a_start_that_cannot_be_read_is_an_error_and_no_other_start(tiny, how):
    damage(tiny, how)
    with pytest.raises(UserError, match="start"): spec_for(preset_for("smoke", **own(tiny)), "own", "plain")
    assert spec_for(preset_for("smoke", **own(tiny)), "own", "plain", start="standard").start == "standard"


def test_a_start_that_is_damaged_is_an_error_before_a_step(tiny, own_cache):
    spec = spec_for(preset_for("smoke", **own(tiny)), "own", "plain", steps=2, count=1)
    assert spec.start == "matched"
    data = bytearray((tiny / "start.safetensors").read_bytes())
    data[-3] ^= 1
    (tiny / "start.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="damaged"): run(spec, 1)
    assert not list(own_cache.rglob("*.safetensors"))


def test_where_there_is_no_start_sampling_starts_from_noise(tiny):
    for how in ("no card", "no weights"): damage(tiny, how)
    assert spec_for(preset_for("smoke", **own(tiny)), "own", "plain").start == "standard"
    with pytest.raises(UserError, match="no matched start"): RunSpec(**own(tiny), judge=None, steps=2)


TWO = CALLED_BY_NUMBERS + """
def two():
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2))
def swapped():
    model = make()
    model.class_names = ["2", "1", "3"]
    return model
def unnamed():
    model = make()
    del model.class_names
    return model
"""


@pytest.mark.parametrize("role", ["robust", "judge"])
def test_models_with_other_classes_are_refused_at_the_start(tiny, cli, role):
    (tiny / "own.py").write_text(TWO, encoding="utf-8")
    models = [f"--{name}={value}" for name, value in own(tiny).items()]
    for other in ("two", "swapped"):
        args = ("reproduce", "figure_1", "--preset", "smoke", *models, f"--{role}", f"{tiny}/own.py:{other}")
        code, _, err = cli(*args, "--out", tiny)
        assert code == 2 and "same classes in the same order" in err and err.count("\n") == 1
    assert preset_for("smoke", **own(tiny), **{role: f"{tiny}/own.py:unnamed"}).denoiser == own(tiny)["denoiser"]


def test_data_of_other_classes_are_refused_at_the_start(tiny, cli):
    for name in ("1", "2", "4"):
        (tiny / "pictures" / name).mkdir(parents=True)
        for i in range(20): Image.new("RGB", (16, 16), (i, 0, 0)).save(tiny / "pictures" / name / f"{i}.png")
    models = [f"--{name}={value}" for name, value in own(tiny).items()]
    args = ("reproduce", "figure_1", "--preset", "smoke", *models, "--out", tiny / "out", "--data", tiny / "pictures")
    code, _, err = cli(*args)
    assert code == 2 and "called the same" in err and "Traceback" not in err and not (tiny / "out").exists()


def test_classes_of_data_are_matched_by_name():
    names, folders = ["red", "green", "blue"], ["blue", "green", "red"]
    assert [class_in_data(k, names, folders) for k in range(3)] == [2, 1, 0]
    assert [class_in_data(k, ["0", "1", "2"], folders) for k in range(3)] == [0, 1, 2]
    assert class_in_data(1, ["no", "yes"], ["no Male", "Male"]) == 1
    for wrong in (["red", "green", "yellow"], ["red", "green"], ["0", "1"]):
        with pytest.raises(UserError, match="same classes"): class_in_data(0, wrong, folders)


@pytest.mark.parametrize("names, others, same", [
    (["a", "b"], ["a", "b"], True),
    (["a", "b"], ["b", "a"], False),
    (["a", "b"], ["0", "1"], True),
    (["a", "b"], ["0", "1", "2"], False),
    (["no", "yes"], ["woman", "man"], True),
    (["1", "2"], ["0", "1"], True),
    (["1", "2"], ["2", "3"], False),
])
def test_which_classifiers_may_stand_together(names, others, same):
    assert same_classes(names, others) is same_classes(others, names) is same


@pytest.mark.parametrize("target, index", [("1", 0), ("2", 1), ("3", 2), (0, 0), (1, 1), (2, 2)])
def test_a_name_is_read_once_and_an_index_is_never_a_name(target, index):
    again = parse_target(target, NUMBERED)
    assert again == index
    for _ in range(3): again = parse_target(again, NUMBERED)
    assert again == index


@pytest.mark.parametrize("target, classes, message", [
    ("0", NUMBERED, "names 1, 2, 3"),
    (3, NUMBERED, r"2 \(3\)"),
    ("a", ("a", "a", "b"), "several classes"),
    (True, CLASSES, "unknown class"),
    (2.0, CLASSES, "target class"),
    (None, CLASSES, "unknown class"),
])
def test_what_is_no_class_is_refused(target, classes, message):
    with pytest.raises(UserError, match=message): parse_target(target, classes)
