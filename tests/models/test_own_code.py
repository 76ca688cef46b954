"""Classifiers and stabilizers as people write them: each works, or is one sentence with file and line."""

import sys
import textwrap
from types import ModuleType

import pytest
import torch
from torch import nn

from gradcheck.core import UserError, image_generators, randn
from gradcheck.data.sources import open_data
from gradcheck.data.sportballs import SportBalls
from gradcheck.guidance.sampling import WHERE, Guidance, guided_steps
from gradcheck.guidance.stabilizers import Adam, Stabilizer, guarded, make_stabilizer, stabilizer_digest
from gradcheck.models import own
from gradcheck.models.catalogue import classifier_card, open_classifier
from gradcheck.models.ddpm import DDPM
from gradcheck.models.networks import freeze
from gradcheck.models.own import function_card

HEAD = "import torch\nfrom torch import nn\nimport torch.nn.functional as F\n\n"
BODY = "nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)"
SHAPE = (3, 16, 16)


@pytest.fixture
def written(tmp_path):
    "name of a classifier or stabilizer from the text of its file"
    def write(text, function="make"):
        path = tmp_path / "mine.py"
        path.write_text(HEAD + textwrap.dedent(text), encoding="utf-8")
        return f"{path}:{function}"
    return write


WORKING = {
    "plain": f"def make(): return nn.Sequential({BODY})",
    "in training mode": f"def make(): return nn.Sequential({BODY}).train()",
    "eval returns nothing": f"""
        class Net(nn.Sequential):
            def eval(self): super().eval()
            def train(self, mode=True): super().train(mode)
        def make(): return Net({BODY})""",
    "view behind a convolution": """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.out = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8 * 64, 4)
            def forward(self, x):
                x = self.conv(x)
                return self.out(x.view(x.size(0), -1))
        def make(): return Net()""",
    "a first layer in place": f"def make(): return nn.Sequential(nn.LeakyReLU(0.5, inplace=True), {BODY})",
    "normalises in place": f"""
        class Net(nn.Sequential):
            def forward(self, x):
                x -= 0.5
                return super().forward(x.mul_(2))
        def make(): return Net({BODY})""",
    "a tanh that was registered last and is used inside": """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.out, self.act = nn.Linear(768, 8), nn.Linear(8, 4), nn.Tanh()
            def forward(self, x): return 0.1 * self.out(self.act(self.first(x.reshape(len(x), -1))))
        def make(): return Net()""",
    "an output with logits": f"""
        from types import SimpleNamespace
        class Net(nn.Sequential):
            def forward(self, x): return SimpleNamespace(logits=super().forward(x))
        def make(): return Net({BODY})""",
    "float64": f"def make(): return nn.Sequential({BODY}).double()",
    "float16": f"def make(): return nn.Sequential({BODY}).half()",
    "without gradients": f"""
        def make():
            net = nn.Sequential({BODY})
            for p in net.parameters(): p.requires_grad = False
            return net""",
    "log-probabilities": f"def make(): return nn.Sequential({BODY}, nn.LogSoftmax(1))",
    "one logit": f"def make(): return nn.Sequential({BODY}, nn.Linear(4, 1))",
    "prints at import": f"print('hello')\ndef make(): return nn.Sequential({BODY})",
    "dropout": f"def make(): return nn.Sequential(nn.Dropout(0.5), {BODY})",
}


@pytest.mark.parametrize("text", WORKING.values(), ids=WORKING)
def test_classifiers_that_work(written, text):
    name = written(text)
    classes = classifier_card(name, SHAPE)["config"]["classes"]
    model = open_classifier(name)
    x = (torch.rand(3, *SHAPE) * 2 - 1).to(memory_format=torch.channels_last)
    before = x.clone()
    logits = model(x)
    assert logits.shape == (3, classes) and logits.dtype == torch.float32
    assert torch.equal(x, before), "the image was changed"
    assert not any(m.training for m in model.modules()) and not any(p.requires_grad for p in model.parameters())
    for where in WHERE.values():
        x0, gradient = where(DDPM(), Denoiser(), x, 100, lambda image: model(image)[:, 0])
        assert torch.equal(x, before) and gradient.shape == x.shape and gradient.isfinite().all()


