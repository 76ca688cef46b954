"""Sixty kills (-9) at random times over sampling, training, reproducing and exporting. When the command is run again,
nothing that was finished is lost, the bytes are those of an undisturbed run, and nothing is left over."""
import random
from dataclasses import dataclass
from pathlib import Path

import fixtures
import pytest
from worlds import FOLDER, MODELS, copied

pytestmark = pytest.mark.slow
warm = fixtures.warm
world = fixtures.world
KILLS, MOST_TRIES = 15, 45                                 # of each command; a kill that comes too late is not counted
PIECES = ("*.safetensors", "*.npy")                         # what is finished piece by piece


@dataclass(frozen=True)
class Task:
    "A command, what it needs of the world, what is added when it runs again, and what differs from run to run."
    args: tuple
    parts: tuple
    again: tuple = ()
    volatile: tuple = ()                                   # names of files that hold seconds or dates


TASKS = {
    "sampling": Task(("sample", *MODELS, "--steps", "8", "--count", "64", "--scale", "3", "--out", "out"), ("d", "c")),
    "training": Task(
        ("train", "ddpm", "--preset", "smoke", *FOLDER, "--out", "out"),
        ("pics",),
        ("--resume",),
        ("ddpm.json", "start.json", "log.jsonl", "checkpoint.safetensors", "000000.json"),
    ),
    "reproducing": Task(
        ("reproduce", "figure_4", "--preset", "smoke", "--out", "out"),
        ("nbs", "settings.ini"),
        (),
        ("figure_4.ipynb", "figure_4.json", "figure_4.pdf", "figure_4.stamp", "index.html"),
    ),
    "exporting": Task(("export", "d/ddpm.safetensors", "--out", "out"), ("d",)),
}


def files_in(stage):
    "All files that a command left, {name: path}; the data that it was given and Python's own are not its."
    return {str(p.relative_to(stage)): p for top in ("out", "cache") for p in (stage / top).rglob("*") if p.is_file()}


def bytes_of(files, task):
    "What must be the same from run to run."
    return {name: path.read_bytes() for name, path in files.items() if Path(name).name not in task.volatile}


def finished(files):
    "The pieces that are done, with their times: a piece that is computed again has another."
    pieces = {name: path for name, path in files.items() if any(path.match(pattern) for pattern in PIECES)}
    return {n: (p.stat().st_mtime_ns, p.read_bytes()) for n, p in pieces.items() if n.startswith("cache/")}


def run(warm, task, stage, again=False, kill_after=None):
    own = dict(GRADCHECK_CACHE=str(stage / "cache"))
    return warm(*task.args, *(task.again if again else ()), cwd=stage, kill_after=kill_after, wall=300.0, **own)


def faults(warm, task, stage, expected):
    "What is wrong after a killed call was run again: sentences."
    kept = finished(files_in(stage))
    done = run(warm, task, stage, again=True)
    if done.code: return [f"the second run ended with {done.code}: {done.said[-300:]}"]
    files = files_in(stage)
    now, after = bytes_of(files, task), finished(files)
    told = [f"lost or made again: {name}" for name in kept if after.get(name) != kept[name]]
    told += [f"another {name}" for name in expected if name in now and now[name] != expected[name]]
    told += [f"no {name}" for name in expected if name not in now]
    return told + [f"left over: {name}" for name in now if name not in expected]


@pytest.mark.parametrize("name", TASKS)
def test_a_killed_command_is_run_again(warm, world, tmp_path, name):
    task, dice, stage, killed, told = TASKS[name], random.Random(name), tmp_path / "stage", 0, []
    source = world / "checkout" if name == "reproducing" else world
    copied(source, task.parts, stage)
    undisturbed = run(warm, task, stage)
    assert undisturbed.code == 0, undisturbed.said[-300:]
    expected = bytes_of(files_in(stage), task)
    for _ in range(MOST_TRIES):
        copied(source, task.parts, stage)
        moment = dice.uniform(0, undisturbed.wall)
        if run(warm, task, stage, kill_after=moment).code != -9: continue
        killed += 1
        told += [f"killed after {moment:.2f} s: {fault}" for fault in faults(warm, task, stage, expected)]
        if killed == KILLS: break
    print(f"{name}: {killed} kills, {len(told)} faults", *told, sep="\n")
    assert killed == KILLS and told == []
