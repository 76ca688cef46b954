"""What the README says works: its code and every command in it run (at the smallest size), and its links lead
somewhere."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_celeba import paint

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S)
    for line in block.splitlines()
    if line.split("#")[0].strip()
]


def test_ten_lines(tmp_path, monkeypatch, global_rng_untouched):
    code, = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("steps=100", "steps=8"), "README.md", "exec"), {})
    assert Image.open("volleyballs.png").size == Image.open(ROOT / "nbs" / "images" / "volleyballs.png").size


MODELS = '''
import torch
from gradcheck.guidance.stabilizers import Stabilizer

class Halved(Stabilizer):
    def __call__(self, g): return g / 2

def make(): return torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(192, 4))
'''
SMALL = [  # the same commands at the smallest size: one figure where they make all, few steps, few pictures
    (r"^gradcheck reproduce (?=-)", "gradcheck reproduce figure_3 "),
    (r"reproduce table_1_appendix", "reproduce figure_3"),
    (r"^(gradcheck reproduce .*)", r"\1 -p steps=3"),
    (r"--preset (laptop|paper)", "--preset smoke"),
    (r"preset laptop$", "preset smoke"),
    (r"^(gradcheck (?:reproduce|train) (?!.*--preset).*)", r"\1 --preset smoke"),
    (r"--steps \d+", "--steps 3"),
    (r"--count \d+", "--count 2"),
    (r"^gradcheck evaluate", "gradcheck evaluate --count 4 --images 20 --preset smoke"),
    (r"^(gradcheck sample (?!.*--steps).*)", r"\1 --steps 3"),
    (r"^(gradcheck sample (?!.*--count).*)", r"\1 --count 2"),
    (r"--resume", ""),
    (r" THIS_ADDRESS", " local"),
]


def shrunk(command):
    for pattern, small in SMALL: command = re.sub(pattern, small, command)
    return command


@pytest.fixture
def workplace(tmp_path, monkeypatch, own_cache, tmp_path_factory):
    "A checkout, and a cache that all commands share."
    monkeypatch.setenv("GRADCHECK_CACHE", str(tmp_path_factory.getbasetemp().parent / "readme"))
    for name in ("settings.ini", "nbs", "Makefile"): (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "mine.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pictures(folder, count):
    for k, name in enumerate(("a", "b", "c", "d")):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(
                (torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(10 * k + i)) * 255).byte().numpy()
            ).save(folder / name / f"{i}.png")


def prepare(command, folder, cli):
    if "PIPELINE" in command: assert cli("export", "laptop/ddpm", "--out", folder / "PIPELINE")[0] == 0
    if "PICTURES" in command: pictures(folder / "PICTURES", 30)
    if "celeba" in command: paint(folder / "data" / "celeba")


# which test_cli runs
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("gradcheck ") and c != "gradcheck bench"])
def test_a_command(command, workplace, cli):
    prepare(command, workplace, cli)
    code, out, err = cli(*shlex.split(shrunk(command))[1:])
    assert code == 0, err
    assert out


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("papermill ")])
def test_papermill(command, workplace):
    subprocess.run(
        [sys.executable, "-m", *shlex.split(shrunk(command)), "--no-progress-bar", "-k", "python3"],
        check=True,
        capture_output=True,
    )
    assert Path("out.ipynb").is_file()


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_knows_the_target_and_what_it_calls(command):
    "The targets themselves take minutes to hours; what they call is among the commands above, or is CI itself."
    plan = subprocess.run([*shlex.split(command), "-n"], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert any(word in plan for word in ("gradcheck", "pytest", "papermill", "jupyter")), plan


def test_no_other_commands():
    assert COMMANDS and all(c.startswith(("gradcheck ", "make ", "papermill ")) for c in COMMANDS), COMMANDS


def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if not link.startswith("http")]
    assert len(links) > 20
    for link in links: assert (ROOT / link).is_file(), link


def test_every_notebook_is_listed():
    for nb in [
        *(ROOT / "nbs").rglob("[0-9]*.ipynb"),
        *(ROOT / "nbs" / "tutorials").glob("*.ipynb"),
        *(ROOT / "nbs" / "figures").glob("*.ipynb"),
    ]:
        assert nb.relative_to(ROOT).as_posix() in TEXT, nb.name