REFUSED = {
    "probabilities": (f"def make(): return nn.Sequential({BODY}, nn.Softmax(1))", "returns probabilities"),
    "sigmoids": (f"def make(): return nn.Sequential({BODY}, nn.Sigmoid())", "returns probabilities"),
    "softmax by hand": (f"""
        class Net(nn.Sequential):
            def forward(self, x): return F.softmax(super().forward(x), 1)
        def make(): return Net({BODY})""", "returns probabilities"),
    "sigmoids by hand": (f"""
        class Net(nn.Sequential):
            def forward(self, x): return super().forward(x).sigmoid()
        def make(): return Net({BODY})""", "returns probabilities"),
    "one sigmoid by hand": (f"""
        class Net(nn.Sequential):
            def forward(self, x): return super().forward(x)[:, :1].sigmoid()
        def make(): return Net({BODY})""", "returns probabilities"),
    "percent": (f"""
        class Net(nn.Sequential):
            def forward(self, x): return 100 * super().forward(x).softmax(1)
        def make(): return Net({BODY})""", "returns probabilities"),
    "probabilities times ten": (f"""
        class Net(nn.Sequential):
            def forward(self, x): return 10 * super().forward(x).softmax(1)
        def make(): return Net({BODY})""", "returns probabilities"),
    "from -1 to 1": (f"""
        class Net(nn.Sequential):
            def forward(self, x): return 2 * super().forward(x).softmax(1) - 1
        def make(): return Net({BODY})""", "returns probabilities"),
    "a last tanh": (f"def make(): return nn.Sequential({BODY}, nn.Tanh())", "returns probabilities"),
    "dropout that is never off": (f"""
        class Net(nn.Sequential):
            def forward(self, x): return super().forward(F.dropout(x, 0.1))
        def make(): return Net({BODY})""", "differently each time"),
    "NaN gradients": (f"""
        class Net(nn.Sequential):
            def forward(self, x): return super().forward(x) + (0 * x.mean((1, 2, 3))).sqrt()[:, None]
        def make(): return Net({BODY})""", "gradient that is NaN or infinite"),
    "the NaN gradient of a pixel": (f"""
        class Net(nn.Sequential):
            def forward(self, x): return super().forward(x) + (x - x)[:, 0, 3, 3].sqrt()[:, None]
        def make(): return Net({BODY})""", "gradient that is NaN or infinite"),
    "infinite gradients": (f"""
        class Net(nn.Sequential):
            def forward(self, x):
                y = super().forward(x)
                return y + (y - y.detach()).clamp(min=0).sqrt()
        def make(): return Net({BODY})""", "gradient that is NaN or infinite"),
    "a gradient too long for float32": (f"""
        class Net(nn.Sequential):
            def forward(self, x): return 1e30 * super().forward(x)
        def make(): return Net({BODY})""", "gradient that is NaN or infinite"),
    "in place behind a sigmoid": (f"""
        class Net(nn.Sequential):
            def forward(self, x):
                y = super().forward(x)
                gate = y.sigmoid()
                out = y * gate
                gate.mul_(2)
                return out
        def make(): return Net({BODY})""", "fails where its gradient is taken .RuntimeError"),
    "a tuple": (f"""
        class Net(nn.Sequential):
            def forward(self, x): return super().forward(x), x
        def make(): return Net({BODY})""", "must return logits .*a tuple"),
    "a dict": (f"""
        class Net(nn.Sequential):
            def forward(self, x): return dict(out=super().forward(x))
        def make(): return Net({BODY})""", "a dict"),
    "maps": ("def make(): return nn.Conv2d(3, 4, 3)", "returned shape"),
    "no class": ("def make(): return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 0))", "has 0 classes"),
    "no gradient": (f"""
        class Net(nn.Sequential):
            def forward(self, x):
                with torch.no_grad(): return super().forward(x)
        def make(): return Net({BODY})""", "gives no gradient"),
    "whole answers": (f"""
        class Net(nn.Sequential):
            def forward(self, x): return super().forward(x).round().long()
        def make(): return Net({BODY})""", "gives no gradient"),
    "odd class names": (f"""
        def make():
            net = nn.Sequential({BODY})
            net.class_names = 5
            return net""", "give a list of 4 names"),
    "ends without a word": ("class End(BaseException): pass\ndef make(): raise End", "failed .End"),
    "flat": (f"def make(): return nn.Sequential({BODY}, nn.Flatten(0))", "returned shape"),
    "NaN": (f"""
        class Net(nn.Sequential):
            def forward(self, x): return super().forward(x).log() * float('nan')
        def make(): return Net({BODY})""", "NaN or infinity"),
    "NaN weights": (f"""
        def make():
            net = nn.Sequential({BODY})
            net[0].weight.data[0] = float('nan')
            return net""", "NaN or infinity in '0.weight'"),
    "other sizes": ("def make(): return nn.Sequential(nn.Flatten(), nn.Linear(10, 4))", "fails on images of shape"),
    "raises": ("""
        class Net(nn.Module):
            def forward(self, x): raise KeyError('lost')
        def make(): return Net()""", r"KeyError: 'lost', .*mine.py, line 7"),
    "batch statistics": ("""
        def make():
            return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False),
                                 nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))""", "beside others"),
    "random": (f"""
        class Net(nn.Sequential):
            def forward(self, x): return super().forward(x + torch.randn_like(x))
        def make(): return Net({BODY})""", "differently each time"),
    "on meta": (f"""
        def make():
            with torch.device('meta'): return nn.Sequential({BODY})""", "meta device"),
    "no module": ("def make(): return 5", "is a int"),
    "a class with arguments": ("class make(nn.Module):\n    def __init__(self, n): super().__init__()", "failed"),
    "fails at import": ("1 / 0\ndef make(): pass", r"ZeroDivisionError: division by zero, .*mine.py, line 5"),
    "exits at import": ("import sys\nsys.exit(3)", r"SystemExit: 3, .*mine.py, line 6"),
    "exits inside": ("def make(): exit(1)", "SystemExit"),
    "no syntax": ("def make(:", "SyntaxError"),
}


