"""Where a run is computed must not change what it is: micro-batches, memory that runs out, checkpointing, mixed
precision, workers of a Dask cluster that die."""

import json
import os
import shlex
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import forks
import pytest
import torch

from gradcheck.models.checkpoints import load_classifier
from gradcheck.core import UserError, project_root
from gradcheck.models.ddpm import DDPM
from gradcheck.paper.presets import PRESETS, get_preset
from gradcheck.paper.settings import spec_for
from gradcheck.guidance.sampling import WHERE, Guidance, NonFinite, guided_steps
from gradcheck.models.batches import MicroBatch
from gradcheck.models.networks import Autocast, freeze, has_units
from gradcheck.models.batches import LiveBytes, parse_bytes, resident_bytes, step_bytes
from gradcheck.models.catalogue import in_memory
from gradcheck.pictures import images_to_uint8
from gradcheck.runs.runs import Local, Machine, chunk_path, chunks_of, compute, micro_batch_of, run, run_all
from gradcheck.data.sportballs import SportBalls
from gradcheck.paper.train import training_task
from gradcheck.models.training import Trainer
from gradcheck.models.unet import UNet, UNetConfig

SPEC = spec_for("laptop", "nonrobust", "x0_hat", steps=6, count=20)


def final(tensors): return tensors["samples"].int()


class Scarce:
    "A denoiser on a machine where more than `room` images together do not fit."
    prediction, calls = "sample", 0

    def __init__(self, room): self.room, self.sizes = room, []

    def __call__(self, x, t):
        self.sizes.append(len(x))
        if len(x) > self.room: raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return 0.5 * x


def test_out_of_memory_halves_the_micro_batch_goes_on_and_says_so_once(capsys):
    denoiser, ddpm = Scarce(16), DDPM(T=5)
    guidance = Guidance(lambda x: torch.stack([x.sum((1, 2, 3)), x[:, 0, 0, 0]], 1), 0)
    micro, x_T = MicroBatch(64), torch.randn(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for step in guided_steps(ddpm, denoiser, guidance, x_T, torch.Generator().manual_seed(1), micro_batch=micro): pass
    plenty = list(guided_steps(ddpm, Scarce(10**9), guidance, x_T, torch.Generator().manual_seed(1)))[-1]
    assert torch.equal(step.x_prev, plenty.x_prev) and micro.size == 16
    assert denoiser.sizes[:4] == [48, 32, 16, 16] and set(denoiser.sizes[4:]) == {16}
    # 64 to 32 to 16: once each, not at every step
    assert capsys.readouterr().err.count("memory ran out") == 2
    with pytest.raises(UserError, match="single image"):
        list(guided_steps(ddpm, Scarce(0), guidance, x_T, torch.Generator().manual_seed(1)))


def test_other_errors_are_not_taken_for_memory():
    def broken(part): raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="shapes"): MicroBatch().map(3, broken)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("could not create a primitive"),
    ],
    ids=str,
)
def test_memory_that_runs_out_in_several_words(error, capsys):
    def scarce(part):
        if part.stop - part.start > 2: raise error
        return [torch.arange(5)[part]]

    assert (
        MicroBatch(4).map(5, scarce)[0].tolist() == [0, 1, 2, 3, 4]
        and capsys.readouterr().err.count("memory ran out") == 1
    )


def test_live_bytes_of_known_work():
    def work(n): return (torch.zeros(n, 1000) + 1).sum()
    assert step_bytes(work) == pytest.approx((0, 8000), abs=16)
    with LiveBytes() as count:
        torch.zeros(1000)
        torch.zeros(500)
    assert count.peak == 4000 and count.live == 0                                             # one after the other


