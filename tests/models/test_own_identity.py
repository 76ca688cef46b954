"""A classifier or stabilizer of yours is what it computes: whatever it has read, and however it holds it."""

import json
import os
import shutil
import textwrap
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from gradcheck.app.trials import question_of
from gradcheck.core import UserError, seeded
from gradcheck.functions import code_of
from gradcheck.guidance import stabilizers
from gradcheck.guidance.stabilizers import make_stabilizer, stabilizer_digest
from gradcheck.models import own
from gradcheck.models.cards import WEIGHTS
from gradcheck.models.catalogue import open_classifier
from gradcheck.models.checkpoints import save_weights
from gradcheck.models.classifiers import MobileNetV3Small
from gradcheck.models.own import built_classifier, function_card
from gradcheck.runs.runs import Local, run
from gradcheck.runs.specs import RunSpec

HEAD = """
import functools, json, os, types
from pathlib import Path
import torch
from torch import nn
import torch.nn.functional as F

def gain(): return json.loads(Path(__file__).with_name("gain.json").read_text())
GAIN = float(gain())

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 5, 4), nn.Linear(8, 4)
    def forward(self, x): return self.out(F.relu(self.conv(x)).mean((2, 3)))
"""
SHAPE = (3, 16, 16)
HELD = {
    "a namespace": """
        class Net(Small):
            def __init__(self):
                super().__init__()
                self.settings = types.SimpleNamespace(gain=gain())
            def forward(self, x): return super().forward(x) * self.settings.gain
        def make(): return Net()""",
    "a deep dict": """
        class Net(Small):
            def __init__(self):
                super().__init__()
                self.settings = {"model": {"head": [{"gain": gain()}]}}
            def forward(self, x): return super().forward(x) * self.settings["model"]["head"][0]["gain"]
        def make(): return Net()""",
    "a global": """
        class Net(Small):
            def forward(self, x): return super().forward(x) * GAIN
        def make(): return Net()""",
    "modules in a list": """
        class Net(Small):
            def __init__(self):
                super().__init__()
                scale = nn.Linear(4, 4, bias=False)
                scale.weight.data = torch.eye(4) * gain()
                self.scales = [scale]
            def forward(self, x): return self.scales[0](super().forward(x))
        def make(): return Net()""",
    "a closure": """
        class Net(Small):
            def __init__(self):
                super().__init__()
                g = gain()
                self.scale = lambda x: x * g
            def forward(self, x): return self.scale(super().forward(x))
        def make(): return Net()""",
    "a file read each time": """
        class Net(Small):
            def forward(self, x): return super().forward(x) * gain()
        def make(): return Net()""",
    "a traced constant": """
        class Net(Small):
            def forward(self, x): return super().forward(x) * GAIN
        def make(): return torch.jit.trace(Net().eval(), torch.zeros(2, 3, 16, 16))""",
    "parameters beside the state": """
        class Net(Small):
            def __init__(self):
                super().__init__()
                self.head = nn.Linear(4, 4, bias=False)
                self.head.weight.data = torch.eye(4) * gain()
            def forward(self, x): return self.head(super().forward(x))
            def state_dict(self, *a, **k):
                return {n: v for n, v in super().state_dict(*a, **k).items() if not n.startswith("head")}
        def make(): return Net()""",
    "a hook": """
        def make():
            net, g = Small(), gain()
            net.register_forward_hook(lambda module, inputs, output: output * g)
            return net""",
    "a partial": """
        class Call(nn.Module):
            def __init__(self, f):
                super().__init__()
                self.f = f
            def forward(self, x): return self.f(x)
        def make(): return nn.Sequential(Small(), Call(functools.partial(torch.mul, torch.tensor(float(gain())))))""",
    "slots": """
        class Scale:
            __slots__ = ("gain",)
            def __init__(self, gain): self.gain = gain
        class Net(Small):
            def __init__(self):
                super().__init__()
                self.scale = Scale(gain())
            def forward(self, x): return super().forward(x) * self.scale.gain
        def make(): return Net()""",
}
STEADY = {
    "a namespace": """
        class make:
            def __init__(self): self.settings = types.SimpleNamespace(gain=gain())
            def __call__(self, g): return g * self.settings.gain""",
    "a global": """
        class make:
            def __call__(self, g): return g * GAIN""",
    "a closure": """
        def make():
            by = gain()
            return lambda g: g * by""",
    "a state behind two steps": """
        class make:
            def __init__(self): self.m, self.kept = 0, Kept()
            def __call__(self, g):
                self.m = self.m * self.kept.share() + g
                return self.m
        class Kept:
            def share(self): return 0.1 * gain()""",
}