@pytest.mark.parametrize("text, message", REFUSED.values(), ids=REFUSED)
def test_classifiers_that_are_refused_in_a_sentence(written, text, message):
    with pytest.raises(UserError, match=message): classifier_card(written(text), SHAPE)


# --- stabilizers -------------------------------------------------------------------------------------------------
class Denoiser(nn.Module):
    prediction = "sample"
    def forward(self, x, t): return 0.9 * x


def steps(stabilizer, where="x_t", classifier=None):
    classifier = classifier or freeze(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)))
    generators = image_generators(0, range(2))
    guidance = Guidance(classifier, 1, where=WHERE[where], stabilizer=stabilizer, scale=3.0)
    return [*guided_steps(DDPM(), Denoiser(), guidance, randn((2, *SHAPE), generators), generators, steps=4)]


class InPlaceNorm:
    "What many would write."
    def reset(self): pass
    def __call__(self, g):
        g /= g.flatten(1).norm(dim=1)[:, None, None, None]
        return g


class InPlaceAverage:
    "Hands out its state, which the next step changes."
    def reset(self): self.m = None
    def __call__(self, g):
        if self.m is None: self.m = torch.zeros_like(g)
        return self.m.mul_(0.5).add_(g)


def test_a_stabilizer_in_place_leaves_the_raw_gradient_as_it_was():
    torch.manual_seed(0)
    classifier = freeze(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)))
    raw = [s.gradient for s in steps(Stabilizer(), classifier=classifier)]
    own = steps(InPlaceNorm(), classifier=classifier)
    assert torch.allclose(own[0].gradient, raw[0])
    assert own[0].gradient.flatten(1).norm(dim=1).max() < 0.9
    assert torch.allclose(own[0].guidance.flatten(1).norm(dim=1), torch.ones(2))


def test_a_stabilizer_that_hands_out_its_state_gives_a_new_guidance_at_each_step():
    own = steps(InPlaceAverage())
    assert torch.allclose(own[1].guidance, 0.5 * own[0].guidance + own[1].gradient)
    assert len({s.guidance.data_ptr() for s in own}) == 4


def test_ours_and_the_same_of_yours_agree():
    class Mine(Adam): pass
    torch.manual_seed(1)
    classifier = freeze(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)))
    for a, b in zip(steps(Adam(), classifier=classifier), steps(Mine(), classifier=classifier)):
        assert torch.equal(a.x_prev, b.x_prev)


@pytest.mark.parametrize("call, message", [
    (lambda g: None, "returned a NoneType"),
    (lambda g: 1.0, "returned a float"),
    (lambda g: g.numpy(), "returned a ndarray"),
    (lambda g: g.mean(1, keepdim=True), r"returned shape \(2, 1, 16, 16\)"),
    (lambda g: g[:1], r"returned shape \(1, 3, 16, 16\)"),
    (lambda g: g.flatten(1), "returned shape"),
    (lambda g: g / 0 * 0, "returned NaN or infinity"),
    (lambda g: torch.complex(g, g), "returned complex numbers"),
    (lambda g: {}["lost"], r"KeyError: 'lost', .*test_own_code.py, line"),
    (lambda g, t: g, "TypeError"),
])
def test_stabilizers_that_return_no_gradient(call, message):
    with pytest.raises(UserError, match=message): steps(call)


def test_a_stabilizer_in_float64_returns_to_float32():
    assert all(s.guidance.dtype == torch.float32 for s in steps(lambda g: g.double() * 2))


