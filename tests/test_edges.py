"""Every option of every command at its edges: tiny, huge, negative, of another alphabet, of another type.

Each ends with what was asked for, or with one sentence and exit code 2; nothing ends in a traceback (the `cli` fixture
raises what is unforeseen). The options are read from the command line itself, so that a new one is swept too."""
import json

import pandas as pd
import pytest
import torch
import typer

from gradcheck.cli import app
from gradcheck.core import UserError
from gradcheck.runs.runs import run
from gradcheck.runs.specs import RunSpec

VALUES = (
    "",
    "0",
    "1",
    "-1",
    "0.5",
    "1e308",
    "nan",
    "9" * 30,
    "9" * 5000,
    "true",
    '{"a": 1}',
    "none",
    "é😀",
    "\udce9",                                                   # a byte of another encoding, as Python shows it
    "$a_{<b>'",
    "a b\nc",
    "x" * 5000,
    "a:b",
    "a.py:b",
    "--",
)
BASE = {
    "sample": ("--steps", "3", "--count", "1", "--out", "out"),
    "reproduce": ("figure_1", "--preset", "smoke", "--out", "out"),
    "train": ("ddpm", "--preset", "smoke", "--out", "out"),
    "evaluate": ("--preset", "smoke", "--count", "1", "--images", "2", "--out", "out"),
    "export": ("laptop/ddpm", "--out", "out"),
    "bench": ("--out", "out/bench.json"),
    "diagnose": ("--denoiser", "laptop/ddpm", "--classifier", "laptop/nonrobust", "--out", "out"),
    "compare": (),
    "info": (),
}
LEFT_OUT = {("reproduce", "dask")}                  # each address is waited for; see tests/runs/test_machines.py
COMMANDS = typer.main.get_command(app).commands
OPTIONS = [
    (name, parameter.name, (parameter.opts[-1],) if parameter.param_type_name == "option" else ())
    for name, command in COMMANDS.items()
    for parameter in command.params
    if not getattr(parameter, "is_flag", False) and (name, parameter.name) not in LEFT_OUT
]


def instant(spec, images, *rest):
    "What `compute` returns, at once."
    n, steps = len(images), spec.calls
    curves = ("cosine", "cosine_raw", "cosine_null", "norm", "norm_raw", "energy", "saturated")
    even = torch.full((n, len(spec.classes)), 1 / len(spec.classes))
    return {f"trace.{name}": torch.zeros(steps, n) for name in curves} | dict(
        guide=even,
        judge=even.clone(),
        samples=torch.zeros(n, *spec.shape, dtype=torch.uint8),
        times=torch.arange(steps),
    )


