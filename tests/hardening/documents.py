"""Damage to JSON: every field of a document in turn gets values that hypothesis draws, and those that hurt before."""
import copy
import json
import math
import random
from functools import cache
from pathlib import Path

from damage import Case, replace
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

GONE, DEEP = object(), object()                              # the field left out; brackets 100,000 deep
HARD = ([], None, 5, -1, 0, "", "5", "é\u2603", True, GONE, DEEP, {}, [[]], 1e400, math.nan, 10**400, 2.5, 10**9,
        "x" * 5000, {"a": None}, [None], "\ud800", 1e-320, False, "../../etc/passwd", [1, "2", {}])
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40)
values = st.recursive(leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=9), v, max_size=3))


@cache
def drawn(count=80):
    "The same values of JSON every time, as hypothesis draws them."
    found = []

    @settings(max_examples=count, derandomize=True, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck), deadline=None)
    @given(values)
    def gather(value): found.append(value)

    gather()
    return found


def fields(document, depth=4):
    "The ways to all fields of a document: tuples of keys and indices; of a list, the first and the last."
    if not depth: return
    keys = document if isinstance(document, dict) else {0, len(document) - 1} if isinstance(document, list) else ()
    for key in keys if document else ():
        yield (key,)
        yield from ((key, *way) for way in fields(document[key], depth - 1))


def changed(document, way, value):
    "The text of a document with another value at the end of the `way` (a whole new one for ())."
    if not way: return text_of(value)
    document = copy.deepcopy(document)
    inner = document
    for key in way[:-1]: inner = inner[key]
    if value is GONE: del inner[way[-1]]
    else: inner[way[-1]] = "\0deep\0" if value is DEEP else value
    return text_of(document)


def text_of(document):
    "JSON as Python writes it, NaN and all; the deep brackets are put in by hand."
    if document is GONE: return ""
    if document is DEEP: document = "\0deep\0"
    return json.dumps(document).replace(json.dumps("\0deep\0"), "[" * 100_000 + "]" * 100_000)


def same_type(old, new):
    "Could the value stand there by its type? Numbers must be finite."
    if isinstance(old, bool) or isinstance(new, bool): return isinstance(old, bool) and isinstance(new, bool)
    if isinstance(old, (int, float)): return isinstance(new, (int, float)) and -1e300 < new < 1e300
    return old is not None and type(old) is type(new)


def at(document, way):
    for key in way: document = document[key]
    return document


def ways_and_values(document, seed, each):
    "`each` values for every field of a document, hard and drawn ones in turns; and some hard ones in its place."
    dice = random.Random(seed)
    hard, more, turn = dice.sample(HARD, len(HARD)), drawn(), 0
    for value in {id(v): v for v in (DEEP, *hard[:7])}.values(): yield (), value
    for way in fields(document):
        for k in range(each):
            yield way, hard[turn % len(hard)] if k % 2 == 0 else more[turn % len(more)]
            turn += 1


def told(way, value):
    "A name for a case: where, and what."
    word = {id(GONE): "left out", id(DEEP): "100,000 deep"}.get(id(value)) or ascii(value)[:40]
    return f"{'.'.join(map(str, way)) or 'the whole'} = {word}"


NOTES = {"cpu", "instructions", "device", "libraries", "machine", "threads"}  # told as they stand, read by nobody


def documents(file, world, sealed, each=1, reads=json.loads, writes=lambda old, text: text.encode("utf-8", "replace")):
    """Cases of the JSON in a file. `sealed`: a digest stands over it, so that no other value is legal; else one of the
    same type is, and so is a field left out or null, for which a format has defaults, and any of `NOTES`. `reads` takes
    the document from the file's bytes, `writes` puts a text in its place."""
    document = reads((world / file).read_bytes())
    for way, value in ways_and_values(document, file, each):
        text, absent = changed(document, way, value), value is GONE or value is None
        noted = not NOTES.isdisjoint(map(str, way))
        legal = not sealed and bool(way) and (absent or noted or same_type(at(document, way), value))

        def spoil(stage, text=text):
            path = stage / file
            replace(path, writes(path.read_bytes(), text))

        yield Case(f"{file}: {told(way, value)}", spoil, legal, (Path(file).name,))


def header_of(data):
    "What `save_atomically` wrote into the header of a safetensors file, JSON in JSON."
    return json.loads(json.loads(data[8:8 + int.from_bytes(data[:8], "little")])["__metadata__"]["gradcheck"])


def with_header(data, text):
    "A safetensors file with another text there."
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    header["__metadata__"]["gradcheck"] = text
    new = json.dumps(header).encode()
    return len(new).to_bytes(8, "little") + new + data[8 + size:]
