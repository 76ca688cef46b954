"""Ten thousand writes into one cache, by four processes, and by two containers (pid namespaces, in which process
numbers are the same) on one disk: no error, no torn file, nothing left over."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
WRITES = 10_000
WRITER = Path(__file__).with_name("writer.py")
NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc")


def namespaces_work():
    "May this process make pid namespaces?"
    if not shutil.which("unshare"): return False
    return subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0


def wrong_with(folder, writers, before=()):
    "Let so many writers at once loose on a folder; what went wrong, and what is left over."
    calls = [[*before, sys.executable, WRITER, folder, str(k), str(WRITES // writers)] for k in range(writers)]
    running = [subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for call in calls]
    told = []
    for process in running:
        out, err = process.communicate()
        told += json.loads(out) if process.returncode == 0 else [err[-500:]]
    left = [str(p) for p in folder.rglob("*") if p.is_file() and p.suffix != ".safetensors"]
    print(f"{WRITES} writes by {writers} writers: {len(told)} errors, {len(left)} left over", *told[:5], sep="\n")
    return told + left


def test_four_processes_on_one_cache(tmp_path):
    assert wrong_with(tmp_path / "cache", 4) == []


@pytest.mark.skipif(not namespaces_work(), reason="pid namespaces need unshare and the right to use it (root)")
def test_two_namespaces_on_one_cache(tmp_path):
    assert wrong_with(tmp_path / "cache", 2, NAMESPACE) == []