@pytest.fixture
def at_once(monkeypatch, tmp_path):
    "What takes long is left out: the checks before it are what is tested, and what is written after it."
    def trained(*args, **kwargs): raise UserError("everything before the training was accepted")
    def budgeted(*args): raise UserError("everything before the trials was accepted")
    def measured(*args): return dict(
        images=1,
        step_seconds={},
        ratio_to_bare={},
        data_images_per_second_one_thread=1.0,
        training_step_seconds=1.0,
        training_wait_for_data_seconds=1.0,
        seconds_per_denoiser_call={},
        cluster={},
        peak_gib_of_x0_hat_step_by_images={},
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gradcheck.runs.runs.compute", instant)
    monkeypatch.setattr("gradcheck.paper.reproduce.reproduce", lambda *args, **kwargs: None)
    monkeypatch.setattr("gradcheck.models.training.Trainer.run", trained)
    monkeypatch.setattr("gradcheck.paper.train.seconds_per_step", lambda *args: 1.0)
    monkeypatch.setattr("gradcheck.runs.evaluation.accuracy_by_t", lambda *args, **kwargs: pd.DataFrame({"a": [1.0]}))
    monkeypatch.setattr("gradcheck.models.exports.save_pipeline", lambda *args: None)
    monkeypatch.setattr("gradcheck.app.benchmark.benchmark", measured)
    monkeypatch.setattr("gradcheck.app.diagnose.budget_for", budgeted)
    monkeypatch.setattr("gradcheck.paper.plots.figure_bytes", lambda figure, suffix: b"")


def one_sentence(err):
    "Is what stands behind a progress bar, if there is one, a sentence?"
    said = err[err.find("gradcheck: "):]
    return said.startswith("gradcheck: ") and said.count("\n") == 1 and "Traceback" not in err


@pytest.mark.parametrize("command, name, option", OPTIONS, ids=[f"{c}-{n}" for c, n, _ in OPTIONS])
def test_an_option_at_its_edges(cli, at_once, command, name, option):
    for value in VALUES:
        base = BASE[command] if option else BASE[command][1:] if command in ("reproduce", "train", "export") else ()
        code, _, err = cli(command, *base, *option, *([] if not option and value == "--" else [value]))
        assert code in (0, 2), (value, code, err)
        assert code == 0 or one_sentence(err), (value, err)
        assert value or (code == 2 and "is empty" in err), (code, err)


PARAMETERS = ["steps", "count", "scale", "target", "seed", "mode", "denoiser", "classifier", "data", "out", "", "é"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_notebook_parameter_at_its_edges(cli, at_once, name):
    for value in VALUES:
        code, _, err = cli("reproduce", *BASE["reproduce"], "-p", f"{name}={value}")
        assert code in (0, 2), (value, code, err)
        assert code == 0 or one_sentence(err), (value, err)
    assert cli("reproduce", *BASE["reproduce"], "-p", name)[0] == 2


def test_every_command_is_swept():
    assert set(COMMANDS) == set(BASE)
    assert {command for command, _, _ in OPTIONS} == set(BASE) - {"info"}


FEW = [
    ("--where", "unguided", "--steps", "1"),
    ("--where", "unguided", "--steps", "2"),
    ("--where", "unguided", "--steps", "4"),
    ("--interval", "100-90", "--steps", "4"),
    ("--scale", "0", "--steps", "3"),
    ("--steps", "1"),
    ("--steps", "2", "--stabilizer", "adam"),
    ("--steps", "3", "--repeats", "2", "--where", "x0_hat"),
]


@pytest.mark.parametrize("args", FEW, ids=" ".join)
def test_a_small_sample_is_made_whatever_there_is_to_draw(cli, tmp_path, args):
    (tmp_path / "cosine.png").write_bytes(b"of a run before")
    code, out, err = cli("sample", "--count", "1", "--out", tmp_path, *args)
    assert code == 0, err
    assert {"grid.png", "cosine.csv", "run.json"} <= {p.name for p in tmp_path.iterdir()}
    drawn = (tmp_path / "cosine.png").is_file()
    assert drawn != ("no curve" in out) and (not drawn or (tmp_path / "cosine.png").stat().st_size > 1000)
    assert "from the matched start" in out


FLAT = """
import torch
class Flat(torch.nn.Module):
    def forward(self, x): return 0 * x.mean((1, 2, 3))[:, None].expand(-1, 4)
def make(): return Flat()
"""


def test_a_gradient_of_zero_gives_a_grid_and_says_that_there_is_no_curve(cli, tmp_path):
    (tmp_path / "flat.py").write_text(FLAT, encoding="utf-8")
    args = ("--classifier", f"{tmp_path}/flat.py:make", "--steps", "3", "--count", "1", "--out", tmp_path)
    code, out, err = cli("sample", *args)
    assert code == 0 and "no curve" in out, err


def test_the_start_that_was_used_is_said(cli, tmp_path):
    code, out, _ = cli("sample", "--start", "standard", "--steps", "2", "--count", "1", "--out", tmp_path)
    assert code == 0 and "from the standard start N(0, I)" in out
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["spec"]["start"] == "standard"


def test_one_image_and_one_step(own_cache):
    result = run(RunSpec(steps=1, count=1), 16)
    assert result.samples.shape == (1, 3, 64, 64) and result.trace["cosine"].shape == (1, 1)
