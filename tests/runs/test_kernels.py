"""Notebooks of several figures run in copies of one warm process; where one of them fails, the others end with it."""
import os
import subprocess
import time

import nbformat
import pytest
from jupyter_client import launcher

from gradcheck.models.networks import use_threads
from gradcheck.runs.kernels import ForkedKernel, side_by_side, warm_kernels
from gradcheck.runs.notebooks import Shelf, as_called, run_notebook, shelf


@pytest.fixture
def notebook(tmp_path):
    "Makes a notebook of a line of code, in a folder of its own."
    def make(name, code):
        cells = [nbformat.v4.new_code_cell("seed = 0"), nbformat.v4.new_code_cell(code)]
        cells[0].metadata["tags"] = ["parameters"]
        (tmp_path / name).mkdir()
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / name / "one.ipynb")
        return tmp_path / name / "one.ipynb"
    return make


def said_of(name):
    "What the last cell of a notebook on the shelf printed."
    page = nbformat.reads(shelf().texts.pop(name), 4)
    return page.cells[-1].outputs[0].text.split()


def test_two_at_a_time_and_what_is_raised_ends_them(notebook, monkeypatch, tmp_path):
    "One notebook tells where it is; the other would sleep for a minute, but for the error beside it."
    monkeypatch.setattr(launcher, "Popen", subprocess.Popen)           # the tests' own copies stand aside
    told = notebook("told", "import os, pandas, torch\nprint(os.getcwd(), seed, torch.get_num_threads(), os.getppid(), "
                            "pandas.get_option('display.max_columns'))")
    slow = notebook("slow", f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'x').write(str(os.getpid()))\n"
                            "time.sleep(60)")
    begun, here = time.monotonic(), os.getcwd()
    warm = ["pandas", "ipykernel.zmqshell"]
    with pytest.raises(KeyError, match="beside"), use_threads(2), side_by_side(warm, 2) as submit:
        sleeping = submit(run_notebook, slow, f"{Shelf.scheme}slow.ipynb", {})
        submit(run_notebook, told, f"{Shelf.scheme}told.ipynb", dict(seed=7)).result()
        folder, seed, threads, parent, columns = said_of(f"{Shelf.scheme}told.ipynb")
        assert (folder, seed, threads, columns) == (str(told.parent), "7", "1", "20")
        assert int(parent) == launcher.Popen.process.pid and os.getcwd() == here
        while not (tmp_path / "pid").exists(): time.sleep(0.05)
        raise KeyError("beside")
    assert time.monotonic() - begun < 60 and sleeping.exception() is not None
    assert launcher.Popen is subprocess.Popen
    with pytest.raises(ProcessLookupError): os.kill(int((tmp_path / "pid").read_text()), 0)


def test_one_notebook_is_executed_at_once_and_here():
    with side_by_side(["no such module"], 1) as submit: assert submit(os.getpid).result() == os.getpid()


def test_what_is_no_kernel_of_this_python_begins_anew(monkeypatch):
    monkeypatch.setattr(launcher, "Popen", subprocess.Popen)
    with warm_kernels([], 1) as warm:
        if not warm: return
        other = launcher.Popen(["true"], stdin=subprocess.PIPE)
        assert other.wait() == 0 and launcher.Popen.connection is None


def test_a_kernel_has_ended_when_its_pipe_has():
    ours, theirs = os.pipe()
    kernel = ForkedKernel(os.getpid(), os.fdopen(ours, "rb"))
    assert kernel.poll() is None
    with pytest.raises(subprocess.TimeoutExpired): kernel.wait(0.01)
    os.close(theirs)
    assert kernel.poll() == kernel.wait() == 1


def test_as_called_within_itself_changes_nothing():
    with as_called():
        before = dict(os.environ)
        with as_called(): assert os.environ == before
        assert os.environ == before


@pytest.mark.skipif(os.name != "posix", reason="no sockets in files")
@pytest.mark.parametrize("longest, transport", [(80, "ipc"), (1, "tcp")])
def test_a_kernel_listens_at_files_of_its_own_where_their_paths_are_short(notebook, monkeypatch, longest, transport):
    "No other process can take them, as it can a port; what was there is gone afterwards."
    monkeypatch.setattr("gradcheck.runs.notebooks.LONGEST", longest)
    name = f"{Shelf.scheme}{transport}.ipynb"
    app = "from ipykernel.kernelapp import IPKernelApp; app = IPKernelApp.instance()\n"
    run_notebook(notebook(transport, f"{app}print(app.transport, app.abs_connection_file)"), name, {})
    found, file = said_of(name)
    assert found == transport and not os.path.exists(file)
    if transport == "ipc": assert not os.path.exists(os.path.dirname(file))
