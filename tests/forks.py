"""A warm process that imports torch, gradcheck and Jupyter once, turns the balls, and forks whoever asks for a Python.

A fork is a process of its own, with folder, environment, arguments, signals and exit code of its own; only the seconds
of importing and turning are saved. `Forked` is called like `subprocess.Popen`, `run` like `subprocess.run`. As a
script, this file is the server: a request is one JSON message on a Unix socket, with the three standard streams; the
answers are the child's number and, when it has ended, its exit code and the CPU seconds of all children until then."""
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

BEFOREHAND = ("tqdm.auto",        # first: it looks whether it is in a kernel (see `bars_of_a_kernel`)
              "ipykernel.kernelapp", "ipykernel.debugger", "ipykernel.zmqshell", "matplotlib.pyplot",
              "matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf", "pandas", "papermill.cli",
              "jupyter_client.provisioning.local_provisioner", "scipy.stats", "scipy.ndimage",
              "torchmetrics.image.fid", "gradcheck.all", "gradcheck.cli", "gradcheck.commands",
              "gradcheck.paper.reproduce", "gradcheck.paper.saved", "gradcheck.paper.claims", "gradcheck.paper.page",
              "gradcheck.paper.factorial", "gradcheck.paper.part", "gradcheck.paper.measured", "nbdev.clean")
# optional to jsonschema, which nbformat imports, and seconds long: neither the tests nor the server ask for it
sys.modules.setdefault("rfc3987_syntax", None)
ENDED = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGCHLD: signal.SIG_DFL}


# --- the client -------------------------------------------------------------------------------
class Server:
    "The one server of this process, started when it is first needed; `cpu`: seconds of all its children until now."
    cpu = 0.0
    process = None

    @classmethod
    def address(cls):
        "Of the server, or (in a child of it that may fork too) of the one that $FORKS names."
        if "FORKS" in os.environ: return os.environ["FORKS"]
        if cls.process is None:
            cls.folder = tempfile.TemporaryDirectory(prefix="forks-")
            cls.socket = socket.socket(socket.AF_UNIX)
            cls.socket.bind(f"{cls.folder.name}/socket")
            cls.socket.listen(16)
            kept = {k: v for k, v in os.environ.items() if not k.startswith(("GRADCHECK_", "PYTEST_"))}
            call = [sys.executable, __file__, str(cls.socket.fileno()), str(os.getpid())]
            cls.process = subprocess.Popen(call, env=kept, pass_fds=[cls.socket.fileno()], stdin=subprocess.DEVNULL)
        return f"{cls.folder.name}/socket"

    @classmethod
    def close(cls):
        if cls.process is None: return
        cls.process.terminate()
        cls.process.wait()
        cls.socket.close()
        cls.folder.cleanup()
        cls.process, cls.cpu = None, 0.0                   # they are among this process's own children now


