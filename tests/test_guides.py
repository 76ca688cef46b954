"""Every command in the README and the guides works: each runs once, at the smallest size."""
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pages import GUIDES, README, ROOT, commands, text_of
from PIL import Image
from test_celeba import paint

PAGES = [README, *GUIDES]
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands(page)))
ELSEWHERE = {   # command -> where it is run
    "gradcheck bench": "tests/test_cli.py",
    "gradcheck diagnose --denoiser PIPELINE --classifier mine.py:make --data PICTURES": "tests/app/test_diagnose.py",
    "gradcheck compare": "tests/test_cli.py, tests/paper/test_compare.py",
    "gradcheck compare results/laptop": "tests/test_cli.py, tests/paper/test_compare.py",
    "gradcheck compare results/study": "tests/paper/test_study_compare.py",
    "gradcheck reproduce --authors data/nrCG/pretrained_models/sportballs": "tests/paper/test_authors.py",
    "gradcheck reproduce --write-back": "tests/paper/test_executed.py",
    "gradcheck reproduce adam_apart --full": "tests/paper/test_factorial.py",
    "gradcheck reproduce claims --full": "tests/paper/test_study.py",
    "gradcheck reproduce claims --full --plan": "tests/paper/test_study.py",
    "gradcheck reproduce claims --full --mode draws=paper": "tests/paper/test_study.py",
    "gradcheck reproduce frontiers --full": "tests/paper/test_frontiers.py",
    "gradcheck reproduce frontiers --full --plan": "tests/paper/test_frontiers.py",
    "gradcheck reproduce similarity_and_success --full": "tests/paper/test_measured.py",
}

MODELS = '''
import torch
from gradcheck.guidance.stabilizers import Stabilizer


class Halved(Stabilizer):
    def __call__(self, g):
        return g / 2


def make():
    return torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(192, 4))
'''
SMALL = (   # pattern -> the same at the smallest size: one figure where a command makes all, few steps, few pictures
    (r"^gradcheck reproduce (?=-)", "gradcheck reproduce figure_3 "),
    (r"reproduce table_1_appendix", "reproduce figure_3"),
    (r"^(gradcheck reproduce (?!.*-p steps).*)", r"\1 -p steps=3"),
    (r"--preset (laptop|paper)", "--preset smoke"),
    (r"preset laptop$", "preset smoke"),
    (r"^(gradcheck (?:reproduce|train) (?!.*--preset).*)", r"\1 --preset smoke"),
    (r"--steps \d+", "--steps 3"),
    (r"--count \d+", "--count 2"),
    (r"^gradcheck evaluate", "gradcheck evaluate --count 4 --images 20 --preset smoke"),
    (r"^(gradcheck sample (?!.*--steps).*)", r"\1 --steps 3"),
    (r"^(gradcheck sample (?!.*--count).*)", r"\1 --count 2"),
    (r" --resume", ""),
    (r" THIS_ADDRESS", " local"),
)


def shrunk(command):
    for pattern, small in SMALL:
        command = re.sub(pattern, small, command)
    return command


def to_run():
    "Commands of gradcheck that run here; of those that are the same at the smallest size, one."
    ours = [c for c in COMMANDS if c.startswith("gradcheck ") and c not in ELSEWHERE]
    return list({tuple(sorted(shlex.split(shrunk(c)))): c for c in ours}.values())


@pytest.fixture
def workplace(tmp_path, monkeypatch, shared_cache):
    "A checkout."
    for name in ("settings.ini", "nbs", "Makefile"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "mine.py").write_text(MODELS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pictures(folder, count):
    for k, name in enumerate(("a", "b", "c", "d")):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(10 * k + i))
            Image.fromarray((noise * 255).byte().numpy()).save(folder / name / f"{i}.png")


def prepare(command, folder, cli):
    if "PIPELINE" in command:
        assert cli("export", "laptop/ddpm", "--out", folder / "PIPELINE")[0] == 0
    if "PICTURES" in command:
        pictures(folder / "PICTURES", 30)
    if "celeba" in command:
        paint(folder / "data" / "celeba")


@pytest.mark.parametrize("command", to_run())
def test_a_command(command, workplace, cli, quickly_examined):
    prepare(command, workplace, cli)
    code, out, err = cli(*shlex.split(shrunk(command))[1:])
    if "--precision" in command and code:                                  # there may be no units for it
        assert code == 2
        assert "would be slower on this machine" in err
        return
    assert code == 0, err
    assert out


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("papermill ")])
def test_papermill(command, workplace):
    call = [sys.executable, "-m", *shlex.split(shrunk(command)), "--no-progress-bar", "-k", "python3"]
    subprocess.run(call, check=True, capture_output=True)
    assert Path("out.ipynb").is_file()


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_knows_the_target_and_what_it_calls(command):
    "The targets themselves take minutes to hours; what they call is among the commands above, or is CI itself."
    call = [*shlex.split(command), "-n"]
    plan = subprocess.run(call, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert any(word in plan for word in ("gradcheck", "pytest", "papermill", "jupyter")), plan


def test_no_other_commands():
    assert COMMANDS
    assert [c for c in COMMANDS if not c.startswith(("gradcheck ", "make ", "papermill "))] == []


def test_each_command_of_the_command_line_is_in_a_guide():
    from gradcheck.commands import app

    known = {command.callback.__name__ for command in app.registered_commands}
    shown = {shlex.split(c)[1] for c in COMMANDS if c.startswith("gradcheck ")}
    assert known <= shown, known - shown
    assert all(shlex.split(c)[1] in known
               for c in COMMANDS if c.startswith("gradcheck "))


@pytest.mark.parametrize("command", commands(CONTRIBUTING))
def test_what_contributors_are_told_to_call_is_there(command):
    "The programs and the paths; what they do is what the other tests, or CI, do."
    program, *rest = shlex.split(command)
    if program == "make":
        subprocess.run(["make", "-n", *rest], check=True, capture_output=True, cwd=ROOT)
    else:
        assert (Path(sys.executable).parent / program).is_file()
    for word in rest:
        if "/" in word:
            assert (ROOT / word).exists(), word


def test_the_switches_of_the_guide_are_those_of_the_code():
    "Their names, what is the default, and the number among them."
    from gradcheck.guidance.stabilizers import make_stabilizer
    from gradcheck.paper.presets import get_preset
    from gradcheck.paper.quirks import DEFAULT_MODE, QUIRKS

    text = text_of(ROOT / "nbs" / "guides" / "switches.ipynb")
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\w+) \|$", text, re.M)
    assert dict(rows) == DEFAULT_MODE
    assert set(QUIRKS) == set(DEFAULT_MODE)
    assert f"{get_preset('laptop').sweep_count} generations" in text
    for name in ("adam", "adam_corrected"):
        assert f"eps = {make_stabilizer(name).eps:.0e}".replace("e-0", "e-") in text


def test_python_in_the_guides_is_python():
    import ast

    for page in GUIDES:
        for block in re.findall(r"```py\n(.*?)```", text_of(page), re.S):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and node.module.startswith("gradcheck"):
                    module = importlib.import_module(node.module)
                    assert all(hasattr(module, name.name) for name in node.names)
