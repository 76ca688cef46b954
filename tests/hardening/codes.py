"""Classifiers and stabilizers as people write them: sources of FILE.py that mean the same as the plain one, and others
that cannot work and must be told so."""
from damage import Case, replace
from worlds import OWN

FORWARD = "def forward(self, x): return self.head(self.features(x).flatten(1))"
CALL = "def __call__(self, g): return 0.5 * g"
MAKE = "def make(): return Small()"

SAME = {   # what is replaced -> by what; the model is the same, and so are its pictures
    "eval returns nothing": (MAKE, "    def eval(self): super().eval()\n\n\n" + MAKE),
    "train returns nothing": (MAKE, "    def train(self, mode=True): super().train(mode)\n\n\n" + MAKE),
    "view after a convolution": (".flatten(1)", ".view(x.size(0), -1)"),
    "an in-place first layer": (FORWARD, FORWARD.replace(": return", ":\n        x = x.mul_(1.0)\n        return")),
    "in training mode": (MAKE, "def make(): return Small().train()"),
    "a wrapper": (MAKE, "def make(): return nn.DataParallel(Small())"),
    "no gradient needed": (MAKE, "def make(): return Small().requires_grad_(False)"),
    "prints": (MAKE, "print('hello')\n\n\n" + MAKE),
    "a closure": (MAKE, "make = lambda: Small()"),
    "relative path": (MAKE, "def make():\n    open('own.py', encoding='utf-8').read()\n    return Small()"),
    "a gradient in place": (CALL, "def __call__(self, g): return g.mul_(0.5)"),
    "a gradient in float64": (CALL, "def __call__(self, g): return (0.5 * g.double()).float()"),
    "imports a helper of the library": (MAKE, "import json\n\n\n" + MAKE),
    "sets the seed": (MAKE, "def make():\n    torch.manual_seed(0)\n    return Small()"),
}
OTHER = {
    "syntax error": (MAKE, "def make( return"),
    "raises at import": (MAKE, "raise RuntimeError('no such disk')"),
    "exits at import": (MAKE, "import sys\nsys.exit(3)"),
    "quits at import": (MAKE, "import os\nos.abort  # not called\nraise SystemExit"),
    "raises BaseException": (MAKE, "class E(BaseException): pass\n\n\nraise E"),
    "imports what is not there": (MAKE, "import no_such_module\n" + MAKE),
    "reads what is not there": (MAKE, "def make(): return torch.load('gone.pt')"),
    "returns None": (MAKE, "def make(): return None"),
    "returns a class": (MAKE, "def make(): return Small"),
    "needs an argument": (MAKE, "def make(path): return Small()"),
    "a number": (MAKE, "make = 5"),
    "recursion": (MAKE, "def make(): return make()"),
    "one dimension": (FORWARD, FORWARD.replace(".flatten(1))", ".flatten(1))[:, 0]")),
    "a tuple": (FORWARD, FORWARD + ", None"),
    "a dict": (FORWARD, "def forward(self, x): return {'logits': self.head(self.features(x).flatten(1))}"),
    "float64 answers": (FORWARD, FORWARD.replace("self.head", "1.0 * self.head") + ".double()"),
    "whole answers": (FORWARD, FORWARD + ".long()"),
    "NaN answers": (FORWARD, FORWARD + " * float('nan')"),
    "infinite answers": (FORWARD, FORWARD + " * float('inf')"),
    "no gradient": (FORWARD, FORWARD + ".detach()"),
    "no_grad inside": (FORWARD, "@torch.no_grad()\n    " + FORWARD),
    "one class": ("nn.Linear(256, 2)", "nn.Linear(256, 1)"),
    "no class": ("nn.Linear(256, 2)", "nn.Linear(256, 0)"),
    "other images": ("nn.Conv2d(3, 4, 8, 8)", "nn.Conv2d(1, 4, 8, 8)"),
    "asks the batch size": (FORWARD, FORWARD.replace(": return", ":\n        assert len(x) == 7\n        return")),
    "mean of the batch": (FORWARD, FORWARD.replace("self.features(x)", "self.features(x - x.mean())")),
    "lazy": ("nn.Linear(256, 2)", "nn.LazyLinear(2)"),
    "float64 weights": (MAKE, "def make(): return Small().double()"),
    "half weights": (MAKE, "def make(): return Small().half()"),
    "on meta": (MAKE, "def make(): return Small().to('meta')"),
    "class_names a string": (MAKE, "def make():\n    m = Small()\n    m.class_names = 'ab'\n    return m"),
    "class_names a number": (MAKE, "def make():\n    m = Small()\n    m.class_names = 7\n    return m"),
    "class_names odd": (MAKE, "def make():\n    m = Small()\n    m.class_names = [None, b'x']\n    return m"),
    "stabilizer returns None": (CALL, "def __call__(self, g): pass"),
    "stabilizer returns float64": (CALL, "def __call__(self, g): return 0.5 * g.double()"),
    "stabilizer of another shape": (CALL, "def __call__(self, g): return g[:, :1]"),
    "stabilizer of one number": (CALL, "def __call__(self, g): return g.mean()"),
    "stabilizer of NaN": (CALL, "def __call__(self, g): return g * float('nan')"),
    "stabilizer raises": (CALL, "def __call__(self, g): raise ValueError('no')"),
    "stabilizer exits": (CALL, "def __call__(self, g): raise SystemExit"),
    "stabilizer without reset": ("def reset(self): pass", "def rest(self): pass"),
    "reset needs more": ("def reset(self): pass", "def reset(self, shape): pass"),
    "stabilizer of numpy": (CALL, "def __call__(self, g): return 0.5 * g.numpy()"),
    "stabilizer of zeros": (CALL, "def __call__(self, g): return 0 * g"),
    "stabilizer needs arguments": ("def reset(self): pass", "def __init__(self, rate): self.reset = rate"),
}


def codes():
    "Cases of own.py; those in `SAME` may be refused, but not make other pictures."
    for group, legal in ((SAME, False), (OTHER, True)):
        for name, (old, new) in group.items():
            def spoil(stage, text=OWN.replace(old, new)): replace(stage / "own.py", text.encode())
            yield Case(f"own.py: {name}", spoil, legal, ("own.py",))