class Forked:
    "A child of the server that runs `python ARGS` or a Python script, with the methods of `subprocess.Popen`."
    stdin = stdout = stderr = None

    def __init__(self, args, stdin=None, stdout=None, stderr=None, cwd=None, env=None, **_):
        self.args, self.returncode = [str(a) for a in args], None
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(Server.address())
        given = dict(args=self.args, cwd=str(cwd or os.getcwd()), env=dict(os.environ if env is None else env))
        with open(os.devnull, "r+b") as nothing, contextlib.ExitStack() as files:
            streams = [stream_of(s, usual, nothing, files) for usual, s in enumerate((stdin, stdout, stderr))]
            message = json.dumps(given).encode()
            socket.send_fds(self.connection, [len(message).to_bytes(8, "big")], streams)
            self.connection.sendall(message)
        self.answers = self.connection.makefile("r", encoding="utf-8")
        self.pid = json.loads(self.answers.readline())["pid"]

    def poll(self):
        if self.returncode is None and select.select([self.connection], [], [], 0)[0]: self.wait()
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None:
            if not select.select([self.connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            done = json.loads(self.answers.readline() or '{"code": -9, "cpu": 0}')
            self.returncode = done["code"]
            Server.cpu = max(Server.cpu, done["cpu"])
            self.answers.close()
            self.connection.close()
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None: os.kill(self.pid, number)

    def terminate(self): self.send_signal(signal.SIGTERM)
    def kill(self): self.send_signal(signal.SIGKILL)


class Closed:
    "What a pipe that nobody writes to looks like to whoever closes it."
    def close(self): pass


class ForkedKernel(Forked):
    "As jupyter_client starts a kernel: with a pipe to it, which it closes at once; kernels of its own are forked too."
    stdin = Closed()

    def __init__(self, args, env=None, **how):
        super().__init__(args, env=may_fork(env), **how)


def stream_of(stream, usual, nothing, files):
    "The file descriptor that a child is given for a stream; a kernel's input is closed at once, so it is nothing."
    if stream is None: return usual
    if stream in (subprocess.PIPE, subprocess.DEVNULL): return nothing.fileno()
    return stream if isinstance(stream, int) else stream.fileno()


def may_fork(env):
    "An environment (by default this process's) under which a child starts kernels as forks."
    return dict(os.environ if env is None else env) | {"FORKS": Server.address()}


def run(args, check=False, env=None, **how):
    "`subprocess.run(args, capture_output=True, text=True)` in a child of the server; its kernels are forked too."
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out, tempfile.TemporaryFile("w+", encoding="utf-8") as err:
        code = Forked(args, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=may_fork(env), **how).wait()
        for file in (out, err): file.seek(0)
        done = subprocess.CompletedProcess(args, code, out.read(), err.read())
    if check and code: raise AssertionError(f"{' '.join(map(str, args))} ended with {code}:\n{done.stderr}")
    return done


# --- the server -------------------------------------------------------------------------------
def received(connection):
    "A request, and its three streams."
    size, streams, *_ = socket.recv_fds(connection, 8, 3)
    wanted, text = int.from_bytes(size, "big"), b""
    while len(text) < wanted: text += connection.recv(wanted - len(text))
    return json.loads(text), streams


def renewed(request, base):
    "What depends on folder, environment or chance, as a new process would find it."
    import random

    import jupyter_client.launcher
    import matplotlib
    import numpy as np

    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    own = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    sys.path[:] = [*own, *base]
    tempfile.tempdir = None
    random.seed()
    np.random.seed()
    kernel = "ipykernel_launcher" in request["args"]
    if kernel:
        request["args"].append(f"--IPKernelApp.parent_handle={os.getppid()}")                 # it ends with the server
        bars_of_a_kernel()
    if "FORKS" in os.environ: jupyter_client.launcher.Popen = ForkedKernel
    backend = "module://matplotlib_inline.backend_inline" if kernel else os.environ.get("MPLBACKEND")
    sys.modules.pop("matplotlib_inline.backend_inline", None)      # when it is imported, it looks for a notebook
    if backend: matplotlib.rcParams["backend"] = backend


def bars_of_a_kernel():
    "Progress bars as a new kernel has them: those of a notebook, everywhere; the server has those of a terminal."
    import tqdm.auto

    of_a_terminal = tqdm.auto.tqdm
    del sys.modules["tqdm.auto"], sys.modules["tqdm.autonotebook"]
    import tqdm.auto

    for module in [*sys.modules.values()]:
        if getattr(module, "__dict__", {}).get("tqdm") is of_a_terminal: module.tqdm = tqdm.auto.tqdm


def python(args):
    "What `python ARGS` does, for `-m MODULE ...`, `-c CODE ...` and `SCRIPT ...`."
    import runpy
    import types

    if args[0] == "-m":
        sys.argv, sys.path[:0] = args[1:], [os.getcwd()]
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)
    elif args[0] == "-c":
        sys.argv, sys.path[:0] = ["-c", *args[2:]], [""]
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(args[1], "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        sys.argv, sys.path[:0] = args, [str(Path(args[0]).parent)]
        runpy.run_path(args[0], run_name="__main__")


def child(request, base):
    "Become the process that was asked for; never returns."
    import atexit
    import traceback

    code = 1
    try:
        for number, handler in ENDED.items(): signal.signal(number, handler)
        renewed(request, base)
        args = request["args"]
        python(args[1:] if Path(args[0]).name.startswith("python") else args)
        code = 0
    except SystemExit as e:
        if isinstance(e.code, str): print(e.code, file=sys.stderr)
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException: traceback.print_exc()            # the interpreter would print it, and end with 1
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def fork(connection, base, others):
    request, streams = received(connection)
    pid = os.fork()
    if pid:
        for stream in streams: os.close(stream)
        return pid
    os.setsid()                                            # before anybody asks for its group, to kill it
    connection.sendall(json.dumps({"pid": os.getpid()}).encode() + b"\n")
    for number, stream in enumerate(streams): os.dup2(stream, number)
    for other in (*streams, *others, connection.fileno()):
        if other > 2: os.close(other)
    child(request, base)


def warm_balls():
    "Draw and turn the balls, in all sizes; on one thread, since a fork would miss the others."
    import torch

    from gradcheck.data.sportballs import SportBalls
    torch.set_num_threads(1)
    data = SportBalls()
    for label in range(len(data.classes)):
        for size in data.sizes: data.rotations(label, size)


def serve(number, parent):
    "Fork for whoever connects, until the parent is gone; tell each how its child ended."
    server, base, waiting = socket.socket(fileno=number), list(sys.path[1:]), {}
    given = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    base = [p for p in base if p not in given]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    for name in BEFOREHAND: importlib.import_module(name)
    warm_balls()
    gc.freeze()                                            # what is imported is no garbage; children share its pages
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while os.getppid() == parent:
        ready, *_ = select.select([server, ours, *waiting.values()], [], [], 5)
        if ours in ready: os.read(ours, 512)
        for pid, connection in waiting.items():            # who asked has gone
            if connection in ready:
                with contextlib.suppress(OSError): os.killpg(pid, signal.SIGKILL)
        if server in ready:
            connection, _ = server.accept()
            others = [number, ours, theirs, *(c.fileno() for c in waiting.values())]
            waiting[fork(connection, base, others)] = connection
        for pid in list(waiting):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended: continue
            done = dict(code=os.waitstatus_to_exitcode(status), cpu=sum(os.times()[2:4]))
            with contextlib.suppress(OSError), waiting.pop(pid) as connection:
                connection.sendall(json.dumps(done).encode() + b"\n")


if __name__ == "__main__": serve(int(sys.argv[1]), int(sys.argv[2]))
