"""What a command says can be lost, on a full disk or to a closed stream; what it makes is not, and it ends with 2."""
import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gradcheck.streams import Patient, patient, unsaid

FULL = Path("/dev/full")
COMMAND = str(Path(sys.executable).parent / "gradcheck")
full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


def shell(line, cwd, **env):
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=cwd, env=os.environ | env)


class Raw(io.RawIOBase):
    "A file that refuses every byte, with an error of this number; none for 0."
    def __init__(self, number): self.number, self.kept = number, b""
    def writable(self): return True
    def write(self, data):
        if self.number: raise OSError(self.number, os.strerror(self.number))
        self.kept += bytes(data)
        return len(data)


def text_over(number, buffered=True):
    raw = Raw(number)
    return io.TextIOWrapper(io.BufferedWriter(raw) if buffered else raw, "ascii", write_through=not buffered)


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EBADF])
def test_what_cannot_be_written_is_swallowed_and_told_at_the_end(monkeypatch, number, buffered):
    stream = patient(text_over(number, buffered), heard=True)
    monkeypatch.setattr(sys, "stdout", stream)
    for _ in range(2): print("x̂₀ " * 9000, flush=True)
    said = unsaid()
    assert os.strerror(number) in said and said.count(". ") == 0 and said.endswith(".")


def test_a_stream_that_takes_all_is_as_it_was(monkeypatch):
    before = text_over(0)
    before.write("before ")
    stream = patient(before, heard=True)
    assert patient(stream, heard=True) is stream                               # once is enough
    monkeypatch.setattr(sys, "stdout", stream)
    print("x̂")
    assert unsaid() == "" and stream.encoding == "ascii"
    assert stream.buffer.raw.raw.kept.replace(b"\r", b"") == b"before x\\u0302\n"


def test_a_pipe_without_a_reader_ends_a_command_that_is_heard_and_no_other(monkeypatch):
    with pytest.raises(BrokenPipeError): Patient(Raw(errno.EPIPE), heard=True).write(b"x")
    assert Patient(Raw(errno.EPIPE), heard=False).write(b"x") == 1
    stream = patient(text_over(errno.EPIPE), heard=True)
    monkeypatch.setattr(sys, "stdout", stream)
    print("x")
    with pytest.raises(SystemExit) as ended: unsaid()
    assert ended.value.code == 1
    stream.flush()                                                             # as Python does at its end


def test_what_is_no_file_stays_as_it_is():
    text = io.StringIO()
    assert patient(text, heard=True) is text
    assert patient(None, heard=True).write("x") == 1                           # pythonw, or a closed stream


@full
@pytest.mark.parametrize("to", ["> /dev/full", ">&-"])
@pytest.mark.parametrize("args", ["--help", "compare --help"])
def test_a_command_whose_words_are_lost_says_so_in_a_sentence(tmp_path, args, to):
    done = shell(f"{COMMAND} {args} {to}", tmp_path, TMPDIR=str(tmp_path))
    assert done.returncode == 2 and "could not be written to standard output" in done.stderr, done.stderr
    assert done.stderr.startswith("gradcheck: ") and done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


@full
@pytest.mark.parametrize("to", ["> /dev/full 2> /dev/full", "<&- >&- 2>&-", "2> /dev/full", "2>&-"])
def test_a_run_is_computed_and_written_though_nothing_can_be_said(tmp_path, to):
    "The number of a closed stream would be that of the next file, and the bar's letters would stand in it."
    (tmp_path / "tmp").mkdir()
    done = shell(f"{COMMAND} sample --scale 0.1 --steps 3 --count 2 --out out {to}", tmp_path,
                 TMPDIR=str(tmp_path / "tmp"), GRADCHECK_CACHE=str(tmp_path / "cache"))
    assert done.returncode == (2 if ">&-" in to.split() or "> /dev/full 2" in to else 0), done
    assert {"grid.png", "cosine.csv", "run.json"} <= {p.name for p in (tmp_path / "out").iterdir()}
    assert not list((tmp_path / "tmp").glob("gradcheck-*"))
    assert (tmp_path / "out" / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_a_closed_pipe_ends_quietly(tmp_path):
    with subprocess.Popen([COMMAND, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 1


HELD = """
import subprocess, sys
from gradcheck.streams import hold_numbers
hold_numbers()
child = "import sys; print(None in (sys.stdin, sys.stdout, sys.stderr), file=open('told', 'a'))"
subprocess.run([sys.executable, "-c", child], close_fds=False)
"""


@pytest.mark.skipif(os.name == "nt", reason="a shell that closes streams")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_held_open_here_and_in_what_is_begun(tmp_path, closed):
    (tmp_path / "held.py").write_text(HELD)
    shell(f"{sys.executable} held.py {closed}", tmp_path)
    assert (tmp_path / "told").read_text() == "False\n"
