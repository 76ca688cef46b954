"""Damage to a file: one small function per kind of it. Each takes a path in a case's own folder and spoils what is
there; files that are shared with other cases by hard links are replaced, never written into."""
import os
import random
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable

FAR, TRUNCATIONS = 10**9, (0, 1, 9, 0.25, 0.5, 0.75, -8, -1)      # fractions of the file, or bytes from an end


@dataclass(frozen=True)
class Case:
    """`spoil(stage)` damages a file in the folder `stage`; if the result differs, is that `legal`: a value that the
    format itself allows? `named` are words that, where they are said, make a difference no silent one."""
    name: str
    spoil: Callable
    legal: bool = False
    named: tuple = ()
    args: tuple = ()                                          # further arguments of the call


def replace(path, data):
    "Put other bytes in a file's place."
    remove(path)
    path.write_bytes(data)


def remove(path):
    "Take away a file, a folder or a link."
    if path.is_dir() and not path.is_symlink(): shutil.rmtree(path)
    else: path.unlink(missing_ok=True)


def truncate(path, at):
    "Cut a file, as a full disk or a broken download does."
    data = path.read_bytes()
    replace(path, data[:int(at * len(data)) if isinstance(at, float) else at])


def zero(path, start, length=64):
    "Zero bytes in the middle, as a crash of the machine leaves them; the file keeps its length."
    data = bytearray(path.read_bytes())
    begin = int(start * len(data))
    end = min(begin + length, len(data))
    data[begin:end] = bytes(end - begin)
    replace(path, bytes(data))


def flip(path, offset, bit):
    "One bit, as bad memory or a bad cable does; `offset` is a fraction of the file, or a byte."
    data = bytearray(path.read_bytes())
    data[int(offset * len(data)) if isinstance(offset, float) else min(offset, len(data) - 1)] ^= 1 << bit
    replace(path, bytes(data))


def append(path, tail):
    "Something behind the end."
    replace(path, path.read_bytes() + tail)


def swap(path, other):
    "Another file under this name."
    replace(path, Path(path.parent, other).read_bytes())


def folder_instead(path):
    "A folder of this name."
    remove(path)
    path.mkdir()


def dangle(path):
    "A link to what is not there."
    remove(path)
    path.symlink_to(path.parent / "gone" / path.name)


def circle(path):
    "A link to itself."
    remove(path)
    path.symlink_to(path.name)


def lock(path):
    "A file that may not be read."
    data = path.read_bytes()                                  # a copy: a shared file keeps its mode
    replace(path, data)
    path.chmod(0)


def recode(path, encoding):
    "The same text in another encoding."
    replace(path, path.read_text(encoding="utf-8").encode(encoding))


def line_ends(path):
    "The same text with the line ends of Windows."
    replace(path, path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))


def spoiled(file, seed, flips=8, legal_flip=False, legal_missing=False, others=(), legal=False):
    """The cases of a file that any file has: cut short, zeroed, a bit flipped, longer, missing, replaced by `others`,
    by a folder or by a link. `legal_flip` says that the format has no checksum, so that a bit may make another value;
    `legal_missing` that it need not be there; `legal` that whatever comes of it is no fault."""
    dice, name = random.Random(f"{file} {seed}"), Path(file).name
    places = [dice.randrange(64) for _ in range(flips // 4)] + [dice.random() for _ in range(flips - flips // 4)]

    def case(what, spoil, allowed=False, **given):
        return Case(f"{file}: {what}", lambda stage: spoil(stage / file, **given), legal or allowed, (name,))

    yield from (case(f"cut at {at}", truncate, at=at) for at in TRUNCATIONS)
    yield from (case(f"zeros at {at}", zero, legal_flip and 0 < at < 1, start=at) for at in (0.0, 0.3, 0.9))
    yield case("all zeros", zero, start=0.0, length=FAR)
    for at in places:
        bit = dice.randrange(8)
        yield case(f"bit {bit} at {at:.5g}", flip, legal_flip, offset=at, bit=bit)
    yield case("a tail of noise", append, legal_flip, tail=dice.randbytes(37))
    yield from (case(f"{Path(other).name} in its place", swap, legal_flip, other=other) for other in others)
    yield case("missing", remove, legal_missing)
    yield case("a folder in its place", folder_instead, legal_missing)
    yield case("a dangling link", dangle, legal_missing)
    yield case("a link to itself", circle, legal_missing)
    if os.geteuid(): yield case("no permission", lock, legal_missing)         # root may read all


def recoded(file):
    "The same text in other encodings, which must be read as it is meant, or refused."
    for encoding in ("utf-16", "utf-8-sig", "utf-32"):
        yield Case(f"{file}: {encoding}", lambda stage, e=encoding: recode(stage / file, e), named=(Path(file).name,))
    yield Case(f"{file}: CRLF", lambda stage: line_ends(stage / file))
    latin = partial(append, tail=b"\xe9\n")
    yield Case(f"{file}: Latin-1 at the end", lambda stage: latin(stage / file), named=(Path(file).name,))
