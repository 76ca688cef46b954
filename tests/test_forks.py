"""A fork is a process of its own; and what tests cost is read as it was measured."""
import json
import os
import signal
import subprocess
import sys
import time

import forks
import pytest
from conftest import FIRST, LONG, pytest_collection_modifyitems
from durations import by_file, durations


def python(code, *args, **how): return forks.run([sys.executable, "-c", code, *args], **how)


def test_a_fork_has_arguments_folder_environment_and_exit_code_of_its_own(tmp_path):
    code = "import os, sys; print(sys.argv[1:], os.getcwd(), os.environ['A']); print('wrong', file=sys.stderr); exit(3)"
    done = python(code, "x", cwd=tmp_path, env=os.environ | {"A": "b"})
    assert (done.returncode, done.stdout, done.stderr) == (3, f"['x'] {tmp_path} b\n", "wrong\n")
    assert "A" not in os.environ


def test_forks_share_nothing_but_what_was_imported():
    code = "import random, sys; print('torch' in sys.modules, hasattr(sys, 'left'), random.random()); sys.left = 1"
    one, other = (python(code).stdout.split() for _ in range(2))
    assert one[:2] == other[:2] == ["True", "False"] and one[2] != other[2]


def test_a_fork_has_a_group_of_its_own_from_the_beginning():
    "Else who kills the group of a kernel kills everybody."
    process = forks.Forked([sys.executable, "-c", "import time; time.sleep(600)"])
    assert os.getpgid(process.pid) == process.pid != os.getpgid(0)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def test_an_error_is_told_as_python_tells_it():
    done = python("1 / 0")
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"
    with pytest.raises(AssertionError, match="ended with 1"): python("1 / 0", check=True)


def test_a_fork_is_killed_like_a_process(tmp_path):
    (process := forks.Forked([sys.executable, "-c", "import time; time.sleep(600)"])).send_signal(signal.SIGKILL)
    assert process.wait() == process.poll() == -signal.SIGKILL
    with pytest.raises(subprocess.TimeoutExpired): (slow := forks.Forked(process.args)).wait(0.01)
    slow.terminate()
    assert slow.wait() == -signal.SIGTERM


def test_who_is_no_longer_waited_for_is_ended():
    process = forks.Forked([sys.executable, "-c", "import time; time.sleep(600)"])
    process.answers.close()
    process.connection.close()
    for _ in range(600):
        try: os.kill(process.pid, 0)
        except ProcessLookupError: return
        time.sleep(0.1)
    raise AssertionError("it lives on")


def test_a_kernel_of_a_fork_is_a_fork():
    code = "from jupyter_client import launcher; print(launcher.Popen.__name__)"
    assert python(code).stdout == "ForkedKernel\n"


BARS = "from gradcheck.runs.runs import tqdm\nfor _ in tqdm(range(2)): pass"


def test_a_fork_has_the_progress_bars_of_a_terminal():
    done = python(BARS)
    assert done.stdout == "" and "2/2" in done.stderr


def test_a_forked_kernel_shows_what_is_drawn_and_progress_in_a_widget(tmp_path):
    import nbformat
    import papermill as pm

    drawing = "fig, ax = plt.subplots()\nax.plot([1, 2]);"
    cells = ["import matplotlib.pyplot as plt", drawing, "import sys; sys.argv[0]", BARS]
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nbformat.write(page, tmp_path / "in.ipynb")
    own = dict(kernel_name="python3", language="python", progress_bar=False)
    done = pm.execute_notebook(str(tmp_path / "in.ipynb"), str(tmp_path / "out.ipynb"), **own)
    assert "image/png" in done.cells[1].outputs[0].data
    assert "ipykernel_launcher" in done.cells[2].outputs[0].data["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" in done.cells[3].outputs[0].data


# --- what tests cost --------------------------------------------------------------------------
def test_durations_are_the_last_that_were_measured():
    rows = [("a.py::x", 1.0), ("a.py::y", 0.01), ("b.py::z", 2.0), ("a.py::x", 3.0)]
    known = durations(json.dumps(dict(test=test, cpu=cpu)) for test, cpu in rows)
    assert list(known.items()) == [("a.py::x", 3.0), ("b.py::z", 2.0)]
    assert [line.split()[::2] for line in by_file(known)] == [["3.0", "a.py"], ["2.0", "b.py"], ["5.0", "all"]]


class Asked:
    "A configuration of pytest, and what it was told of tests that are left out."
    def __init__(self, fast): self.fast, self.left, self.hook = fast, [], self
    def getoption(self, name, default): return self.fast
    def pytest_deselected(self, items): self.left += items


class Item:
    def __init__(self, nodeid): self.nodeid = nodeid


@pytest.mark.parametrize("fast", [False, True])
def test_the_longest_begin_first_and_the_fast_are_those_below_a_second(fast, monkeypatch, tmp_path):
    known = {"short": LONG / 2, "medium": LONG, "long": FIRST, "longest": 2 * FIRST}
    (tmp_path / "known.json").write_text(json.dumps(known), encoding="utf-8")
    monkeypatch.setattr("conftest.DURATIONS", tmp_path / "known.json")
    items, asked = [Item(n) for n in ("new", "medium", "long@figures", "short", "longest")], Asked(fast)
    pytest_collection_modifyitems(asked, items)
    first, rest = ["longest", "long@figures"], ["new", "medium", "short"]
    assert [i.nodeid for i in items] == (["new", "short"] if fast else first + rest)
    assert sorted(i.nodeid for i in asked.left) == (["long@figures", "longest", "medium"] if fast else [])
