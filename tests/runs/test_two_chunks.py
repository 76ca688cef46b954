"""Two chunks at a time: the same bytes, and nobody waits for work that nobody wants."""
import threading
import time
from dataclasses import replace

import pytest
import torch

from gradcheck.guidance.sampling import NonFinite
from gradcheck.paper.settings import spec_for
from gradcheck.runs import runs
from gradcheck.runs.runs import Local, Machine, run_all
from gradcheck.together import LARGE, is_large, two_at_a_time


@pytest.fixture(autouse=True)
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    assert torch.get_num_threads() == 4
    torch.set_num_threads(before)


class Bar:
    def __init__(self): self.told, self.labels = 0, []
    def update(self, n): self.told += n
    def set_description(self, text): self.labels.append(text)


class OneAtATime(Local):
    def can_be_two(self, specs): return False


@pytest.fixture
def threads_seen(monkeypatch):
    "In which threads chunks are computed, and on how many cores each."
    seen = []
    compute = runs.compute

    def noted(*args):
        seen.append((threading.get_ident(), torch.get_num_threads()))
        return compute(*args)
    monkeypatch.setattr(runs, "compute", noted)
    return seen


def files_of(folder): return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.safetensors")}


def test_the_same_bytes_in_two_threads_and_in_one(tmp_path, threads_seen):
    plain = spec_for("laptop", "nonrobust", "plain", steps=2, count=24)
    specs = {"plain": plain, "both": replace(spec_for("laptop", "robust", "both", steps=2, count=16), target=3)}
    run_all(specs, 16, Local(), tmp_path / "two")
    assert len(threads_seen) == 3 and [cores for _, cores in threads_seen] == [2, 2, 4]
    assert [thread == threading.get_ident() for thread, _ in threads_seen] == [False, False, True]
    run_all(specs, 16, OneAtATime(), tmp_path / "one")
    assert {cores for _, cores in threads_seen[3:]} == {4}
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two") and len(files_of(tmp_path / "two")) == 3


@pytest.mark.parametrize("machine, change, two", [
    (dict(), dict(), True),
    (dict(memory=10**9), dict(), False),                                  # a budget is that of one chunk
    (dict(tile=4), dict(), False),                                        # last bits would depend on the cores
    (dict(), dict(stabilizer="gradcheck.guidance.stabilizers:UnitNorm"), False),        # code of one's own
])
def test_when_two_are_computed_at_once(machine, change, two):
    spec = replace(spec_for("laptop", "nonrobust", "plain"), **change)
    assert Local(Machine(**machine)).can_be_two([spec, replace(spec, seed=1)]) == two


def test_one_core_computes_one_chunk():
    torch.set_num_threads(1)
    assert not Local().can_be_two([spec_for("laptop", "nonrobust", "plain")])
    torch.set_num_threads(4)


def test_a_large_network_is_computed_alone():
    network = torch.nn.Linear(1000, 1000, bias=False)                     # a million weights
    assert not is_large(network, (3, 64, 64)) and is_large(network, (3, 256, 256)) and 256**2 * 1e6 > LARGE


def test_what_fails_ends_what_is_beside_it_and_what_would_come_next():
    def work(label, bar):
        bar.set_description(label)
        while label in ("long", "next"):
            bar.update(1)
            time.sleep(0.001)
        if label == "bad": raise NonFinite("x").of(label)
        return label
    bar, started = Bar(), time.monotonic()
    with pytest.raises(NonFinite): list(two_at_a_time(work, [("good",), ("long",), ("bad",), ("next",)], bar))
    assert time.monotonic() - started < 30 and bar.told


def test_whoever_stops_listening_ends_both():
    def work(label, bar):
        for _ in range(10**9 if label == "long" else 1):
            bar.update(1)
            time.sleep(0.001)
        return label
    stream = two_at_a_time(work, [("short",), ("long",)], Bar())
    assert next(stream) == (("short",), "short")
    before = threading.active_count()
    stream.close()
    assert threading.active_count() < before