@pytest.fixture
def written(tmp_path):
    "name of a classifier or stabilizer from the text of its file"
    def write(text):
        (tmp_path / "mine.py").write_text(HEAD + textwrap.dedent(text), encoding="utf-8")
        return f"{tmp_path}/mine.py:make"
    return write


def digests(name, digest, folder):
    "As three processes would have them, of which the second finds another file."
    for gain in ("1", "20", "1"):
        (folder / "gain.json").write_text(gain)
        own._built.cache_clear()
        own._card.cache_clear()
        stabilizers._maker.cache_clear()
        yield digest(name)


@pytest.mark.parametrize("held", HELD)
def test_what_a_classifier_computes_is_its_identity(written, tmp_path, held):
    (tmp_path / "gain.json").write_text("1")
    first, other, again = digests(written(HELD[held]), lambda name: function_card(name, SHAPE)["sha256"], tmp_path)
    assert first == again != other


@pytest.mark.parametrize("held", STEADY)
def test_what_a_stabilizer_computes_is_its_identity(written, tmp_path, held):
    (tmp_path / "gain.json").write_text("1")
    first, other, again = digests(written(STEADY[held]), stabilizer_digest, tmp_path)
    assert first == again != other


@pytest.mark.parametrize("text", [
    "import random\nclass make:\n    def __call__(self, g): return g * (1 + 0.1 * random.random())",
    "class make:\n    def __call__(self, g): return g + 0.1 * torch.randn_like(g)",
    "class make:\n    def __call__(self, g):\n        assert g.shape[1:] == (3, 64, 64)\n        return g",
])
def test_a_stabilizer_that_draws_or_knows_one_shape_keeps_its_identity(written, tmp_path, text):
    (tmp_path / "gain.json").write_text("1")
    name = written(text)
    assert stabilizer_digest(name) == stabilizer_digest(name)


def test_an_edited_file_is_read_again_in_the_same_process(written, tmp_path):
    (tmp_path / "gain.json").write_text("1")
    name = written(HELD["a closure"])
    before, card = built_classifier(name), function_card(name, SHAPE)
    assert built_classifier(name) is before and function_card(name, SHAPE) is card
    written(HELD["a closure"].replace("x * g", "x * g * 50"))
    x = torch.rand(2, *SHAPE)
    assert torch.allclose(built_classifier(name)(x), 50 * before(x))
    assert function_card(name, SHAPE)["sha256"] != card["sha256"]
    written(HELD["a closure"])
    assert function_card(name, SHAPE)["sha256"] == card["sha256"]


def test_a_classifier_on_another_device_leaves_the_one_on_the_cpu_where_it_is(written, tmp_path):
    "`meta` is a device that every machine has."
    (tmp_path / "gain.json").write_text("1")
    name = written("def make(): return nn.Sequential(nn.Flatten(), nn.Linear(48, 2))")
    here, there = open_classifier(name), open_classifier(name, "meta")
    assert {p.device.type for p in here.parameters()} == {"cpu"}
    assert {p.device.type for p in there.parameters()} == {"meta"}
    assert open_classifier(name) is here and open_classifier(name, "meta") is there


READER = """
import json
from pathlib import Path
import torch
from safetensors.torch import load_file

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(3, 2)
    def forward(self, x): return self.net(x.mean((2, 3)))

def make():
    net = Net()
    net.net.load_state_dict(LOAD)
    return net
"""
HERE = 'Path(__file__).with_name("net.pt")'
SAVES = {
    "torch.load(HERE)": torch.save,
    "load_file(HERE)": save_file,
    "torch.jit.load(HERE).state_dict()": lambda state, path: torch.jit.script(linear(state)).save(path),
    "{k: torch.tensor(v) for k, v in json.loads(HERE.read_text()).items()}":
        lambda state, path: path.write_text(json.dumps({k: v.tolist() for k, v in state.items()})),
}


def linear(state):
    net = torch.nn.Linear(3, 2)
    net.load_state_dict(state)
    return net


@pytest.mark.parametrize("load", SAVES)
def test_weights_that_are_read_are_read_again_where_they_have_changed(tmp_path, load):
    "In the same process, as after a training in the next cell of a notebook."
    path = tmp_path / "mine.py"
    path.write_text(READER.replace("LOAD", load.replace("HERE", HERE)))
    def train(gain):
        other = tmp_path / "other"
        SAVES[load]({"weight": torch.full((2, 3), gain), "bias": torch.tensor([0.0, gain])}, other)
        other.replace(tmp_path / "net.pt")
    train(1.0)
    name = f"{path}:make"
    before, card = built_classifier(name), function_card(name, SHAPE)
    assert built_classifier(name) is before and function_card(name, SHAPE) is card
    train(2.0)
    x = torch.rand(2, *SHAPE)
    assert torch.allclose(built_classifier(name)(x), 2 * before(x))
    assert function_card(name, SHAPE)["sha256"] != card["sha256"]
    train(1.0)
    assert function_card(name, SHAPE)["sha256"] == card["sha256"]


