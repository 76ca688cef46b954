"""What is changed between two calls, by right: the second must not be given what the cache keeps of the first."""
import json
import os

import numpy as np
from codes import CALL, FORWARD
from damage import Case, replace
from odd import png
from worlds import OWN, ball


def codes(world):
    "The same names, the same weights, another function."
    edits = {
        "another forward": (FORWARD, FORWARD + " * 3"),
        "another stabilizer": (CALL, CALL.replace("0.5", "0.05")),
        "other layers": ("nn.Conv2d(3, 4, 8, 8)", "nn.Conv2d(3, 4, 8, 8, padding_mode='reflect', bias=False)"),
        "other weights": ("def make(): return Small()", "def make():\n    torch.manual_seed(5)\n    return Small()"),
    }
    for name, (old, new) in edits.items():
        def spoil(stage, text=OWN.replace(old, new)): replace(stage / "own.py", text.encode())
        yield Case(f"own.py: {name}", spoil)


def pipelines(world):
    "One field that another pipeline has otherwise, its weights the same."
    edits = [("scheduler/scheduler_config.json", field, value) for field, value in (
        ("prediction_type", "v_prediction"), ("prediction_type", "epsilon"), ("beta_start", 0.001), ("beta_end", 0.1),
        ("clip_sample", False), ("variance_type", "fixed_large"), ("beta_schedule", "squaredcos_cap_v2"),
        ("num_train_timesteps", 100))]
    edits += [("unet/config.json", field, value) for field, value in (
        ("freq_shift", 1), ("flip_sin_to_cos", False), ("norm_eps", 0.5), ("mid_block_scale_factor", 2.0),
        ("attention_head_dim", 16), ("act_fn", "gelu"))]
    for file, field, value in edits:
        def spoil(stage, file=file, field=field, value=value):
            known = json.loads((stage / "pipe" / file).read_text(encoding="utf-8"))
            replace(stage / "pipe" / file, json.dumps(known | {field: value}).encode())
        yield Case(f"{file}: {field} = {value!r}", spoil)


def pictures(world):
    "Other pixels under the old name; once with the old date and size too."
    for name, keep in (("another picture", False), ("another picture of the same date", True)):
        def spoil(stage, keep=keep):
            path = stage / "pics" / "blue" / "ball_1.png"
            before = path.stat()
            data = png(np.roll(ball(1, 2), 7, axis=0))
            replace(path, data)
            if keep: os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        yield Case(f"blue/ball_1.png: {name}", spoil)
