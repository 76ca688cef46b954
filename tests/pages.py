"""The pages that people read: their texts, their links, and the commands in them."""
import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
NBS = ROOT / "nbs"
README = ROOT / "README.md"
GUIDES = sorted((NBS / "guides").glob("*.ipynb"))
NOTEBOOKS = [p for p in sorted(NBS.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]


def cells(path, kind="markdown"):
    "The sources of a notebook's cells of a kind."
    page = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in page["cells"] if cell["cell_type"] == kind]


def text_of(path):
    "What a page says: a Markdown file, or a notebook's Markdown cells."
    return "\n\n".join(cells(path)) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")


def commands(path):
    "Every command in the `sh` blocks of a page, without its comment."
    blocks = re.findall(r"```sh\n(.*?)```", text_of(path), re.S)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]
