"""The kinds of files that are read: of each, which command reads it, what its result is, and how it is damaged."""
import hashlib
import json
import os
from dataclasses import dataclass
from typing import Callable

import stale
from codes import codes
from damage import Case, recoded, remove, replace, spoiled
from documents import documents, header_of, with_header
from layouts import layouts
from odd import forms
from parameters import parameters
from worlds import FOLDER, MODELS, SAMPLE, TRAIN, ball

SAMPLED = ("out/grid.png", "out/cosine.csv")
TRAINED = ("out/nonrobust.safetensors",)


@dataclass(frozen=True)
class Kind:
    """`args` is the command, `parts` what of the world it needs, `results` the files that it makes (what it prints is
    compared too, if `printed`), `cases(world)` the damages. `again`: they meet what a first, healthy call left (its
    cache), and `cases` are made from that; `fresh`: the result must be that without the cache. `codes` are the exit
    codes that mean something."""
    args: tuple
    parts: tuple
    cases: Callable
    results: tuple = ()
    again: bool = False
    codes: tuple = (0, 2)
    printed: bool = True
    fresh: bool = False


def result_of(kind, done, stage):
    "A digest of what a call made and said."
    digest = hashlib.sha256(done.out.encode() if kind.printed else b"")
    for name in kind.results:
        path = stage / name
        digest.update(path.read_bytes() if path.is_file() else b"missing")
    return digest.hexdigest()


def header_writer(old, text): return with_header(old, text)


