"""What the explorer shows is what a run computes: recording, pictures, curves, films, code, the thread, and the widgets
without a browser."""

import base64
import io
import json
import re
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from gradcheck.models.networks import use_threads
from gradcheck.app.animation import Storyboard, animation, moments, save_picture
from gradcheck.models.classifiers import class_probabilities
from gradcheck.core import UserError
from gradcheck.app.display import board, chart, curves, path, screen
from gradcheck.app.controls import EQUAL, TRIES, Worker
from gradcheck.app.explorer import explore
from gradcheck.guidance.sampling import NonFiniteGradient
from gradcheck.pictures import image_grid
from gradcheck.pictures import images_to_uint8
from gradcheck.runs.runs import models, run, steps_of
from gradcheck.runs.specs import RunSpec
from gradcheck.pictures import png
from gradcheck.app.trajectories import (
    COOL_WARM,
    Frame,
    Trajectory,
    before,
    code_of,
    difference_pictures,
    diverging,
    frame_pictures,
    length,
    limit_of,
    record,
    rows_of,
    save_run,
    words,
)

pytestmark = pytest.mark.usefixtures("global_rng_untouched")
A = RunSpec(where="x_t", scale=2.0, steps=4, count=2, target=2, seed=5)
B = replace(A, where="x0_hat", stabilizer="adam", scale=0.1, classifier="laptop/robust")


@pytest.fixture(scope="module")
def trajectories():
    for recorded in record({"A": A, "B": B}): pass
    return recorded


def test_a_recording_is_the_run(trajectories):
    "To the eye; to the bit it is the stream of the same images, which go through as they come."
    for spec, t in zip((A, B), trajectories.values()):
        result = run(spec)
        assert (t.frames[-1].x_prev.int() - result.samples.int()).abs().max() <= 1
        assert [f.t for f in t.frames] == result.times.tolist()
        for curve in ("cosine", "energy"):
            recorded, kept = (x.nan_to_num(9) for x in (t.curve(curve), result.trace[curve]))
            assert torch.allclose(recorded, kept, rtol=1e-2, atol=1e-3)
        for f, step in zip(t.frames, steps_of(spec, range(2), micro_batch=None)):
            assert torch.equal(f.x_t, images_to_uint8(step.x_t)) and torch.equal(f.x0_hat, images_to_uint8(step.x0_hat))
            assert torch.equal(f.shift, step.shift.sum(1).half())
            assert f.peak == step.shift.sum(1).abs().flatten().quantile(0.999)
            for name, model in zip(("guide", "judge"), models(spec)[1:]):
                assert torch.equal(getattr(f, name), class_probabilities(model(step.x0_hat.clamp(-1, 1)))[:, 2])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_recording_is_the_same_bits_in_however_many_threads(trajectories, threads):
    with use_threads(threads):
        *_, again = record({"A": A, "B": B})
        assert torch.get_num_threads() == threads
    for one, other in zip(trajectories.values(), again.values()):
        for name in ("x_prev", "shift", "judge"): assert torch.equal(one.curve(name), other.curve(name)), name


def test_settings_share_their_noise(trajectories):
    a, b = trajectories.values()
    assert (
        torch.equal(a.frames[0].x_t, b.frames[0].x_t)
        and torch.equal(a.frames[0].x_t, before(A).x_t)
        and not torch.equal(a.frames[1].x_t, b.frames[1].x_t)
    )
    *_, off = record({"A": replace(A, scale=0.0), "B": replace(B, scale=0.0)})
    # without guidance nothing differs
    assert all(torch.equal(f.x_prev, g.x_prev) for f, g in zip(*(t.frames for t in off.values())))


@pytest.mark.parametrize("evaluations, frames", [(0, []), (1, []), (2, [1]), (3, [1]), (5, [1, 2])])
@pytest.mark.parametrize("threads", [1, 2])
def test_stop_ends_after_the_step_under_way(evaluations, frames, threads):
    asked = iter(range(1000))
    with use_threads(threads):
        seen = [length(t) for t in record({"A": A, "B": B}, stop=lambda: next(asked) >= evaluations)]
    assert seen == frames and next(asked) == evaluations + 1