def test_an_edited_module_on_the_path_is_read_again(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    helper = tmp_path / "helper_of_ours.py"
    helper.write_text("BY = 1.0\n")
    text = "import helper_of_ours\ndef make(): return lambda g: g * helper_of_ours.BY\n"
    (tmp_path / "module_of_ours.py").write_text(text)
    g = torch.ones(1, 3, 2, 2)
    name = "module_of_ours:make"
    assert make_stabilizer(name)(g).mean() == 1
    kept = __import__("module_of_ours")
    make_stabilizer(name)
    assert __import__("module_of_ours") is kept                              # unchanged, it is imported once
    helper.write_text("BY = 2.0\n")
    assert make_stabilizer(name)(g).mean() == 2 and make_stabilizer(name)(g).mean() == 2


STEPS = "class make:\n    def __call__(self, g): return BY * g\n"


class Edits(Local):
    "Computes chunks, and edits a file after the first."
    def __init__(self, edit):
        super().__init__()
        self.edit = edit

    def compute(self, tasks, bar):
        for k, task in enumerate(tasks):
            if k == 1: self.edit()
            yield task, self.task(*task, bar)


def test_what_computes_is_the_code_that_the_setting_knows(written, tmp_path):
    "Also where the file is edited in the midst of a run, and back again afterwards."
    (tmp_path / "gain.json").write_text("1")
    name = written(STEPS.replace("BY", "1"))
    setting = dict(stabilizer=name, scale=0.1, steps=2, count=3, where="x_t")
    cache = tmp_path / "cache"
    spec = RunSpec(**setting)
    disturbed = run(spec, chunk=1, engine=Edits(lambda: written(STEPS.replace("BY", "1000"))), cache=cache)
    edited = run(RunSpec(**setting), chunk=1, cache=cache)
    written(STEPS.replace("BY", "1"))
    fresh = run(RunSpec(**setting), chunk=1, cache=tmp_path / "other")
    assert torch.equal(disturbed.samples, fresh.samples) and not torch.equal(edited.samples, fresh.samples)
    assert {path.name for path in cache.iterdir()} == {spec.key, edited.spec.key}


def test_code_that_is_gone_computes_nothing(written, tmp_path):
    "In another process, or after an edit between a setting and its run, the code of before cannot be had."
    (tmp_path / "gain.json").write_text("1")
    guide = """
        from gradcheck.models.checkpoints import load_classifier
        class Guide(nn.Module):
            def __init__(self):
                super().__init__()
                self.guide = load_classifier("laptop/nonrobust")
            def forward(self, x): return 1.0 * self.guide(x)
        def make(): return Guide()"""
    name = written(guide)
    spec = RunSpec(classifier=name, judge="laptop/judge", scale=0.1, steps=2, count=1)
    assert spec.key
    written(guide.replace("1.0", "2.0"))
    with pytest.raises(UserError, match="mine.py:make' has changed since its setting was made; make the setting again"):
        run(spec, cache=tmp_path / "cache")
    again = RunSpec(classifier=name, judge="laptop/judge", scale=0.1, steps=2, count=1)
    assert again.key != spec.key and run(again, cache=tmp_path / "cache").samples.shape == (1, 3, 64, 64)

    steps = written(STEPS.replace("BY", "3"))
    (code,) = code_of(steps).values()
    written(STEPS.replace("BY", "4"))
    with pytest.raises(UserError, match="has changed since its setting was made"): make_stabilizer(steps, code)


@pytest.mark.parametrize("guide", ["a file", "a function that reads it"])
def test_weights_that_are_gone_compute_nothing(tmp_path, own_cache, guide):
    "Trained again between a setting and its run: their pictures are not those of the setting's key."
    weights, code = tmp_path / "net.safetensors", tmp_path / "mine.py"
    code.write_text("from gradcheck.models.checkpoints import load_classifier\n"
                    f"def make(): return load_classifier({str(weights)!r})\n")
    setting = dict(classifier=str(weights) if guide == "a file" else f"{code}:make", judge=None, steps=2, count=1)
    def train(seed):
        with seeded(seed): save_weights(MobileNetV3Small(4, 64), weights, {})
    train(0)
    spec = RunSpec(**setting)
    assert spec.key
    train(1)
    with pytest.raises(UserError, match="' has changed since its setting was made; make the setting again"): run(spec)
    again = RunSpec(**setting)
    assert again.key != spec.key and len(run(again).samples) == 1
    train(2)
    assert len(run(again, cache=tmp_path / "other").samples) == 1           # what is in memory is what the key says


def test_the_guide_by_another_name_is_no_judge(tmp_path, cli, own_cache):
    "Nor is it a robust classifier that turns its own gradient."
    weights = WEIGHTS / "laptop" / "nonrobust.safetensors"
    for suffix in (".safetensors", ".json"): shutil.copy(weights.with_suffix(suffix), tmp_path / f"copy{suffix}")
    copy = str(tmp_path / "copy.safetensors")
    models = dict(denoiser="laptop/ddpm", classifier="laptop/nonrobust")
    assert not question_of(**models, judge=copy).judged and not question_of(**models).judged
    assert question_of(**models, judge="laptop/judge").judged
    small = ("--steps", 2, "--count", 1, "--out", tmp_path / "out", "--device", "cpu")
    code, out, _ = cli("sample", "--classifier", "nonrobust", "--judge", copy, *small)
    assert code == 0 and "no independent judge" in out
    with pytest.raises(UserError, match="robust classifier is the guide itself"):
        RunSpec(classifier="laptop/nonrobust", robust=copy, where="x_t_cone")


ODD = {
    "a state with other things": ("""
        class Net(Small):
            def get_extra_state(self): return {"version": 2}
            def set_extra_state(self, state): pass
        def make(): return Net()""", None),
    "a quantised layer": ("""
        def make(): return torch.ao.quantization.quantize_dynamic(Small(), {nn.Linear}, dtype=torch.qint8)""",
        "no gradient"),
    "a buffer of eight bits": ("""
        def make():
            net = Small()
            net.register_buffer("s", torch.ones(3).to(torch.float8_e4m3fn))
            return net""", None),
    "a nested buffer": ("""
        def make():
            net = Small()
            net.register_buffer("s", torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))
            return net""", "the classifier .* cannot be"),
    "a sparse buffer": ("""
        def make():
            net = Small()
            net.register_buffer("s", torch.eye(4).to_sparse())
            return net""", None),
    "sparse logits": ("""
        class Net(Small):
            def forward(self, x): return super().forward(x).to_sparse()
        def make(): return Net()""", "returned a sparse tensor"),
    "a tensor of its own kind": ("""
        class Kind(torch.Tensor): pass
        class Net(Small):
            def forward(self, x): return super().forward(x).as_subclass(Kind)
        def make(): return Net()""", None),
    "train fails": ("""
        class Net(Small):
            def train(self, mode=True): raise RuntimeError("no eval")
        def make(): return Net()""", r"cannot be made ready \(RuntimeError: no eval, .*mine.py, line \d+\)"),
    "no state": ("""
        class Net(Small):
            def state_dict(self, *a, **k): return None
        def make(): return Net()""", r"cannot be made ready \(AttributeError"),
    "a name that fails": ("""
        class Net(Small):
            def __getattr__(self, name): return super().__getattr__(name) if name != "channels_last" else {}[name]
        def make(): return Net()""", r"cannot be made ready \(KeyError: 'channels_last', .*mine.py, line \d+\)"),
    "another kind of numbers": ("""
        class Net(Small):
            def forward(self, x):
                torch.set_default_dtype(torch.float64)
                return super().forward(x)
        def make(): return Net()""", None),
    "another working directory": ("""
        class Net(Small):
            def forward(self, x):
                os.chdir("/")
                return super().forward(x)
        def make(): return Net()""", None),
    "weights in another precision": ("""
        class Net(Small):
            def forward(self, x): return super().forward(x.double())
        def make(): return Net().double()""", "with its float64 weights in float32"),
}


@pytest.mark.parametrize("what", ODD)
def test_an_odd_classifier_works_or_is_one_sentence(written, tmp_path, what):
    (tmp_path / "gain.json").write_text("1")
    text, sentence = ODD[what]
    name = written(text)
    here = os.getcwd()
    if sentence is None:
        assert function_card(name, SHAPE)["config"]["classes"] == 4
        assert torch.get_default_dtype() == torch.float32 and os.getcwd() == here
        assert type(built_classifier(name)(torch.rand(2, *SHAPE))) is torch.Tensor
    else:
        with pytest.raises(UserError, match=sentence) as told: function_card(name, SHAPE)
        assert "\n" not in str(told.value)


def test_a_setting_says_the_stabilizer_that_it_was_keyed_by(written, tmp_path):
    (tmp_path / "gain.json").write_text("1")
    spec = RunSpec(stabilizer=written(STEADY["a closure"]), steps=2, count=1)
    key, told = spec.key, spec.digests["stabilizer"]
    (tmp_path / "gain.json").write_text("20")
    stabilizers._maker.cache_clear()
    another = replace(spec)
    assert (spec.key, spec.digests["stabilizer"]) == (key, told)
    assert another.key != key and another.digests["stabilizer"] != told
    assert "stabilizer" not in RunSpec(stabilizer="adam").digests
