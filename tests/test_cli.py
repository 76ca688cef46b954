"""The command line as a person meets it: exit codes, one sentence, files where they were asked for."""
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from gradcheck.commands import bundled, in_print, write_text
from gradcheck.core import UserError
from gradcheck.models.cards import WEIGHTS
from gradcheck.paper.part import part_specs
from gradcheck.runs.runs import run
from gradcheck.runs.specs import RunSpec


@pytest.mark.parametrize("args, message", [
    (("reproduce", "figure_11"), "Did you mean 'figure_1'?"),
    (("reproduce", "--preset", "labtop"), "Did you mean 'laptop'?"),
    (("reproduce", "figure_5", "--plan", "--preset", "smok"), "Did you mean 'smoke'?"),
    (("reproduce", "figure_6", "--plan", "-p", "target=1"), "unknown parameter 'target'"),
    (("reproduce", "figure_1", "-p", "sede=1"), "Did you mean 'seed'?"),
    (("reproduce", "figure_1", "-p", "target"), "NAME=VALUE"),
    (("reproduce", "figure_1", "-p", "target=9"), "3 (soccer ball)"),
    (("reproduce", "figure_1", "-p", "steps=401"), "T = 400"),
    (("sample", "--classifier", "robst"), "Did you mean 'robust'?"),
    (("sample", "--target", "soccer"), "Did you mean 'soccer ball'?"),
    (("sample", "--stabilizer", "adma"), "Did you mean 'adam'?"),
    (("sample", "--where", "x0"), "choose one of x_t, x0_hat"),
    (("sample", "--scale", "nan"), "finite number >= 0"),
    (("sample", "--scale", "-3"), "finite number >= 0"),
    (("sample", "--scale", "ten"), "valid number"),
    (("sample", "--steps", "1000"), "T = 400"),
    (("sample", "--classifier", "nowhere.safetensors"), "no weights"),
    (("sample", "--classifier", WEIGHTS / "laptop" / "ddpm.safetensors"), "MobileNetV3Small or ResNet is needed"),
    (("sample", "--device", "gpu"), "choose one of auto, cpu, cuda"),
    (("sample", "--device", "cuda:99"), "use --device cpu"),
    (("sample", "--objective", "binary"), "one logit"),
    (("sample", "--where", "x_t_cone"), "give the robust one beside the guide (--robust)"),
    (("sample", "--where", "x_t_cone", "--robust", "robots"), "Did you mean 'robust'?"),
    (("sample", "--robust", "robust"), "choose x_t_cone or x0_hat_cone"),
    (("sample", "--sampler", "ddmi"), "Did you mean 'ddim'?"),
    (("sample", "--sampler", "dsg"), "give stabilizer unit and a scale from 0 to 1"),
    (("sample", "--sampler", "mpgd"), "choose both or neither"),
    (("sample", "--candidates", "0"), "0 candidates for each image were asked for"),
    (("sample", "--candidates", "4", "--stabilizer", "adam"), "give where unguided and stabilizer none"),
    (("reproduce", "figure_1", "-p", "seed=1"), "write --seed 1"),
    (("reproduce", "figure_1", "-p", "report=1"), "unknown parameter 'report'"),
    (("reproduce", "figure_1", "-p", "target=voleyball"), "Did you mean 'volleyball'?"),
    (("reproduce", "-p", "steps=4", "--preset", "smoke"), "figure_8: unknown parameter 'steps'; leave it out"),
    (("reproduce", "figure_1", "-p", "steps=1"), "between 2 and T = 400"),
    (("reproduce", "figure_1", "figure_11", "-p", "steps=4"), "Did you mean 'figure_1'?"),
    (("sample", "--seed", "-1"), "from 0 to 2**63 - 1"),
    (("sample", "--seed", 2**63), "from 0 to 2**63 - 1"),
    (("sample", "--count", "1000000000"), "12,288 GB"),
    (("sample", "--interval", "9-10"), "as in 300-100"),
    (("bench", "--out", "/tmp"), "is a folder"),
    (("reproduce", "figure_1", "-p", "steps=abc"), "whole number"),
    (("reproduce", "figure_1", "-p", "count=2.5"), "whole number"),
    (("evaluate", "--images", "20000"), "less than or equal to 10000"),
    (("bench", "--repeats", "0"), "greater than or equal to 1"),
    (("train", "ddmp"), "Did you mean 'ddpm'?"),
    (("train", "classifier", "--kind", "robot"), "Did you mean 'robust'?"),
    (("train", "ddpm", "--dataset", "sportsball"), "Did you mean 'sportballs'?"),
    (("train", "ddpm", "--draws", "coupeld"), "Did you mean 'coupled'?"),
    (("train", "ddpm", "--minutes", "0"), "above 0"),
    (("train", "ddpm", "--minutes", "-1"), "above 0"),
    (("train", "ddpm", "--minutes", "nan"), "'--minutes'"),
    (("train", "ddpm", "--largest", "lots"), "write it as 8GB"),
    (("train", "ddpm", "--device", "cuda:99"), "use --device cpu"),
    (("evaluate", "--device", "cuda:99"), "use --device cpu"),
    (("reproduce", "figure_1", "--plan", "--device", "cuda:99"), "use --device cpu"),
    (("export", "laptop/robust"), "UNet is needed"),
    (("export", "nowhere"), "no weights"),
    (("train", "ddpm", "--sprites", "/nowhere"), "no sprites in '/nowhere'"),
    (("tarin",), "No such command"),
])
def test_bad_input_is_one_sentence_and_exit_2(cli, args, message, own_cache, tmp_path):
    own = ("--out", tmp_path / "run") if args[0] == "train" and "--out" not in args else ()
    code, out, err = cli(*args, *own)                           # else two workers would meet in data/train/run
    assert code == 2 and message in err and "Traceback" not in err
    assert err.startswith("gradcheck: ") and err.count("\n") == 1
    assert not list(own_cache.rglob("*"))                       # nothing half-written


