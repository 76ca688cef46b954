"""The package as it is shipped: in sync with the notebooks, importable module by module, and from a bare wheel."""
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
MODULES = sorted(p for p in (ROOT / "gradcheck").rglob("*.py") if not p.stem.startswith("_"))
NAMES = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in MODULES]
NEEDS_WIDGETS = ("gradcheck.app.controls", "gradcheck.app.explorer")      # these need the extra `notebooks`
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "The project as a user would get it: nbs, package and set-up files, in a fresh folder."
    folder = tmp_path_factory.mktemp("copy")
    rubbish = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("nbs", "gradcheck"):
        shutil.copytree(ROOT / name, folder / name, ignore=rubbish)
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def test_modules_and_notebooks_are_in_sync_and_clean(copy):
    paths = sorted(copy.rglob("*.py")) + sorted(copy.rglob("*.ipynb"))
    before = {p: p.read_text(encoding="utf-8") for p in paths}
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    for command in ("nbdev_clean", "nbdev_export"):
        subprocess.run([str(BIN / command)], check=True, cwd=copy, env=environment)
    changed = [str(p.relative_to(copy)) for p, text in before.items() if p.read_text(encoding="utf-8") != text]
    assert changed == []


def test_modules_stay_small():
    lengths = {name: len(m.read_text(encoding="utf-8").splitlines()) for name, m in zip(NAMES, MODULES)}
    assert {name: n for name, n in lengths.items() if n > 250} == {}


IMPORT_ALL = f"""
import importlib
import importlib.util

import gradcheck

assert "site-packages" in gradcheck.__file__
for name in {NAMES}:
    if name in {NEEDS_WIDGETS}:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as e:
            assert e.name == "ipywidgets", e
        else:
            raise AssertionError("the explorer needs no widgets?")
    else:
        importlib.import_module(name)
for name in ("nbdev", "pytest", "papermill", "ipykernel", "jupyterlab", "ipywidgets", "nbconvert"):
    assert importlib.util.find_spec(name) is None, name

from gradcheck.all import *
from gradcheck.models.checkpoints import load_classifier, load_denoiser, load_start, load_weights

DDPM, Guidance, guided_steps
for folder in ("laptop", "coupled"):
    load_denoiser(f"{{folder}}/ddpm")
    load_start(f"{{folder}}/start")
for name in ("laptop/robust", "laptop/nonrobust", "laptop/judge", "coupled/robust", "coupled/nonrobust"):
    load_classifier(name)
load_weights("laptop/autoencoder", "Autoencoder")
"""


def needed(names):
    "The distributions that are installed here and that these need, all the way down."
    found, todo = {}, list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found: continue
        found[name] = distribution(name)
        asked = [Requirement(line) for line in found[name].requires or ()]
        todo += [r.name for r in asked if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found.values()


def lend(distributions, folder):
    "What these distributions installed here, as links in another environment's folder of packages."
    for lent in distributions:
        for top in {file.parts[0] for file in lent.files if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).exists(): (folder / top).symlink_to(lent.locate_file(top))


def test_the_wheel_works_in_an_environment_with_what_it_declares(copy, tmp_path):
    """With jinja2 and all else it declares (links to what is installed here: to unpack torch again takes a minute),
    without notebooks; what needs no notebook runs."""
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(copy)]
    subprocess.run(build, check=True, capture_output=True)
    wheel, = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True)
    python, gradcheck = tmp_path / "env" / "bin" / "python", tmp_path / "env" / "bin" / "gradcheck"
    packages, = (tmp_path / "env").glob("lib/python*/site-packages")
    lend(needed(required(settings()["requirements"])), packages)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def call(*command):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    pip = (sys.executable, "-m", "pip", "--python", str(python))
    call(*pip, "install", "-q", "--no-compile", "--no-index", str(wheel))                   # all it needs is there
    call(str(python), "-c", IMPORT_ALL)
    bundled = list((ROOT / "gradcheck" / "weights").rglob("*.json"))
    assert call(str(gradcheck), "info").count("verified") == len(bundled) == 10
    call(str(gradcheck), "sample", "--steps", "2", "--count", "1", "--out", str(tmp_path / "sample"))
    assert list((tmp_path / "sample").rglob("*.png"))


def settings():
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def required(text):
    return {re.split(r"[<>=\[]", word)[0].lower().replace("_", "-") for word in text.split()}


def test_constraints_pin_all_that_is_asked_for():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0] for line in lines if not line.startswith("#")}
    for name, value in settings().items():
        if name.endswith("requirements"):
            assert required(value) <= pinned, name


def test_what_is_imported_is_declared():
    "Packages that the modules import at their top are requirements, or come with one of them."
    own = sys.stdlib_module_names | {"gradcheck", "PIL", "IPython"}
    found = set()
    for module in MODULES:
        text = module.read_text(encoding="utf-8")
        found |= set(re.findall(r"^(?:from|import) ([A-Za-z_]\w*)", text, re.M))
    declared = required(settings()["requirements"]) | required(settings()["notebooks_requirements"])
    assert found - own <= declared


def test_nbdev_3_is_told_what_nbdev_2_is():
    tomllib = pytest.importorskip("tomllib")                                # Python 3.11
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["nbdev"]
    for name, value in table.items():
        told = " ".join(value) if isinstance(value, list) else str(value)
        assert settings()[name] == told, name


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("missing, sentence", [("venv", "python3-venv"), ("new", "older than 3.10")])
def test_make_says_what_python_lacks(tmp_path, missing, sentence):
    "A python that fails where it is asked for its version, or for venv: one sentence of make, nothing made."
    python = tmp_path / "python3"
    asked = {"venv": "*venv*", "new": "*version_info*"}[missing]
    python.write_text(f'#!/bin/sh\ncase "$2" in {asked}) exit 1;; esac\n', encoding="utf-8")
    python.chmod(0o755)
    for name in ("Makefile", "settings.ini", "setup.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    call = ["make", "figures", f"PYTHON={python}"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and sentence in done.stdout
    assert not (tmp_path / ".venv").exists()


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("call, expected", [
    (("figures", "WRITE_BACK=1"), "reproduce --preset laptop --write-back"),
    (("figures", "PIP_ARGS=--no-deps", "-W", "settings.ini"), "-c constraints.txt --no-deps -e"),
    (("lab",), "nbs/index.ipynb"),
])
def test_what_make_passes_on(call, expected):
    plan = subprocess.run(["make", "-n", *call], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert expected in plan