def test_a_failing_run_says_why(monkeypatch):
    class Bad(torch.nn.Module):
        def forward(self, x): return x.flatten(1)[:, :4] * float("inf")
    monkeypatch.setattr("gradcheck.runs.runs.models", lambda spec, device="cpu": (models(A)[0], Bad(), Bad()))
    with pytest.raises(NonFiniteGradient, match="time step 399 for image 0"): list(record({"A": A}))


def test_colours_of_signed_maps():
    x = np.linspace(-2, 2, 401)
    for decades in (0, 2):
        colours = diverging(x[None], 1.0, decades)[0].astype(int)
        assert (colours[200] == 247).all() and (colours[[0, -1]] == COOL_WARM[[0, -1]]).all()
        # darker away from zero
        assert (np.diff(colours[200:, 1]) <= 0).all() and (np.diff(colours[:201, 1]) >= 0).all()
        redness = colours[:, 0] - colours[:, 2]
        assert (redness[210:] > 0).all() and (redness[:190] < 0).all()
    assert (diverging(np.array([[0.01]]), 1.0, 2) != diverging(np.array([[0.01]]), 1.0, 0)).any()


def test_pictures_show_the_frames(trajectories):
    frames = {label: t.frames[1] for label, t in trajectories.items()}
    rows = rows_of(frames, 1, limit_of(trajectories))
    assert (
        list(rows) == ["A", "B", "B − A"]
        and list(rows_of({"A": frames["A"]}, 0, 1.0)) == ["A"]
        and list(rows_of(frames, 1, 1.0, difference=False)) == ["A", "B"]
    )
    assert (rows["B"][0] == frames["B"].x_t[1].permute(1, 2, 0).numpy()).all() and (
        rows["B"][1] == frames["B"].x0_hat[1].permute(1, 2, 0).numpy()
    ).all()
    assert (
        all((p == 247).all() for p in difference_pictures(frames["A"], frames["A"], 0, 1.0))
        and not (rows["B − A"][1] == 247).all()
    )
    shown = re.findall(r"alt='([^']*)' src='data:image/png;base64,([^']*)'", board(trajectories, before(A), 1, 1))
    assert [alt for alt, _ in shown] == [
        f"{label}, {name}" for label in ("A", "B", "B − A") for name in ("x_t", "x0-hat", "guidance map")
    ]
    for (_, data), p in zip(shown, [p for row in rows.values() for p in row]):
        assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) == p).all()
    assert Image.open(io.BytesIO(png(frame_pictures(frames["A"], 0, 1.0)[2]))).size == (64, 64)


def test_charts_are_well_formed_and_grow(trajectories):
    assert (
        path([0, 1, 2, 3, 4], [1, 2, np.nan, 3, 4]) == "M0.0,1.0 L1.0,2.0 M3.0,3.0 L4.0,4.0"
        and path([0], [np.nan]) == ""
    )
    svg = ET.fromstring(chart("a < b & 'c'", [("<script>", [np.nan, 0.25, 1.0], "#123456", True)], [30, 20, 10], at=2))
    assert (
        svg.attrib["aria-label"] == "a < b & 'c'"
        and [t.text for t in svg.iter("title")] == ["<script>"]
        and len(list(svg.iter("circle"))) == 1
    )
    for n in range(5):
        part = {label: Trajectory(t.spec, t.frames[:n]) for label, t in trajectories.items()}
        cosine, probability = (ET.fromstring(x + "</svg>") for x in curves(part, n - 1).split("</svg>")[:2])
        drawn = [p.attrib["d"] for p in probability.iter("path") if "gc-curve" in p.attrib["class"]]
        # A and B, guide and judge
        assert [len(re.findall("[ML]", d)) for d in drawn] == [n] * 4 * (n > 0)
        assert [
            len(re.findall("[ML]", p.attrib["d"])) for p in cosine.iter("path") if "gc-curve" in p.attrib["class"]
        ] == [n - 1] * 2 * (n > 0)