def test_no_traceback_from_a_fresh_process(tmp_path):
    result = subprocess.run(
        [str(Path(sys.executable).parent / "gradcheck"), "sample", "--scale", "nan"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "finite" in result.stderr


NARROW = {
    "C": dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
    "cp1252": dict(PYTHONIOENCODING="cp1252"),
}


@pytest.mark.parametrize("console", NARROW)
def test_a_console_that_cannot_show_a_character_shows_the_sentence(tmp_path, console):
    result = subprocess.run(
        [str(Path(sys.executable).parent / "gradcheck"), "reproduce", "x̂₀"],
        capture_output=True,
        env=os.environ | NARROW[console],
        cwd=tmp_path,
    )
    assert result.returncode == 2 and result.stderr.count(b"\n") == 1 and b"choose one of figure_1" in result.stderr


def test_what_is_written_is_utf_8_and_what_is_drawn_is_no_formula(tmp_path):
    write_text(tmp_path / "a.csv", "x̂₀, \udce9")
    assert (tmp_path / "a.csv").read_bytes().decode("utf-8") == "x̂₀, \\udce9"
    assert in_print("a$_{b\udce9é") == "a___b_é" and len(in_print("x" * 5000)) == 60


def test_a_folder_that_is_gone_is_one_sentence(cli, tmp_path, monkeypatch):
    def gone(): raise FileNotFoundError
    monkeypatch.setattr("gradcheck.cli.os.getcwd", gone)
    code, _, err = cli("info")
    assert code == 2 and "working directory is gone" in err and err.count("\n") == 1


def test_stopped_by_hand(cli, monkeypatch):
    def stop(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr("gradcheck.models.checkpoints.load_weights", stop)
    monkeypatch.setattr("gradcheck.runs.runs.run", stop)
    for command, kept in (("info", "nothing was changed"), ("sample", "finished chunks are kept")):
        code, _, err = cli(command)
        assert code == 130 and kept in err and "checkpoint" not in err
        assert err.strip().startswith("gradcheck: stopped;") and err.strip().count("\n") == 0


@pytest.mark.parametrize("kept", [False, True])
def test_a_stopped_training_says_whether_there_is_a_checkpoint(cli, monkeypatch, tmp_path, kept):
    def stop(*args, **kwargs):
        if kept: (tmp_path / "checkpoint.safetensors").write_bytes(b"")
        raise KeyboardInterrupt
    monkeypatch.setattr("gradcheck.paper.train.train", stop)
    code, _, err = cli("train", "ddpm", "--out", tmp_path)
    assert code == 130 and ("--resume to go on" in err) == kept and ("no checkpoint was written" in err) != kept


def test_a_file_that_ends_too_early_is_not_a_person_who_stops(cli, monkeypatch, tmp_path):
    def ended(name): raise EOFError
    monkeypatch.setattr("gradcheck.models.checkpoints.load_weights", ended)
    with pytest.raises(RuntimeError, match="ended too early"): cli("info")


def test_what_may_not_be_read_is_named(cli, monkeypatch):
    "Tests may run as root, who may read all."
    def closed(self): raise PermissionError(errno.EACCES, "Permission denied", str(self))
    monkeypatch.setattr(Path, "is_dir", closed)
    code, _, said = cli("sample", "--denoiser", "/closed/ddpm.safetensors")
    assert code == 2 and "no permission to read or write '/closed/ddpm.safetensors'; change its permissions" in said


def test_unwritable_output(cli, tmp_path, own_cache):
    (tmp_path / "file").write_text("in the way")
    code, _, err = cli("sample", "--steps", "3", "--count", "1", "--out", tmp_path / "file" / "x")
    assert code == 2 and "cannot write" in err and not list(own_cache.rglob("*.safetensors"))
    code, _, err = cli("reproduce", "figure_1", "--preset", "smoke", "--out", tmp_path / "file")
    assert code == 2 and "cannot write" in err and not list(own_cache.rglob("*.safetensors"))
    code, _, err = cli("train", "ddpm", "--preset", "smoke", "--out", tmp_path / "file" / "x")
    assert code == 2 and "cannot write" in err


def test_sample(cli, tmp_path):
    code, out, _ = cli(
        "sample",
        "--classifier",
        "robust",
        "--target",
        "soccer ball",
        "--where",
        "x0_hat",
        "--stabilizer",
        "adam",
        "--scale",
        "0.1",
        "--steps",
        "6",
        "--count",
        "3",
        "--out",
        tmp_path,
    )
    assert code == 0 and "judge" in out
    assert Image.open(tmp_path / "grid.png").size[0] > 128 and Image.open(tmp_path / "cosine.png").size[0] > 500
    summary = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert summary["spec"]["target"] == 3 and 0 <= summary["target_probability_judge"] <= 1
    assert len((tmp_path / "cosine.csv").read_text(encoding="utf-8").splitlines()) == 6


@pytest.mark.parametrize("name, whole", [
    ("robust", "laptop/robust"),
    ("laptop/judge", "laptop/judge"),
    ("coupled/nonrobust", "coupled/nonrobust"),
    ("mine.py:make", "mine.py:make"),
])
def test_sample_takes_the_names_that_a_diagnosis_prints(name, whole): assert bundled(name) == whole


@pytest.mark.parametrize("name", ["judge", "laptop/nobody", "coupled/", "", "**"])
def test_a_classifier_that_is_not_bundled_is_refused(name):
    with pytest.raises(UserError, match="choose one of robust, nonrobust"): bundled(name)


def test_train_then_sample_with_the_result(cli, tmp_path, quickly_examined):
    code, out, _ = cli("train", "classifier", "--kind", "robust", "--preset", "smoke", "--out", tmp_path / "c")
    assert code == 0 and "sha256" in out
    card = json.loads((tmp_path / "c" / "robust.json").read_text(encoding="utf-8"))
    assert (
        card["steps"] == 4
        and card["images"] == 32
        and card["command"].startswith("gradcheck train classifier")
        and set(card["accuracy_by_t"]) >= {"-1", "399"}
    )
    code, out, _ = cli(
        "sample",
        "--classifier",
        tmp_path / "c" / "robust.safetensors",
        "--steps",
        "3",
        "--count",
        "1",
        "--out",
        tmp_path / "s",
    )
    assert code == 0
    code, _, err = cli("train", "classifier", "--kind", "robust", "--preset", "smoke", "--out", tmp_path / "c")
    assert code == 2 and "--resume" in err


def test_train_a_denoiser(cli, tmp_path, quickly_examined):
    code, _, _ = cli("train", "ddpm", "--preset", "smoke", "--out", tmp_path)
    assert code == 0 and (tmp_path / "samples.png").is_file()
    card = json.loads((tmp_path / "ddpm.json").read_text(encoding="utf-8"))
    assert card["architecture"] == "UNet" and card["diffusion"]["T"] == 400
    # and it samples, from its own matched start
    spec = RunSpec(denoiser=str(tmp_path / "ddpm.safetensors"), steps=3, count=2)
    assert run(spec, 2).samples.shape == (2, 3, 64, 64)


def test_plan(cli, own_cache, tmp_path):
    code, out, _ = cli(
        "reproduce", "figure_1", "figure_4", "--preset", "smoke", "--plan", "--out", tmp_path / "results"
    )
    assert code == 0 and [line.split()[:3] for line in out.splitlines()[1:4]] == [
        ["figure_1", "2", "0"],
        ["figure_4", "1", "0"],
        ["all", "3", "0"],
    ]
    assert not own_cache.exists() and not (tmp_path / "results").exists()


def test_the_plan_of_the_studys_figure_counts_the_part_that_it_computes(cli, own_cache):
    code, out, err = cli("reproduce", "study", "--preset", "smoke", "--plan", "--device", "cpu")
    runs = len(part_specs("smoke"))
    assert code == 0 and out.splitlines()[1].split()[:4] == ["study", str(runs), "0", str(2 * runs)], err
    assert runs > 8 and not own_cache.exists()


def test_info(cli):
    code, out, _ = cli("info")
    assert (
        code == 0
        and all(f"laptop/{name}" in out for name in ("ddpm", "robust", "nonrobust", "judge"))
        and out.count("verified") >= 4
    )


def test_evaluate(cli, tmp_path):
    code, out, _ = cli("evaluate", "--preset", "smoke", "--count", "4", "--images", "50", "--out", tmp_path)
    assert (
        code == 0
        and "class shares" in out
        and (tmp_path / "samples.png").is_file()
        and (tmp_path / "accuracy.csv").is_file()
    )


@pytest.mark.xdist_group("dask")
def test_bench(cli, tmp_path, forked_workers):
    asked = ("--preset", "smoke", "--images", "4", "--repeats", "1", "--threads", "1")
    code, out, _ = cli("bench", *asked, "--out", tmp_path / "bench.json")
    result = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert (
        code == 0
        and set(result["ratio_to_bare"]) >= {"bare", "plain", "x0_hat"}
        and result["ratio_to_bare"]["bare"] == 1
    )
    few, many = result["peak_gib_of_x0_hat_step_by_images"].values()
    assert 0.2 < few < 2 and many < 1.2 * few                         # does not grow with the number of images


@pytest.mark.parametrize("changed", [False, True])
def test_compare_exits_with_1_where_a_verdict_changed(cli, monkeypatch, changed):
    asked = []

    class Told:
        text = "two tables"

    def compare(results, reference):
        asked.append((results, reference))
        told = Told()
        told.changed = changed
        return told
    monkeypatch.setattr("gradcheck.paper.compare.compare", compare)
    code, out, err = cli("compare", "somewhere", "--reference", "else")
    assert (code, out.strip(), err, asked) == (int(changed), "two tables", "", [("somewhere", "else")])


def test_compare_without_results_is_one_sentence(cli, tmp_path):
    code, out, err = cli("compare", tmp_path / "nowhere")
    assert code == 2 and "there is no folder" in err and err.count("\n") == 1


def test_what_is_unforeseen_is_one_sentence_with_a_file(cli, monkeypatch, tmp_path):
    monkeypatch.setattr("gradcheck.models.checkpoints.load_weights", lambda name: 1 / 0)
    with pytest.raises(ZeroDivisionError): cli("info")                       # a test sees the mistake itself
    monkeypatch.delenv("GRADCHECK_DEBUG", raising=False)
    monkeypatch.setattr("gradcheck.cli.os.environ", {})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, out, err = cli("info")
    file, = tmp_path.glob("gradcheck-*.txt")
    assert code == 1 and str(file) in err and "Traceback" not in err and err.count("\n") == 1
    assert "ZeroDivisionError" in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("value, on", [("1", True), ("yes", True), ("0", False), ("no", False), ("False", False),
                                       (" ", False), ("off", False)])
def test_debugging_is_switched_off_as_people_do(cli, monkeypatch, tmp_path, value, on):
    monkeypatch.setattr("gradcheck.models.checkpoints.load_weights", lambda name: 1 / 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("GRADCHECK_DEBUG", value)
    if on:
        with pytest.raises(ZeroDivisionError): cli("info")
    else: assert cli("info")[0] == 1


@pytest.mark.parametrize("given, named", [
    (("-p", "steps=3", "-p", "steps=4"), "steps"),
    (("-p", "mode=paper", "--mode", "corrected"), "mode"),
    (("-p", "precision=bfloat16", "--precision", "float16"), "precision"),
])
def test_what_is_given_twice_is_refused(cli, tmp_path, given, named):
    code, _, err = cli("reproduce", "figure_1", "--preset", "smoke", "--out", tmp_path, *given)
    assert code == 2 and f"parameter '{named}' was given twice" in err and err.count("\n") == 1


@pytest.mark.parametrize("figure", ["claims", "adam_apart", "frontiers", "similarity_and_success"])
def test_a_whole_study_asks_for_its_folder_before_it_computes(cli, tmp_path, monkeypatch, figure):
    (tmp_path / "file").write_text("")
    for name in ("paper.full.full", "paper.factorial_runs.full_factorial", "paper.frontier_runs.full_frontiers",
                 "paper.measured.measures"):
        monkeypatch.setattr(f"gradcheck.{name}", lambda *args, **how: pytest.fail("computed"))
    code, _, err = cli("reproduce", figure, "--full", "--out", tmp_path / "file" / "below")
    assert code == 2 and "cannot write to" in err and err.count("\n") == 1
