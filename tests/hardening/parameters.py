"""Values for the parameters of the notebooks, as `reproduce -p NAME=VALUE` takes them."""
import ast
import json
import random

from damage import Case
from documents import drawn

HARD = ("-1", "0", "1e9", "1000000000", "1e400", "NaN", "null", "[]", "{}", "true", '"5"', "é", "", "=", "2.5", "-0.0",
        "[" * 100_000, "9" * 5000, "300-100", "10-9", "\ud800", "/", "__import__('os')", "x" * 5000)


def names_in(notebook):
    "The names that the notebook's parameters cell sets."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    cell = next(c for c in cells if "parameters" in c["metadata"].get("tags", ()))
    return [node.targets[0].id for node in ast.parse("".join(cell["source"])).body if isinstance(node, ast.Assign)]


def parameters(world, figure="figure_1", each=5):
    "Each parameter of a figure with some of the hard values and some drawn ones."
    dice = random.Random(figure)
    for name in names_in(world / "checkout" / "nbs" / "figures" / f"{figure}.ipynb"):
        for value in [*dice.sample(HARD, each), *(json.dumps(v) for v in dice.sample(drawn(), 2))]:
            yield Case(f"-p {name}={ascii(value)[:30]}", lambda stage: None, True, args=("-p", f"{name}={value}"))