def test_the_screen_escapes_names(trajectories):
    class Odd:
        classes, where, stabilizer, scale, target, classifier, diffusion, steps = (
            ["<b>"],
            "x_t",
            "mine.py:<i>",
            1.0,
            0,
            "<u>",
            A.diffusion,
            4,
        )

    odd = {"A": Trajectory(Odd(), trajectories["A"].frames)}
    html = screen(odd, before(A), 2, 0)
    assert (
        not re.search("<(b|i|u)>", html.replace("<b class", "")) and "mine.py:&lt;i&gt;" in html and "&lt;b&gt;" in html
    )


def test_words():
    assert words(A).replace("\u00a0", " ") == "non-robust at xₜ, no stabilizer, s = 2 → volleyball" and words(
        replace(A, where="unguided")
    ).startswith("unguided")


def test_the_code_makes_the_same_bits(trajectories, tmp_path, monkeypatch, capsys):
    code = code_of({label: t.spec for label, t in trajectories.items()})
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "explorer", "exec"), {})
    for label, t in trajectories.items():
        assert (np.asarray(Image.open(f"explorer_{label}.png")) == image_grid(t.frames[-1].x_prev)).all()
    said = capsys.readouterr().out.splitlines()
    told = [
        f"{label} t = {f.t}: cosine {f.cosine.mean():.3f}, target {f.guide.mean():.3f} (guide), "
        f"{f.judge.mean():.3f} (judge)"
        for label, t in trajectories.items()
        for f in t.frames
    ]
    assert said == told


def test_a_run_is_kept_whole(trajectories, tmp_path):
    # stopped between A and B
    longer = {"A": trajectories["A"], "B": Trajectory(B, trajectories["B"].frames[:3])}
    paths = save_run(longer, tmp_path / "kept")
    tensors, told = load_file(paths[0]), json.loads(paths[1].read_text(encoding="utf-8"))
    assert torch.equal(tensors["B.x_prev"], trajectories["B"].curve("x_prev")[:3]) and tensors["A.shift"].shape == (
        3,
        2,
        64,
        64,
    )
    assert (
        set(tensors) == {f"{label}.{name}" for label in "AB" for name in told["tensors"]}
        and len(told["tensors"]) == len(Frame.__dataclass_fields__) - 1
    )
    assert (
        told["settings"]["B"]["times"] == [399, 299, 199]
        and told["settings"]["B"]["complete"] is False
        and told["settings"]["A"]["digests"] == A.digests
    )
    assert RunSpec(
        **{k: v for k, v in told["settings"]["B"].items() if k in RunSpec.__dataclass_fields__}
    ) == B and told["code"] == code_of({"A": A, "B": B})
    for empty in (save_run, lambda t, f: animation(t, f / "x.gif")):
        with pytest.raises(UserError, match="nothing to"): empty({"A": Trajectory(A)}, tmp_path / "empty")
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("labels, difference", [("AB", True), ("AB", False), ("A", True)])
def test_films(trajectories, tmp_path, labels, difference):
    chosen, told = {label: trajectories[label] for label in labels}, []
    assert (
        animation(
            chosen,
            tmp_path / "film.gif",
            image=1,
            difference=difference,
            progress=lambda done, of: told.append((done, of)),
        )
        == 4
    )
    film = Image.open(tmp_path / "film.gif")
    pictures, durations = [], []
    for k in range(film.n_frames):
        film.seek(k)
        pictures.append(np.asarray(film.convert("RGB")).astype(int))
        durations.append(film.info["duration"])
    assert (
        film.n_frames == 4
        and durations == [1500] * 3 + [2000]
        and film.info["loop"] == 0
        and told == [(i, 4) for i in (1, 2, 3, 4)]
    )
    assert all((p != q).any() for p, q in zip(pictures, pictures[1:]))
    exact = Storyboard(chosen, 1, difference).at(2).astype(int)
    # of 255; 128 colours
    assert np.abs(exact - pictures[2]).mean() < 6 and (exact.shape[1], exact.shape[0]) == film.size
    save_picture(chosen, tmp_path / "p.png", 2, 1, difference)
    assert (np.asarray(Image.open(tmp_path / "p.png")) == exact).all()
    assert animation(chosen, tmp_path / "short.gif", frames=2) == 2 and moments(400, 5) == [0, 100, 200, 299, 399]


