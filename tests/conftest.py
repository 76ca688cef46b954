"""Shared by all tests: one thread per worker, a cache of their own, and a check that nothing touches the global RNG."""
import os
import sys

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADCHECK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def shared_cache(tmp_path_factory, monkeypatch, own_cache):
    "A cache that all tests (and their workers) share, for those whose runs others have too and whose point is another."
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "shared-cache"
    monkeypatch.setenv("GRADCHECK_CACHE", str(cache))
    return cache


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