def test_a_budget_is_kept_and_a_smaller_one_means_fewer_images():
    # by this test process already
    held = resident_bytes("cpu")
    sizes = [micro_batch_of(SPEC, 20, Machine("cpu", int((held + more) / 0.9))).size for more in (4e8, 1e9, 3e9)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] and all(s % 16 == 0 for s in sizes if s >= 16)
    plain = micro_batch_of(
        spec_for("laptop", "nonrobust", "plain", steps=6), 20, Machine("cpu", int((held + 1e9) / 0.9))
    ).size
    # no gradient through the denoiser
    assert plain > sizes[1]
    with pytest.raises(UserError, match="not enough: one image needs"): micro_batch_of(SPEC, 20, Machine("cpu", 10**8))


def test_checkpointing_keeps_less_and_changes_nothing():
    kept, again = (final(compute(SPEC, range(4), Machine("cpu", checkpointing=on))) for on in (False, True))
    assert torch.equal(kept, again)
    denoiser = in_memory("denoiser", SPEC.denoiser, SPEC.digests["denoiser"])
    assert (
        not any(level.checkpointing for level in denoiser.modules() if hasattr(level, "checkpointing"))
        or denoiser.set_checkpointing(False) is None
    )

    def work(n):
        x = torch.zeros(n, 3, 64, 64, requires_grad=True)
        return torch.autograd.grad(denoiser(x, torch.zeros(n, dtype=torch.long)).sum(), x)
    per_image = []
    for on in (False, True):
        denoiser.set_checkpointing(on)
        per_image.append(step_bytes(work)[1])
    denoiser.set_checkpointing(False)
    assert per_image[1] < 0.7 * per_image[0]


def test_mixed_precision_keeps_state_and_guidance_in_float32():
    from gradcheck.runs.runs import steps_of
    short = replace(SPEC, steps=2, count=2)
    for step in steps_of(replace(short, precision="bfloat16"), range(2)):
        assert {step.x_t.dtype, step.gradient.dtype, step.guidance.dtype, step.shift.dtype, step.x_prev.dtype} == {
            torch.float32
        }
    exact = final(compute(short, range(2)))
    assert (
        0 < (images_to_uint8(step.x_prev).int() - exact).abs().max()
        and (images_to_uint8(step.x_prev).int() - exact).abs().float().mean() < 20
    )


def test_half_precision_state_loses_small_guidance():
    small = replace(SPEC, scale=1e-9, count=2)
    same, rounded = (
        [*run(replace(s, state=state), 2).samples] for s, state in ((small, "float32"), (small, "float16"))
    )
    none = [*run(replace(small, scale=0.0, state="float16"), 2).samples]
    assert all(torch.equal(a, b) for a, b in zip(rounded, none)) and not all(
        torch.equal(a, b) for a, b in zip(same, rounded)
    )


def test_one_step_of_each_path_at_the_paper_scale(tmp_path):
    """A dry run of what a GPU does: the authors' network at full size, a guided step of each kind under mixed
    precision (where there are no units for it, on pictures of 16 px: of 64, they take half a minute), and a training
    step in float16 (of 16 px in any case: of 64, it takes a CPU 40 s)."""
    model, loss, recipe = training_task("paper", "ddpm")
    assert sum(p.numel() for p in model.parameters()) == 22_411_843 and (
        recipe.lr,
        recipe.batch_size,
        recipe.precision,
        recipe.ema,
    ) == (1e-4, 128, "float16", 0.0)
    images, labels = SportBalls().batch(range(1))
    small = UNet(replace(model.config, size=16))
    small.load_state_dict(model.state_dict())
    before = small.conv_in.weight.detach().clone()
    trainer = Trainer(small, loss, None, replace(recipe, batch_size=1), tmp_path)
    assert 0.5 < trainer.train_step(images[..., :16, :16], labels) < 2 and not torch.equal(small.conv_in.weight, before)
    guide = load_classifier("laptop/nonrobust")
    if not has_units("bfloat16"): model, images, guide.size = small, images[..., :16, :16], None
    denoiser, classifier = (Autocast(freeze(m), "bfloat16") for m in (model, guide))
    for where in WHERE.values():
        step = next(
            guided_steps(
                DDPM(),
                denoiser,
                Guidance(classifier, 0, where=where),
                images,
                torch.Generator().manual_seed(0),
                micro_batch=MicroBatch(1, tile=1),
            )
        )
        assert step.x_prev.isfinite().all() and step.gradient.dtype == torch.float32


