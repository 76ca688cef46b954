"""What people have, healthy: pictures, lists, and all that the commands make of them. Small, and made once by the code
under test itself, so that every version is tried on files of its own."""
import importlib.util
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(importlib.util.find_spec("gradcheck").origin).parent.parent      # of the code under test
LARGE = 100_000                                                              # bytes; larger files are linked

SAMPLE = ("sample", "--steps", "2", "--count", "2", "--scale", "3", "--out", "out")
MODELS = ("--denoiser", "d/ddpm.safetensors", "--classifier", "c/nonrobust.safetensors")
TRAIN = ("train", "classifier", "--preset", "smoke")
FOLDER = ("--dataset", "folder", "--root", "pics")
OWN = '''"""A classifier and a stabilizer, as people write them."""
import torch
from torch import nn


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 4, 8, 8)
        self.head = nn.Linear(256, 2)

    def forward(self, x): return self.head(self.features(x).flatten(1))


def make(): return Small()


class Half:
    def reset(self): pass
    def __call__(self, g): return 0.5 * g
'''


def ball(k, channel, size=40):
    "A white picture with a black and a coloured rectangle, uint8 (size, size, 3)."
    picture = np.full((size, size, 3), 255, np.uint8)
    picture[4 + k:26, 6:32] = 0
    picture[4 + k:26, 6:32, channel] = 40 + 12 * k
    return picture


def pictures(folder):
    "Two classes of six PNGs, and one of each other format."
    for channel, name in ((2, "blue"), (1, "green")):
        (folder / name).mkdir(parents=True)
        for k in range(6): Image.fromarray(ball(k, channel)).save(folder / name / f"ball_{k}.png")
    for suffix in ("jpg", "gif", "tif", "bmp", "webp"):
        Image.fromarray(ball(7, 2)).save(folder / "blue" / f"odd_{suffix}.{suffix}")
    Image.fromarray(ball(3, 2)[..., 2]).save(folder / "green" / "grey.png")
    cut_out = np.dstack([ball(5, 1), np.where(ball(5, 1)[..., 0] == 255, 0, 255).astype(np.uint8)])
    Image.fromarray(cut_out).save(folder / "green" / "cut_out.png")


def celeba(folder, form):
    "Twelve faces with two attributes, their lists as text or CSV, beside a folder or (`form` zip) a zip."
    inside = folder / "img_align_celeba"
    inside.mkdir(parents=True)
    names = [f"{k:06d}.jpg" for k in range(1, 13)]
    for k, name in enumerate(names): Image.fromarray(ball(k, k % 3, 48)).save(inside / name)
    rows = [(name, 1 - 2 * (k % 3 == 0), 1 - 2 * (k % 2)) for k, name in enumerate(names)]
    splits = [(name, 0 if k < 8 else 1 if k < 10 else 2) for k, name in enumerate(names)]
    def lines(table, mark): return "".join(mark.join(map(str, row)) + "\n" for row in table)
    if form == "csv":
        heads = ("image_id,Smiling,Male\n", "image_id,partition\n")
        texts = [head + lines(table, ",") for head, table in zip(heads, (rows, splits))]
    else: texts = [f"{len(rows)}\nSmiling Male\n" + lines(rows, " "), lines(splits, " ")]
    for name, text in zip(("list_attr_celeba", "list_eval_partition"), texts):
        (folder / f"{name}.{'csv' if form == 'csv' else 'txt'}").write_text(text, encoding="utf-8")
    if form != "zip": return
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names: archive.write(inside / name, f"img_align_celeba/{name}")
    shutil.rmtree(inside)


def sprites(folder):
    "Two discs on transparent ground."
    folder.mkdir()
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    for k in range(2):
        picture = np.zeros((64, 64, 4), np.uint8)
        picture[x**2 + y**2 < 0.9] = (200, 40 + 90 * k, 30, 255)
        Image.fromarray(picture).save(folder / f"disc_{k}.png")