@pytest.mark.parametrize("text, function, message", [
    ("class S:\n    def __call__(self, g): return g", "S", None),
    ("class S:\n    def reset(self): pass\n    def __call__(self, g): return g", "S", None),
    ("def factory(): return lambda g: g", "factory", None),
    ("class S: pass", "S", "__call__"),
    ("def no(): return 3", "no", "__call__"),
    ("def direct(g): return g", "direct", "without arguments"),
    ("class S:\n    def __init__(self): raise ValueError('no')", "S", r"ValueError: no, .*mine.py, line 6"),
])
def test_a_stabilizer_by_name(written, text, function, message):
    name = written(text, function)
    if message is None: assert len(steps(make_stabilizer(name))) == 4
    else:
        with pytest.raises(UserError, match=message): make_stabilizer(name)


def test_a_file_may_define_dataclasses_with_postponed_annotations(tmp_path):
    "Dataclasses look up their module by its name; whatever had that name before has it afterwards."
    path = tmp_path / "json.py"
    path.write_text("from __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\nclass S:\n"
                    "    gain: float = 2.0\n    def __call__(self, g): return self.gain * g\n", encoding="utf-8")
    before = dict(sys.modules)
    assert make_stabilizer(f"{path}:S")(torch.ones(1, 3, 2, 2)).mean() == 2
    assert sys.modules["json"] is before["json"]
    assert "mine" not in sys.modules and make_stabilizer(f"{path.rename(tmp_path / 'mine.py')}:S").name == "S"
    assert "mine" not in sys.modules


def test_functions_of_a_notebook_are_refused(monkeypatch):
    "Its module has no file, so that a change of their code would not be seen."
    notebook = ModuleType("notebook")
    notebook.make = lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    notebook.data = lambda: SportBalls(canvas=16, base=8)
    monkeypatch.setitem(sys.modules, "notebook", notebook)
    for use in (
        lambda: open_classifier("notebook:make"),
        lambda: function_card("notebook:make", SHAPE),
        lambda: stabilizer_digest("notebook:make"),
        lambda: open_data("notebook:data", 16),
    ):
        with pytest.raises(UserError, match="no file of the module 'notebook'; give MODULE:FUNCTION or FILE"): use()


@pytest.mark.parametrize("text", [
    "from gradcheck.guidance.stabilizers import RescaledAdam\nclass S(RescaledAdam):\n"
    "    def __init__(self): super().__init__(beta1=0.5)\n    def __call__(self, g): return 2 * super().__call__(g)",
    "class S:\n    beta1 = 0.5\n    def __call__(self, g): return self.beta1 * g\n"
    "    def spanning(self, stride):\n        made = S()\n        made.beta1 **= stride\n        return made",
])
def test_a_stabilizer_of_yours_is_told_how_much_a_step_spans(written, text):
    made = make_stabilizer(written(text, "S")).spanning(8.0)
    assert made.made.beta1 == 0.5**8 and type(made.made).__name__ == "S"
    g = torch.ones(1, 3, 2, 2)
    assert torch.equal(made(g), made.made.__class__.__call__(make_stabilizer(written(text, "S")).spanning(8).made, g))
    plain = make_stabilizer(written("class S:\n    def __call__(self, g): return g", "S"))
    assert torch.equal(plain.spanning(8)(g), g)


def test_a_class_in_the_place_of_an_object():
    with pytest.raises(UserError, match="give an object"): guarded(Adam)


READS = """import json
import torch
from pathlib import Path
from torch import nn

class Tempered(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 4)
        WHAT
    def forward(self, x): return self.last(x.mean((2, 3))) / self.temperature
def make(): return Tempered()
"""


@pytest.mark.parametrize("what", [
    "self.temperature = float(Path(__file__).with_name('t.txt').read_text())",
    "self.temperature = torch.tensor(float(Path(__file__).with_name('t.txt').read_text()))",
    "self.table = {'T': [float(Path(__file__).with_name('t.txt').read_text())]}; self.temperature = 1.0",
    "t = float(Path(__file__).with_name('t.txt').read_text())\n"
    "        self.register_buffer('temperature', torch.tensor(t), persistent=False)",
])
def test_what_a_classifier_has_read_is_part_of_it(written, tmp_path, what):
    name = written(READS.replace("WHAT", what))
    digests = []
    for temperature in ("1.0", "0.5", "1.0"):
        (tmp_path / "t.txt").write_text(temperature, encoding="utf-8")
        own._built.cache_clear()
        own._card.cache_clear()
        digests.append(function_card(name, (3, 16, 16))["sha256"])
    assert digests[0] == digests[2] != digests[1]
