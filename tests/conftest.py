"""Shared by all tests: one thread per worker, a cache of their own, and a check that nothing touches the global RNG.

What a test costs (CPU seconds, those of its processes too) is measured with `--cpu FILE` and kept in durations.json:
the long ones begin first, and `--fast` leaves them out."""
import gc
import json
import os
import re
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import forks
import pytest
import torch

torch.set_num_threads(1)
DURATIONS = Path(__file__).parent / "durations.json"       # test -> CPU seconds, written by durations.py
LONG = 0.3                                                 # what takes so many seconds is left out by --fast
FIRST = 5.0                                                # and what takes so many comes first


def pytest_addoption(parser):
    parser.addoption("--cpu", metavar="FILE", help="append each test's CPU seconds, its processes' too, to this file")
    parser.addoption("--fast", action="store_true", help=f"leave out what takes {LONG} s of CPU, by durations.json")


def pytest_collection_modifyitems(config, items):
    "The longest first, so that no worker begins one when the other has finished; without them, where asked to be fast."
    known = json.loads(DURATIONS.read_text(encoding="utf-8"))
    cost = {item: known.get(name_of(item), 0.0) for item in items}
    items.sort(key=lambda item: -cost[item] if cost[item] >= FIRST else 0)
    if config.getoption("fast", False):
        config.hook.pytest_deselected(items=[item for item in items if cost[item] >= LONG])
        items[:] = [item for item in items if cost[item] < LONG]


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    "What is imported and collected is no garbage, and is not looked through for any, then or later."
    gc.disable()
    done = yield
    gc.collect()
    gc.freeze()
    gc.enable()
    return done


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    before = seconds()
    done = yield
    if path := item.config.getoption("cpu", None):
        with open(path, "a", encoding="utf-8") as out:
            out.write(json.dumps({"test": name_of(item), "cpu": round(seconds() - before, 2)}) + "\n")
    return done


def name_of(item):
    "The name of a test without its group, which xdist appends."
    return re.sub(r"@\w+$", "", item.nodeid)


def seconds(): return sum(os.times()[:4]) + forks.Server.cpu


@pytest.fixture(autouse=True, scope="session")
def warm_kernels():
    "What this process executes by papermill runs in forks of a warm process (see forks.py), one for each notebook."
    import jupyter_client.launcher

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jupyter_client.launcher, "Popen", forks.ForkedKernel)
        yield
    forks.Server.close()


@pytest.fixture(scope="session")
def forked_workers():
    """A local Dask cluster's workers are forks of one process that has imported what they need. (That everybody's, each
    a new process, compute the same, is seen in test_machines.py once.)"""
    import multiprocessing

    if find_spec("distributed") is None: return (yield)
    import dask
    import distributed.utils

    forked = {"distributed.worker.multiprocessing-method": "forkserver"}
    beforehand = ["distributed.nanny", "distributed.worker", "gradcheck.all", "gradcheck.runs.cluster"]
    multiprocessing.get_context("forkserver").set_forkserver_preload(beforehand)
    with pytest.MonkeyPatch.context() as patch, dask.config.set(forked):
        patch.setattr(distributed.utils, "_forkserver_preload_set", True)
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADCHECK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def only_engine(monkeypatch):
    "A context: within it, whatever computes runs by another engine than the one that it gives is a failure."
    from gradcheck.runs.runs import Local, Machine
    def unasked(): pytest.fail("another engine was asked than the one that was given")
    @contextmanager
    def only():
        engine = Local(Machine("cpu"))
        with monkeypatch.context() as m:
            for module in ("loose", "runs"): m.setattr(f"gradcheck.runs.{module}.Local", unasked)
            yield engine
    return only


@pytest.fixture
def shared_cache(tmp_path_factory, monkeypatch, own_cache):
    "A cache that all tests (and their workers) share, for those whose runs others have too and whose point is another."
    cache = of_all_workers(tmp_path_factory) / "shared-cache"
    monkeypatch.setenv("GRADCHECK_CACHE", str(cache))
    return cache


def of_all_workers(tmp_path_factory):
    "The temporary folder of this call of pytest."
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


@pytest.fixture
def quickly_examined(monkeypatch):
    "What is trained is examined on 64 held-out images, a start fitted to 300: else that takes longer than training."
    monkeypatch.setattr("gradcheck.paper.train.HELD_OUT", 64)
    monkeypatch.setattr("gradcheck.paper.train.FIT_IMAGES", 300)


@pytest.fixture
def global_rng_untouched():
    import random

    import numpy as np

    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    yield
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    assert before[2] == random.getstate()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def cli(monkeypatch, capsys):
    "The command line in this process: exit code, output, errors. What is unforeseen is raised, not put in a sentence."
    from gradcheck.cli import main

    monkeypatch.setenv("GRADCHECK_DEBUG", "1")

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["gradcheck", *map(str, args)])
        code = 0
        try:
            main()
        except SystemExit as e:
            code = e.code or 0
        out = capsys.readouterr()
        return code, out.out, out.err

    return call