RUN = dict(count=4, steps=8, seed=0, T=400, denoiser="laptop/ddpm", digests={"denoiser": "ab" * 32})
SIDECAR = dict(
    caption="What is seen.", source="Section 1", protocol="as the paper", parameters={"preset": "laptop"}, setting={},
    runs={"plain": RUN, "adam": RUN | {"seed": 1}}, seconds=1.5, libraries={"torch": "2.0"}, revision="unknown",
    machine="x86_64", cpu="a CPU", instructions="AVX2", device="cpu", threads=1, chosen={}, models={},
)
TABLES = {
    "figure_1": "curve,t,mean,std\n" + "".join(f"plain,{t},{0.1 + t / 1000:.3f},0.05\n" for t in range(0, 40, 5)),
    "claims": "claim,effect,low,high,verdict,where\nfirst,0.3,0.1,0.5,holds,Section 1\n"
              "second,-0.1,-0.3,0.1,undecided,Section 2\nthird,-0.4,-0.6,-0.2,does not hold,Section 3\n",
}


def results(folder):
    "Two figures as `reproduce` leaves them."
    folder.mkdir(parents=True)
    for figure, table in TABLES.items():
        sidecar = SIDECAR | {"figure": figure}
        (folder / f"{figure}.csv").write_text(table, encoding="utf-8")
        (folder / f"{figure}.json").write_text(json.dumps(sidecar, indent=1) + "\n", encoding="utf-8")
        Image.fromarray(ball(2, 0, 300)).save(folder / f"{figure}.png")


def reference(folder):
    "The numbers that these results are held against."
    folder.mkdir()
    entry = dict(setting=[["preset", "laptop"]], models={"laptop/ddpm": "ab" * 32}, machine="a CPU, AVX2, torch 2.0")
    known = dict(preset="laptop", figures=dict.fromkeys(TABLES, entry))
    (folder / "reference.json").write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    for figure, table in TABLES.items():
        (folder / f"{figure}.csv").write_text(table.replace("0.105", "0.125"), encoding="utf-8")


def checkout(folder):
    "What `reproduce` needs of a checkout: the notebooks of the figures, in a place of their own."
    shutil.copytree(ROOT / "nbs" / "figures", folder / "nbs" / "figures", ignore=lambda _, names: {"data", "results"})
    shutil.copy(ROOT / "settings.ini", folder)


def linked(source, to):
    "A copy of a file; a large one is the same file under another name, which nobody writes into."
    if os.path.getsize(source) < LARGE: return shutil.copy2(source, to)
    os.link(source, to)
    return to


def copied(world, parts, stage):
    "An empty folder `stage` with some parts of the world."
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    for part in parts:
        if (world / part).is_dir():
            shutil.copytree(world / part, stage / part, symlinks=True, copy_function=linked, dirs_exist_ok=True)
        else: linked(world / part, stage / part)


def made(warm, world):
    "Make the whole world in the folder `world`; a step that a version lacks is left out."
    world.mkdir(parents=True)
    pictures(world / "pics")
    for form, name in (("txt", "celeba"), ("csv", "celeba_csv"), ("zip", "celeba_zip")): celeba(world / name, form)
    sprites(world / "sprites")
    results(world / "results")
    reference(world / "reference")
    checkout(world / "checkout")
    (world / "own.py").write_text(OWN, encoding="utf-8")
    for args in (
        ("train", "ddpm", "--preset", "smoke", *FOLDER, "--out", "d"),
        (*TRAIN, *FOLDER, "--out", "c"),
        (*TRAIN, *FOLDER, "--out", "run"),
        ("export", "d/ddpm.safetensors", "--out", "pipe"),
    ):
        done = warm(*args, cwd=world, GRADCHECK_CACHE=str(world / "cache"))
        if done.code: raise RuntimeError(f"the healthy world cannot be made: {args}: {done.said[-1000:]}")
    for file in ("nonrobust.json", "nonrobust.safetensors"): (world / "run" / file).unlink()
    return world
