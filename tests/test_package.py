"""The package as it is shipped: in sync with the notebooks, importable module by module, and from a wheel in an empty
environment."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(p for p in (ROOT / "gradcheck").rglob("*.py") if not p.stem.startswith("_"))
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "The project as a user would get it: nbs, package and set-up files, in a fresh folder."
    folder = tmp_path_factory.mktemp("copy")
    for name in ("nbs", "gradcheck"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE"): shutil.copy(ROOT / name, folder)
    return folder


def test_modules_and_notebooks_are_in_sync_and_clean(copy):
    before = {p: p.read_text() for p in sorted(copy.rglob("*.py")) + sorted(copy.rglob("*.ipynb"))}
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    for command in ("nbdev_clean", "nbdev_export"):
        subprocess.run([str(BIN / command)], check=True, cwd=copy, env=environment)
    changed = [str(p.relative_to(copy)) for p, text in before.items() if p.read_text() != text]
    assert changed == []


def test_modules_stay_small():
    assert {str(m.relative_to(ROOT)): n for m in MODULES if (n := len(m.read_text().splitlines())) > 250} == {}


def test_the_wheel_works_in_an_empty_environment(copy, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(copy)],
        check=True,
        capture_output=True,
    )
    wheel, = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run(
        [str(python), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), str(wheel)],
        check=True,
        capture_output=True,
    )
    code = "\n".join(
        [
            *(f"import {'.'.join(m.relative_to(ROOT).with_suffix('').parts)}" for m in MODULES),
            """
import importlib.util, gradcheck
from gradcheck.all import *
DDPM, Guidance, guided_steps
assert importlib.util.find_spec("nbdev") is None and importlib.util.find_spec("pytest") is None
assert "site-packages" in gradcheck.__file__
from gradcheck.models.checkpoints import load_denoiser, load_classifier, load_start
load_denoiser("laptop/ddpm"), load_start("laptop/start"), [load_classifier(f"laptop/{k}") for k in ("robust", "nonrobust", "nonrobust_coupled", "judge")]
""",
        ]
    )
    subprocess.run([str(python), "-c", code], check=True, cwd=tmp_path)
    out = subprocess.run(
        [str(tmp_path / "env" / "bin" / "gradcheck"), "info"], check=True, cwd=tmp_path, capture_output=True, text=True
    ).stdout
    assert out.count("verified") == 6
