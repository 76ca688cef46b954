"""The house: six folders on one foundation. Imports run from the roof down to the ground, never back, and never in a
circle."""

import ast
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from gradcheck.functions import LIBRARIES

ROOT = Path(__file__).parent.parent
FLOORS = (
    ("base", "core", "kinds", "pictures", "functions", "together", "contents", "streams"),
    ("data", "models"),
    ("guidance",),
    ("runs",),
    ("paper",),
    ("app",),
    ("options", "diagnosing", "measures", "commands", "cli", "all"),
)
NOTEBOOKS = {}                                                             # module, as in "data.images" -> its notebook
for notebook in sorted((ROOT / "nbs").rglob("*.ipynb")):
    head, default_exp, rest = notebook.read_text(encoding="utf-8").partition("#| default_exp ")
    if default_exp: NOTEBOOKS[rest.partition('"')[0].removesuffix("\\n")] = notebook.relative_to(ROOT / "nbs")


def floor(module):
    return next(k for k, rooms in enumerate(FLOORS) if module.partition(".")[0] in rooms)


def imports_of(path):
    """The modules of this package that a module imports, also inside functions; `from ..core import x` in
    data/images.py is "core"."""
    package = path.relative_to(ROOT / "gradcheck").parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            here = package[:len(package) - node.level + 1]
            yield ".".join([*here, node.module or ""]).strip(".")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gradcheck."):
            yield node.module.removeprefix("gradcheck.")


def libraries_of(path):
    "The libraries that a module imports, also inside functions; neither Python's own nor this package."
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level: names = [node.module]
        yield from {name.partition(".")[0] for name in names} - {*sys.stdlib_module_names, "gradcheck"}


def module_of(path):
    return ".".join(path.relative_to(ROOT / "gradcheck").with_suffix("").parts)


PATHS = [p for p in sorted((ROOT / "gradcheck").rglob("*.py")) if not p.stem.startswith("_")]
IMPORTS = {module_of(p): sorted(set(imports_of(p))) for p in PATHS}


def test_each_module_has_a_notebook_and_each_room_a_folder():
    assert set(NOTEBOOKS) == set(IMPORTS)
    for module, path in NOTEBOOKS.items():
        room, _, name = module.rpartition(".")
        assert path.stem[3:] == name, path
        assert path.parent.name[2:] == room or (not room and path.parent == Path(".")), path


def test_a_number_is_a_notebooks_own():
    numbers = [str(path)[:len(str(path.parent)) + 3] for path in NOTEBOOKS.values()]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("module", IMPORTS)
def test_nothing_is_imported_upward(module):
    for other in IMPORTS[module]:
        assert other in IMPORTS, f"{module} imports {other}, which is no module"
        assert floor(other) <= floor(module), f"{module} imports {other} from a floor above"
        same_room = other.rpartition(".")[0] == module.rpartition(".")[0]
        assert floor(other) < floor(module) or same_room, f"{module} imports {other} of the room beside it"
        if same_room:
            assert str(NOTEBOOKS[other]) < str(NOTEBOOKS[module]), f"{module} imports {other}, which comes after it"


def test_stabilizers_know_no_data_and_the_heart_no_runs():
    @cache
    def below(module): return {module}.union(*(below(m) for m in IMPORTS[module]))
    assert not any(m.startswith("data.") for m in below("guidance.stabilizers"))
    assert not any(m.startswith(("data.", "runs.", "paper.")) for m in below("guidance.sampling"))


def test_no_circle_and_no_tall_tower():
    @cache
    # a circle would never end: RecursionError
    def height(module): return 1 + max((height(m) for m in IMPORTS[module]), default=0)
    assert max(height(m) for m in IMPORTS) <= 12, {m: height(m) for m in IMPORTS}


def test_a_file_that_hides_any_library_is_noticed():
    imported = {name for path in PATHS for name in libraries_of(path)}
    assert {"torch", "PIL", "psutil", "zmq"} <= imported <= set(LIBRARIES)


def test_no_name_of_all_hides_another():
    "A name that two modules define would be, for who imports all of them, that of the later one."
    homes = {}
    for node in ast.parse((ROOT / "gradcheck/all.py").read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ImportFrom): continue
        module = import_module(f"gradcheck.{node.module}")
        names = module.__all__ if node.names[0].name == "*" else [alias.name for alias in node.names]
        for name in names: homes.setdefault(name, {})[id(getattr(module, name))] = node.module
    assert len(homes) > 400
    assert {name: list(of.values()) for name, of in homes.items() if len(of) > 1} == {}
