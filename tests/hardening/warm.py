"""A warm server: it imports torch and gradcheck once, and forks a child for each call of `gradcheck.cli.main`.

A child is an ordinary process with streams, folder and environment of its own; it can be killed, stopped by Ctrl-C,
and its time and memory are its own. Run as a script this file is the server, a line of JSON per call; `Warm` is its
client."""
import contextlib
import importlib
import json
import os
import pkgutil
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
FAR_TOO_MUCH = 4 * GIB                                     # a child is killed here, twice above what is allowed
GRACE = 10                                                 # seconds from Ctrl-C to the end
BEFOREHAND = ("matplotlib.pyplot", "torch._dynamo", "papermill", "ipykernel", "diffusers.models.unets.unet_2d",
              "diffusers.schedulers.scheduling_ddpm", "diffusers.pipelines.ddpm.pipeline_ddpm")


@dataclass(frozen=True)
class Done:
    "How a call ended: its exit code (negative: a signal's), what it said, CPU and wall seconds, peak bytes."
    code: int
    out: str
    err: str
    cpu: float
    wall: float
    peak: int
    cut: bool                                              # did it run past its limit?
    deaf: bool = False                                     # did it go on after Ctrl-C?

    @property
    def said(self): return self.out + self.err


class Warm:
    "The client: `warm(*args, cwd=...)` calls `gradcheck ARGS` in a child of the server and returns a `Done`."

    def __init__(self):
        own = {"TQDM_DISABLE": "1", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        kept = {k: v for k, v in os.environ.items() if not k.startswith("GRADCHECK_")}
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=kept | own
        )

    def __call__(self, *args, cwd, cpu=60.0, wall=180.0, kill_after=None, stop=False, **env):
        """`cpu` and `wall` are limits in seconds, at which the child is killed (or, with `stop`, told by Ctrl-C to
        stop); `kill_after` seconds it is killed in any case."""
        request = dict(args=[str(a) for a in args], cwd=str(cwd), cpu=cpu, wall=wall, kill_after=kill_after, stop=stop)
        self.server.stdin.write(json.dumps(request | {"env": env}) + "\n")
        self.server.stdin.flush()
        answer = self.server.stdout.readline()
        if not answer: raise RuntimeError("the warm server ended; run tests/hardening/warm.py by hand to see why")
        return Done(**json.loads(answer))

    def close(self):
        self.server.stdin.close()
        self.server.wait()


def prepared():
    "Import what the commands import while they work, so that a child does not have to; returns `main`."
    import gradcheck

    modules = [m.name for m in pkgutil.walk_packages(gradcheck.__path__, "gradcheck.")]
    for name in [*modules, *BEFOREHAND]:
        with contextlib.suppress(ImportError): importlib.import_module(name)
    from gradcheck.cli import main

    return main


def child(main, request):
    "Become the process that a person would have started; never returns."
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(request["cwd"])
        os.environ.update(request["env"])
        tempfile.tempdir = None                            # $TMPDIR is looked up again
        sys.argv = ["gradcheck", *request["args"]]
        sys.path[0] = str(Path(sys.executable).parent)     # not the folder of this file
        main()
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:                                  # the interpreter would print it, and end with 1
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def at_work(pid):
    "(CPU seconds, resident bytes) of a process until now."
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK"), int(fields[21]) * resource.getpagesize()


def attended(pid, request):
    "Wait for a child, and end it where it goes too far; returns the fields of a `Done`."
    began, cut, deaf, seen, asked, peak = time.monotonic(), False, False, 0, None, 0
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        wall = time.monotonic() - began
        if ended: break
        with contextlib.suppress(OSError, IndexError):
            seen, resident = at_work(pid)
            peak = max(peak, resident)
        over = seen > request["cpu"] or wall > request["wall"]
        if peak > FAR_TOO_MUCH or (request["kill_after"] is not None and wall > request["kill_after"]):
            os.kill(pid, signal.SIGKILL)
        elif over and not request["stop"]:
            cut = True
            os.kill(pid, signal.SIGKILL)
        elif over and asked is None:
            cut, asked = True, wall
            os.kill(pid, signal.SIGINT)
        elif over and wall > asked + GRACE:
            deaf = True
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    with contextlib.suppress(OSError): os.killpg(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status)
    cpu, peak = usage.ru_utime + usage.ru_stime, max(peak, 1024 * usage.ru_maxrss)
    return dict(code=code, cpu=round(cpu, 2), wall=round(wall, 2), peak=peak, cut=cut, deaf=deaf)


def call(main, request):
    "Fork, attend, and gather what the child said."
    files = {stream: Path(request["cwd"], f".{stream}") for stream in ("out", "err")}
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, file in enumerate(files.values(), 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        child(main, request)
    done = attended(pid, request)
    for stream, file in files.items():
        done[stream] = file.read_text(encoding="utf-8", errors="replace")
        file.unlink()
    for note in re.findall(r"\S+/gradcheck-\w+\.txt", done["err"]):             # of what was not foreseen
        with contextlib.suppress(OSError): done["err"] += where(Path(note).read_text(encoding="utf-8"))
    return done


def where(traced):
    "The end of a traceback in a line: the last place in this project's code, and the error."
    lines = traced.splitlines()
    places = re.findall(r"gradcheck/([\w/]+\.py)\", line (\d+)", traced)
    return f"at {':'.join(places[-1]) if places else 'an unknown place'}: {lines[-1][:160] if lines else ''}\n"


def serve():
    "Answer requests, a line each, until standard input ends."
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)                                          # what an import prints is no answer
    main = prepared()
    for line in sys.stdin:
        answers.write(json.dumps(call(main, json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__": serve()