# --- the paper preset, in miniature -----------------------------------------------------------
@pytest.fixture
def miniature(tmp_path, monkeypatch):
    "The paper preset as it is but for its sizes, in a folder of its own; returns the folder."
    p = get_preset("paper")
    tiny = replace(
        p,
        steps=2,
        count=4,
        chunk=8,
        unet=UNetConfig(patch=4, widths=(16, 16), attention=(False, True), layers=1, groups=4),
        recipes={name: replace(r, steps=2, batch_size=4, warmup=1) for name, r in p.recipes.items()},
    )
    monkeypatch.setitem(PRESETS, "paper", tiny)
    monkeypatch.setattr("gradcheck.paper.reproduce.project_root", lambda root=project_root(): root)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_plan_of_the_paper_preset_before_its_weights_are_there(miniature, cli, own_cache):
    code, out, err = cli(
        "reproduce", "figure_1", "figure_2", "table_1", "--preset", "paper", "--plan", "--device", "cpu"
    )
    assert code == 0, err
    rows = {line.split()[0]: line.split() for line in out.splitlines()[1:5]}
    # figure 1: two plain runs of 4, and a probe of as many for each; figure 2: three more settings;
    # table 1: robust ones, no guidance, and every run at 50,176, with a probe and four pilots of 16
    assert [rows["figure_1"][k] for k in (1, 2, 3)] == ["4", "0", f"{2 * 4 * 4}"]
    assert [rows["figure_2"][k] for k in (1, 2, 3)] == ["6", "0", f"{2 * 6 * 4}"]
    assert int(rows["table_1"][3].replace(",", "")) > 2 * 9 * 49 * 1024 - 2 * 8 * 8 and rows["all"][2] == "0"
    assert (
        all(float(rows[name][4].replace(",", "")) >= 0 and rows[name][5] in ("min", "h") for name in rows)
        and "Estimated from a few measured steps" in out
    )
    assert not own_cache.exists() and not list(miniature.rglob("*.safetensors"))