def test_worker_tells_errors_and_lets_the_last_job_win():
    said, order, running = [], [], threading.Event()
    worker = Worker(said.append)
    def fails(stop): raise UserError("one sentence.")
    def breaks(stop): raise KeyError("x\ny")
    for job in (fails, breaks, lambda stop: [][0]):
        worker.start(job)
        worker.wait()
    assert said == ["one sentence.", "KeyError: 'x\\ny'", "IndexError: list index out of range"]
    def long(stop):
        running.set()
        while not stop(): pass
        order.append("long")
    worker.start(long)
    running.wait(10)
    worker.start(lambda stop: order.append(stop()))
    worker.wait()
    assert order == ["long", False]


def idle(explorer):
    explorer.worker.wait()
    return re.sub("<[^>]*>", "", explorer.status.value)


def test_explorer_without_a_browser(tmp_path, own_cache):
    e = explore(out=tmp_path)
    noise = e.screen.pictures.value
    assert (
        noise.count("<img") == 9 + 16
        and e.buttons["Stop"].disabled
        and e.buttons["Save"].disabled
        and e.buttons["Equal energy"].disabled
    )
    e.shared["steps"].value, e.shared["count"].value, e.shared["seed"].value = 3, 2, 5
    e.buttons["Sample"].click()
    assert "Done after 3 of 3 steps" in idle(e) and e.screen.step.value == 3 and e.progress.value == e.progress.max == 3
    shown = {label: t.spec for label, t in e.screen.trajectories.items()}
    assert shown == e.specs() and [t.frames[0].x_t.shape[0] for t in e.screen.trajectories.values()] == [2, 2]
    last = e.screen.pictures.value
    e.screen.step.value = 1
    assert "t = 399" in e.screen.pictures.value != last
    e.screen.image.value = 2
    assert re.findall("<figure class='([^']*)'", e.screen.pictures.value) == ["", "gc-chosen"] * 2
    e.buttons["Save"].click()
    said = idle(e)
    folder, = tmp_path.iterdir()
    assert said.endswith(str(folder)) and {p.name for p in folder.iterdir()} == {
        "step_1.png",
        "film.gif",
        "run.safetensors",
        "run.json",
    }
    assert folder.name.endswith("-3steps-2images")
    scales, energies = (
        [c.scale.value for c in e.settings.values()],
        [t.curve("energy").sum(0).mean().item() for t in e.screen.trajectories.values()],
    )
    e.buttons["Equal energy"].click()
    assert [c.scale.value for c in e.settings.values()] == pytest.approx(
        [s * 40 / x for s, x in zip(scales, energies)], rel=0.01
    )
    e.settings["A"].scale.value = -1
    e.buttons["Sample"].click()
    # the screen stays
    assert (
        "the guidance scale is -1.0; give a finite number" in idle(e)
        and {label: t.spec for label, t in e.screen.trajectories.items()} == shown
    )
    e.settings["A"].scale.value, e.shared["both"].value = 1.0, False
    e.buttons["Sample"].click()
    assert "Done" in idle(e) and list(e.screen.trajectories) == ["A"] and e.screen.pictures.value.count("<img") == 3 + 2
    assert not own_cache.exists()