def signed_nan(stage, card="d/ddpm.json"):
    "Weights that are NaN throughout, the digest on their card the right one."
    path = stage / card
    weights, known = path.with_suffix(".safetensors"), json.loads(path.read_text(encoding="utf-8"))
    data = weights.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    data = data[:begin] + b"\xff\x7f" * ((len(data) - begin) // 2)
    replace(weights, data)
    replace(path, json.dumps(known | {"sha256": hashlib.sha256(data).hexdigest()}).encode())


def cards(world):
    yield from spoiled("d/ddpm.json", 0, others=("start.json", "ddpm.safetensors"))
    yield from spoiled("c/nonrobust.json", 0)
    yield from recoded("d/ddpm.json")
    yield from documents("d/ddpm.json", world, sealed=True, each=2)
    yield from documents("c/nonrobust.json", world, sealed=True, each=1)


def weights(world):
    yield from spoiled("d/ddpm.safetensors", 1, flips=14, others=("start.safetensors", "checkpoint.safetensors"))
    yield from spoiled("c/nonrobust.safetensors", 1, flips=10)
    yield Case("d/ddpm.safetensors: NaN throughout, signed", signed_nan)
    yield Case("c/nonrobust.safetensors: NaN throughout, signed", lambda stage: signed_nan(stage, "c/nonrobust.json"))


def starts(world):
    yield from spoiled("d/start.json", 2, others=("ddpm.json",))
    yield from spoiled("d/start.safetensors", 2, others=("ddpm.safetensors",))
    yield from documents("d/start.json", world, sealed=True, each=1)


def checkpoints(world):
    file = "run/checkpoint.safetensors"
    yield from spoiled(file, 3, flips=16, others=("../c/nonrobust.safetensors", "../d/checkpoint.safetensors"))
    yield from documents(file, world, sealed=True, each=1, reads=header_of, writes=header_writer)
    yield from (c for c in spoiled("run/log.jsonl", 3, flips=0, legal=True) if "cut" not in c.name)


def pipelines(world):
    config, schedule = "pipe/unet/config.json", "pipe/scheduler/scheduler_config.json"
    yield from spoiled("pipe/unet/diffusion_pytorch_model.safetensors", 4, flips=6, legal_flip=True)
    for file in (config, schedule):
        yield from spoiled(file, 4, flips=6, legal_flip=True)
        yield from documents(file, world, sealed=False, each=1)
        yield from recoded(file)
    yield from spoiled("pipe/gradcheck.json", 4, flips=4, legal_flip=True, legal_missing=True)
    yield from documents("pipe/gradcheck.json", world, sealed=False, each=4)
    yield from documents("pipe/model_index.json", world, sealed=False, each=1)
    yield from spoiled("pipe/start.safetensors", 4, flips=2)
    yield from layouts()


def pictures(world):
    for file in ("blue/ball_1.png", "green/grey.png"): yield from spoiled(f"pics/{file}", 5, 10, legal_missing=True)
    for suffix in ("jpg", "gif", "tif", "bmp", "webp"):
        file = f"pics/blue/odd_{suffix}.{suffix}"
        yield from (c for c in spoiled(file, 5, 4, legal_flip=True, legal_missing=True) if "link" not in c.name)
    yield from forms("pics/blue/ball_1.png", ball(1, 2))
    yield from forms("pics/green/grey.png", ball(3, 2)[..., 2], grey=True)


def zips(world):
    yield from spoiled("celeba_zip/img_align_celeba.zip", 6, flips=24, others=("list_attr_celeba.txt",))


def lists(world):
    for part, suffix in (("celeba", "txt"), ("celeba_csv", "csv")):
        for name in ("list_attr_celeba", "list_eval_partition"):
            file = f"{part}/{name}.{suffix}"
            yield from spoiled(file, 7, flips=6, legal_flip=True)
            yield from recoded(file)


def of_part(part): return lambda world: [case for case in lists(world) if case.name.startswith(f"{part}/")]


def found(stage, pattern): return [str(path.relative_to(stage)) for path in sorted(stage.glob(pattern))][:1]


def prepared(stage):
    for block in found(stage, "cache/pictures-*/*.npy"): yield from spoiled(block, 8, flips=12, legal_missing=True)
    for note in found(stage, "cache/pictures-*/*.json"):                   # which older versions do not write
        yield from spoiled(note, 8, flips=4, legal_missing=True)
        yield from documents(note, stage, sealed=True, each=2)


def chunks(stage):
    for file in found(stage, "cache/**/*.safetensors"):
        yield from spoiled(file, 9, flips=14, legal_missing=True)
        yield from documents(file, stage, sealed=True, each=1, reads=header_of, writes=header_writer)


def derivations(stage):
    "What figures keep of what they derive from runs, here with a healthy first call's; it is computed again."
    for file in found(stage, "cache/derived/*.arrays"): yield from spoiled(file, 13, flips=8, legal_missing=True)


def compared(folder, others):
    def cases(world):
        for file in sorted((world / folder).glob("*.json")):
            yield from spoiled(f"{folder}/{file.name}", 10, 6, True, others=others)
            yield from documents(f"{folder}/{file.name}", world, sealed=False, each=1)
        for file in sorted((world / folder).glob("*.csv")):
            yield from spoiled(f"{folder}/{file.name}", 10, 4, True)
            yield from recoded(f"{folder}/{file.name}")
    return cases


def sprites(world):
    yield from spoiled("sprites/disc_0.png", 11, flips=4, legal_missing=True)


def page(world):
    "Beside a figure that is made anew lie others that are damaged; nothing that was made may be lost."
    for file in ("figure_1.json", "figure_1.csv", "figure_1.png", "claims.csv"):
        every = spoiled(f"results/smoke/{file}", 12, 0, legal=True)
        yield from (case for case in every if case.name.endswith(("cut at 0", "cut at 0.5", "all zeros")))


def names(world):
    "Models, pictures and folders under names that people, other systems and old disks give."
    def renamed(old, new): return lambda stage: os.rename(stage / old, stage / os.fsdecode(new))
    odd = (b"caf\xc3\xa9", b"caf\xe9", b"a b", b"$HOME", b"<b>&amp;", b"\"'`", b"-v", b"%s{0}", b"n\nl", b"x" * 250,
           "\U0001f600".encode(), b"CON", b"a:b", b"\\")
    for new in odd:
        name, other = os.fsdecode(new), f"{os.fsdecode(new)}/ddpm.safetensors"
        yield Case(f"denoiser in {new[:20]!r}", renamed("d", new), args=("--denoiser", other))
        yield Case(f"out {new[:20]!r}", lambda stage: None, True, args=("--out", name))


def picture_names(world):
    "Pictures and classes under odd names; which picture is held out hangs on its name, so another result is legal."
    odd = (b"\xe9.png", b"\xe9\xff.jpg", b"-.png", b"a\nb.png", b"$(x).png", b"y" * 245 + b".png", b"\xe2\x98\x83.PNG")
    for new in odd:
        def rename(stage, new=new): os.rename(stage / "pics/blue/ball_1.png", stage / "pics/blue" / os.fsdecode(new))
        yield Case(f"picture {new[:20]!r}", rename, True)
    for new in (b"bl\xe9u", b".blue", b"blue\n", b"<i>"):
        def rename(stage, new=new): os.rename(stage / "pics/blue", stage / "pics" / os.fsdecode(new))
        yield Case(f"class {new!r}", rename, True)
    yield Case("an empty class", lambda stage: (stage / "pics" / "red").mkdir(), True)
    yield Case("a file among the classes", lambda stage: (stage / "pics" / "Thumbs.db").write_bytes(b"\0"))
    yield Case("hidden files", lambda stage: (stage / "pics" / "blue" / "._ball_1.png").write_bytes(b"\0\5\x16\7"))
    yield Case("no class", lambda stage: [remove(p) for p in list((stage / "pics").iterdir())], True)


SMALL = (*SAMPLE, *MODELS)
PIPE = (*SAMPLE, "--denoiser", "pipe", "--classifier", "c/nonrobust.safetensors")
OWN = (*SAMPLE, *MODELS[:2], "--classifier", "own.py:make", "--stabilizer", "own.py:Half")
LEARN = (*TRAIN, *FOLDER, "--out", "out")
RESUME = (*TRAIN, *FOLDER, "--out", "run", "--resume")
FACES = (*TRAIN, "--dataset", "celeba", "--out", "out", "--root")
BALLS = ("train", "ddpm", "--preset", "smoke", "--sprites", "sprites", "--out", "out")
COMPARE = ("compare", "results", "--reference", "reference")
REPRODUCE = ("reproduce", "--preset", "smoke")
KINDS = {
    "cards": Kind(SMALL, ("d", "c"), cards, SAMPLED),
    "weights": Kind(SMALL, ("d", "c"), weights, SAMPLED),
    "starts": Kind(SMALL, ("d", "c"), starts, SAMPLED),
    "checkpoints": Kind(RESUME, ("pics", "run", "c", "d"), checkpoints, ("run/nonrobust.safetensors",)),
    "pipelines": Kind(PIPE, ("pipe", "c"), pipelines, SAMPLED),
    "own code": Kind(OWN, ("d", "own.py"), lambda world: codes(), SAMPLED, printed=False),
    "pictures": Kind(LEARN, ("pics",), pictures, TRAINED),
    "picture names": Kind(LEARN, ("pics",), picture_names, TRAINED),
    "zips": Kind((*FACES, "celeba_zip"), ("celeba_zip",), zips, TRAINED),
    "lists, text": Kind((*FACES, "celeba"), ("celeba",), of_part("celeba"), TRAINED),
    "lists, CSV": Kind((*FACES, "celeba_csv"), ("celeba_csv",), of_part("celeba_csv"), TRAINED),
    "prepared pictures": Kind(LEARN, ("pics",), prepared, TRAINED, again=True),
    "cache": Kind(SMALL, ("d", "c"), chunks, SAMPLED, again=True),
    "derived": Kind(
        (*REPRODUCE, "figure_1", "--again"), ("checkout",), derivations, ("results/smoke/figure_1.csv",), True,
        printed=False
    ),
    "results": Kind(COMPARE, ("results", "reference"), compared("results", ("figure_1.csv",)), codes=(0, 1, 2)),
    "reference": Kind(COMPARE, ("results", "reference"), compared("reference", ("claims.csv",)), codes=(0, 1, 2)),
    "sprites": Kind(BALLS, ("sprites",), sprites, ("out/ddpm.safetensors",)),
    "page": Kind((*REPRODUCE, "figure_4"), ("checkout",), page, ("results/smoke/figure_4.csv",), printed=False),
    "parameters": Kind((*REPRODUCE, "figure_1", "--plan"), ("checkout",), parameters, printed=False),
    "own code, changed": Kind(OWN, ("d", "own.py"), stale.codes, SAMPLED, again=True, printed=False, fresh=True),
    "pipelines, changed": Kind(PIPE, ("pipe", "c"), stale.pipelines, SAMPLED, again=True, fresh=True),
    "pictures, changed": Kind(LEARN, ("pics",), stale.pictures, TRAINED, again=True, fresh=True),
    "names": Kind(SMALL, ("d", "c"), names, SAMPLED),
}