def test_make_paper_is_one_call_that_trains_evaluates_and_computes_the_figures(miniature, cli, monkeypatch, own_cache,
                                                                               quickly_examined):
    "Every command of `make paper`, as make expands it, on a machine without papermill."
    monkeypatch.setitem(sys.modules, "papermill", None)
    lines = subprocess.run(
        ["make", "-s", "-C", str(Path(__file__).parents[2]), "paper", f"GPU_PYTHON={sys.executable}", "GRADCHECK=echo"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    commands = [shlex.split(line) for line in lines if not line.startswith("make")]
    assert [c[0] for c in commands] == ["train"] * 4 + ["evaluate", "reproduce"] and commands[-1][1:4] == [
        "figure_1",
        "figure_2",
        "figure_3",
    ]
    for command in commands:
        code, out, err = cli(*command, *(["--images", "16"] if command[0] == "evaluate" else []))
        assert code == 0, err
    card = json.loads(Path("data/paper/ddpm/ddpm.json").read_text(encoding="utf-8"))
    assert card["recipe"]["precision"] == ("float16" if has_units("float16") else "float32")
    assert Path("data/paper/evaluation/samples.png").is_file()
    assert out.count("its runs are in") == 3 and "the same command makes the figures" in out
    kept = {p: p.stat().st_mtime_ns for p in own_cache.rglob("*.safetensors")}
    assert len(kept) == 6 + 6 + 64 // 8          # runs, a probe of each, and the images that evaluate looked at
    assert cli(*commands[-1])[0] == 0                                   # called again: all is there
    assert kept == {p: p.stat().st_mtime_ns for p in own_cache.rglob("*.safetensors")}


@pytest.mark.parametrize("text, n", [("8GB", 8e9), ("1.5 GiB", 1.5 * 2**30), ("500mb", 5e8), ("123", 123)])
def test_bytes(text, n): assert parse_bytes(text) == n


@pytest.mark.parametrize("text", ["", "GB", "8XB", "-1GB", "eight"])
def test_bytes_that_are_none(text):
    with pytest.raises(UserError, match="8GB"): parse_bytes(text)


# --- Dask -------------------------------------------------------------------------------------

distributed = pytest.importorskip("distributed")


FOURS = Machine(tile=4)                                    # chunks of four images, filled up to no more


@pytest.fixture(scope="module")
def cluster(forked_workers):
    from gradcheck.runs.cluster import Dask
    with Dask("local", FOURS, workers=2) as engine: yield engine


def chunk_bytes(spec, cache): return [chunk_path(spec, images, cache).read_bytes() for images in chunks_of(spec, 4)]


@pytest.mark.xdist_group("dask")
def test_a_cluster_leaves_the_same_bytes(cluster, tmp_path):
    spec = replace(SPEC, steps=3, count=8)
    a = run_all({"a": spec, "b": replace(spec, seed=1)}, 4, cluster, tmp_path / "dask")
    b = run_all({"a": spec, "b": replace(spec, seed=1)}, 4, Local(FOURS), tmp_path / "local")
    assert torch.equal(a["a"].samples, b["a"].samples) and not torch.equal(a["a"].samples, a["b"].samples)
    assert chunk_bytes(spec, tmp_path / "dask") == chunk_bytes(spec, tmp_path / "local")


@pytest.mark.xdist_group("dask")
def test_a_worker_killed_in_mid_chunk_costs_that_chunk_only(cluster, tmp_path):
    spec = replace(SPEC, steps=5, count=12, seed=2)
    written = {}

    def kill_one():
        # at least one chunk is kept
        while not list(tmp_path.rglob("*.safetensors")): time.sleep(0.05)
        written.update({p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")})
        os.kill(next(iter(cluster.client.run(os.getpid).values())), 9)

    killer = threading.Thread(target=kill_one)
    killer.start()
    result = run(spec, 4, cluster, tmp_path)
    killer.join()
    assert written and all(p.stat().st_mtime_ns == t for p, t in written.items())
    assert torch.equal(result.samples, run(spec, 4, Local(FOURS), tmp_path / "local").samples)


@pytest.mark.xdist_group("dask")
def test_a_setting_that_cannot_be_computed_is_a_sentence_from_a_worker_too(cluster, tmp_path):
    from gradcheck.runs.cluster import Dask
    engine = object.__new__(Dask)
    engine.__dict__.update(cluster.__dict__, machine=Machine("cuda:7"))
    with pytest.raises(UserError, match="torch sees"): run(replace(SPEC, count=4), 4, engine, tmp_path)


def test_a_picture_that_is_not_finite_on_a_worker_is_told_by_its_run(monkeypatch):
    "So that a study leaves that run out, wherever it was computed."
    from gradcheck.runs import cluster
    class Failed:
        def result(self): raise NonFinite("not finite")
    class Client:
        def submit(self, *of, **how): return Failed()
        def __getattr__(self, name): return lambda *of: None
    monkeypatch.setattr(cluster, "look", lambda client: None)
    monkeypatch.setattr(cluster, "as_finished", lambda client, futures: futures)
    with pytest.raises(NonFinite) as e: next(cluster.computed(Client(), Machine(), [("odd", SPEC, range(4))], None))
    assert e.value.label == "odd"


def test_a_wait_that_is_over_is_known_by_either_of_its_names():
    "Up to Python 3.10 they are two."
    import asyncio
    from gradcheck.runs.cluster import TIMED_OUT
    assert {*TIMED_OUT} == {TimeoutError, asyncio.TimeoutError}


def test_an_address_that_does_not_answer():
    from gradcheck.runs.cluster import Dask
    started = time.monotonic()
    with pytest.raises(UserError, match="no Dask scheduler answered at 'tcp://127.0.0.1:9' within 1 s"):
        Dask("tcp://127.0.0.1:9", patience=1)
    assert time.monotonic() - started < 8


@pytest.mark.parametrize(
    "address",
    [
        "",
        "8786",
        "127.0.0.1",
        "tcp://127.0.0.1",
        "localhost:",
        "host:port",
        "127.0.0.1:99999",
        "nonsense address",
        "foo://x:1",
        "http://127.0.0.1:9",
        "tls://127.0.0.1:9",
        "ucx://127.0.0.1:9",
        "inproc://1/2/3",
        "tcp://é:1",
        "x" * 9999,
    ],
)
def test_an_address_that_is_none(address):
    from gradcheck.runs.cluster import Dask
    with pytest.raises(UserError, match="no Dask scheduler answered.*give its HOST:PORT") as told:
        Dask(address, patience=0.5)
    assert len(str(told.value)) < 700 and "\n" not in str(told.value)


@pytest.mark.parametrize("words", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"\0" * 64])
def test_an_address_where_something_else_answers(words):
    "A web server's words are read as the length of a message; who is silent is not waited for either."
    import socket

    from gradcheck.runs.cluster import Dask
    with socket.create_server(("127.0.0.1", 0)) as server:
        def answer():
            connection, _ = server.accept()
            with connection: connection.sendall(words)                     # the next call waits in the queue
        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(UserError, match="no Dask scheduler answered"):
            Dask(f"tcp://127.0.0.1:{server.getsockname()[1]}", patience=1)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Starts `dask scheduler` and `dask worker`, returned as (address, processes), in forks of a warm process; one
    `without` gradcheck, which has no such package, anew."""
    monkeypatch.setattr("gradcheck.runs.cluster.BEAT", 0.3)
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(NO_GRADCHECK, encoding="utf-8")
    processes = []

    def start(*command, without=False):
        environment = {**os.environ, "PYTHONPATH": str(blocked) if without else str(Path(__file__).parents[2])}
        begin = subprocess.Popen if without else forks.Forked
        command = [sys.executable, "-m", *command]
        with open(tmp_path / "log.txt", "ab") as log:
            processes.append(begin(command, env=environment, cwd=tmp_path, stdout=log, stderr=log))
        return processes[-1]

    def cluster(workers=(), without=False):
        file = tmp_path / "scheduler.json"
        where = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
        start("distributed.cli.dask_scheduler", *where, without=without)
        while not file.is_file() or not file.stat().st_size: time.sleep(0.05)
        address = json.loads(file.read_text(encoding="utf-8"))["address"]
        for worker in workers: start("distributed.cli.dask_worker", address, *ONE_WORKER, without=worker == "without")
        return address, processes, start

    yield cluster
    for process in processes: process.kill()
    for process in processes: process.wait()


ONE_WORKER = ("--nworkers", "1", "--nthreads", "1", "--no-dashboard", "--no-nanny")
NO_GRADCHECK = """import sys
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "gradcheck": raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Nowhere())
"""


@pytest.mark.xdist_group("dask")
def test_a_scheduler_without_workers_is_waited_for_and_given_up(elsewhere, tmp_path, monkeypatch, capsys):
    from gradcheck.runs.cluster import Dask
    address, _, start = elsewhere()
    with Dask(address) as engine:
        monkeypatch.setenv("GRADCHECK_DASK_WAIT", "1")
        with pytest.raises(UserError, match="had no workers for 1 s; start some"):
            run(replace(SPEC, count=4), 4, engine, tmp_path / "cache")
        assert "has no workers; waiting 1 s for one (dask worker tcp://" in capsys.readouterr().err
        monkeypatch.setenv("GRADCHECK_DASK_WAIT", "soon")
        with pytest.raises(UserError, match="GRADCHECK_DASK_WAIT is 'soon'"):
            run(replace(SPEC, count=4), 4, engine, tmp_path / "cache")
        monkeypatch.setenv("GRADCHECK_DASK_WAIT", "60")                 # and one that comes late is taken
        start("distributed.cli.dask_worker", address, *ONE_WORKER)
        assert len(run(replace(SPEC, count=4), 4, engine, tmp_path / "cache").samples) == 4


@pytest.mark.xdist_group("dask")
@pytest.mark.parametrize("scheduler, worker, who", [(False, "without", "tcp://"), (True, "with", "scheduler")])
def test_machines_without_this_package(elsewhere, tmp_path, scheduler, worker, who):
    from gradcheck.runs.cluster import Dask
    address, _, _ = elsewhere([worker], without=scheduler)
    with Dask(address) as engine, pytest.raises(UserError, match=f"cannot be imported on the Dask {who}.*install it"):
        run(replace(SPEC, count=4), 4, engine, tmp_path / "cache")


@pytest.mark.xdist_group("dask")
def test_another_version_and_other_weights_on_a_worker(cluster, tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr("gradcheck.runs.cluster.VERSION", "0.0.1")
        with pytest.raises(UserError, match="has gradcheck .*, not 0.0.1"):
            run(replace(SPEC, count=4), 4, cluster, tmp_path)
    from gradcheck.runs.cluster import compute_on_worker
    with pytest.raises(UserError, match="other weights or other code under the same names"):
        cluster.client.submit(compute_on_worker, SPEC, "another key", range(1), Machine(), "", 0, pure=False).result()


@pytest.mark.xdist_group("dask")
@pytest.mark.parametrize(
    "lost, sentence", [(0, "scheduler was lost while .* was computed"), (1, "had no workers for 1 s")]
)
def test_what_dies_in_mid_run_is_a_sentence_and_what_is_finished_is_kept(
    elsewhere, tmp_path, monkeypatch, lost, sentence
):
    import dask

    from gradcheck.runs.cluster import Dask
    monkeypatch.setenv("GRADCHECK_DASK_WAIT", "1")
    address, processes, _ = elsewhere(["with"])
    cache = tmp_path / "cache"

    def kill():
        while not list(cache.rglob("*.safetensors")): time.sleep(0.05)
        processes[lost].kill()

    # a client looks for its scheduler for 30 s by default
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}), Dask(address) as engine:
        engine.client.wait_for_workers(1)
        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(UserError, match=sentence): run(replace(SPEC, steps=2, count=100, seed=5), 1, engine, cache)
        killer.join()
    assert list(cache.rglob("*.safetensors"))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to cores")
def test_local_workers_are_as_many_as_the_cores_that_this_process_may_use(tmp_path):
    "And what such a worker, a new process, computes is what is computed here."
    code = f"""
import os
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
if __name__ == "__main__":
    from gradcheck.paper.settings import spec_for
    from gradcheck.runs.cluster import Dask
    from gradcheck.runs.runs import Machine, run
    with Dask("local", Machine(tile=1)) as engine:
        print(len(engine.client.nthreads()))
        run(spec_for("laptop", "nonrobust", "plain", steps=1, count=1), 1, engine, {str(tmp_path / "there")!r})
"""
    assert forks.run([sys.executable, "-c", code], check=True).stdout.split() == ["1"]
    spec = spec_for("laptop", "nonrobust", "plain", steps=1, count=1)
    run(spec, 1, Local(Machine(tile=1)), tmp_path / "here")
    here, there = (chunk_path(spec, range(1), tmp_path / place).read_bytes() for place in ("here", "there"))
    assert here == there