def test_energies_of_other_settings_are_not_made_equal(tmp_path):
    e = explore(out=tmp_path)
    e.shared["steps"].value, e.shared["count"].value = 2, 1
    e.buttons["Sample"].click()
    idle(e)
    def pressed():
        before = [c.scale.value for c in e.settings.values()]
        e.buttons["Equal energy"].click()
        return e.status.value, before != [c.scale.value for c in e.settings.values()]
    e.shared["seed"].value = 1
    said, turned = pressed()
    assert "Press Sample first" in said and not turned
    e.shared["seed"].value, e.shared["both"].value = 0, False
    assert "Press Sample first" in pressed()[0]
    e.shared["both"].value, e.settings["A"].scale.value = True, 123.0
    said, turned = pressed()
    assert "equally hard" in said and turned
    e.settings["A"].scale.value = -1
    assert "guidance scale is -1.0" in pressed()[0]


def test_stop_and_start_again(tmp_path):
    e, frames = explore(out=tmp_path), threading.Event()
    e.screen.step.observe(lambda change: frames.set() if change["new"] >= 2 else None, "value")
    e.shared["steps"].value, e.shared["count"].value = 400, 1
    e.buttons["Sample"].click()
    assert frames.wait(120)
    # look back while it goes on: the slider is left alone
    e.screen.step.value = 0
    e.buttons["Stop"].click()
    said = idle(e)
    n = int(said.split()[2])
    assert (
        said.startswith("Stopped after")
        and 2 <= n < 400
        and length(e.screen.trajectories) == n
        and e.screen.step.value == 0
        and e.buttons["Equal energy"].disabled
        and not e.buttons["Save"].disabled
    )
    # a slider beyond the last frame shows that one, and so it is saved
    e.screen.step.value = n + 10
    e.buttons["Save"].click()
    assert "Saved" in idle(e)
    folder, = tmp_path.iterdir()
    assert (folder / f"step_{n}.png").is_file() and (folder / "film.gif").is_file()
    e.buttons["Sample"].click()
    e.shared["steps"].value = 2
    e.buttons["Sample"].click()                                            # stops the one before
    assert "Done after 2 of 2" in idle(e)


def test_what_there_is_to_try(tmp_path):
    e = explore(out=tmp_path)
    for name, (hint, *pairs) in TRIES.items():
        e.tries.label = name
        assert hint in unescape(e.hint.value)
        scales = [EQUAL[role][variant] for role, variant in pairs]
        assert [c.scale.value for c in e.settings.values()] == scales
    odd = explore(stabilizers=("nowhere.py:Mine",), out=tmp_path)
    odd.settings["A"].stabilizer.value = "nowhere.py:Mine"
    odd.buttons["Sample"].click()
    assert "nowhere.py" in idle(odd) and not odd.screen.trajectories["A"].frames
    said = explore(denoiser="nowhere", classifier="laptop/robust").value
    assert "cannot start" in said and "no weights" in said


def test_models_of_ones_own(tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    from test_interop import CLASSIFIER, make_pipeline
    make_pipeline(tmp_path / "pipeline", clip_sample=True)
    (tmp_path / "mine.py").write_text(CLASSIFIER)
    e = explore(denoiser=str(tmp_path / "pipeline"), classifier=f"{tmp_path}/mine.py:make", out=tmp_path / "out")
    assert (
        not e.tries.options
        and e.shared["steps"].max == 50
        and [c.where.value for c in e.settings.values()] == ["x_t", "x0_hat"]
    )
    e.shared["steps"].value, e.shared["count"].value = 2, 2
    e.buttons["Sample"].click()
    assert "Done after 2 of 2" in idle(e) and e.screen.trajectories["B"].frames[0].x_t.shape == (2, 3, 16, 16)


def test_the_explorer_starts_without_what_is_slow_to_import():
    code = (
        "import sys, gradcheck.app.explorer; print(sorted({'matplotlib', 'scipy', 'torchmetrics'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "[]"
    )
