"""What the front page shows of the rest: small pictures of the figures, the list of notebooks, the claims in short.

    python nbs/front.py thumbnails [RESULTS]     # small pictures, from RESULTS/*.png (default: results/laptop)
    python nbs/front.py pages                    # what stands between marks in README.md, nbs/index.ipynb, nbs/guides
    python nbs/front.py shrink NOTEBOOK ...      # pictures in few colours, until the notebook has at most 400 KB

Texts are written between two marks, `<!-- NAME -->` and `<!-- /NAME -->`; tests/test_readme.py compares them with what
is written here."""
import json
import re
import sys
from pathlib import Path

NBS = Path(__file__).parent
ROOT = NBS.parent
REFERENCE = ROOT / "data" / "reference"
FIGURES = [*(f"figure_{k}" for k in range(1, 9)), "table_1", "study", "adam_apart", "frontiers",
           "similarity_and_success", "claims", "table_1_appendix"]
FOLDERS = {   # folder -> what a reader finds there
    ".": "the ground and the roof",
    "1_data": "pictures to learn from and to be measured against",
    "2_models": "the diffusion model, the denoiser, the classifiers; models of yours",
    "3_guidance": "the heart: eq. (1), stabilizers, the sampler that yields its steps",
    "4_runs": "a setting, its run, its cache, its scores",
    "5_paper": "what the paper shows and says, as data; the command that makes it",
    "6_app": "to look at: the explorer, the diagnosis, films, what guidance costs",
    "figures": "the paper's figures and table, and ours beside them",
    "tutorials": "questions with their answers",
    "guides": "how to use it: commands, models of yours, a GPU, switches",
}


def thumbnail(path, out, width=320, height=180, colours=64):
    "A picture in the middle of `width` x `height` white pixels, in so few colours that it takes about 10 KB."
    from PIL import Image

    from gradcheck.pictures import few_colours

    image = Image.open(path).convert("RGBA")
    ground = Image.new("RGBA", image.size, "white")
    small = Image.alpha_composite(ground, image).convert("RGB")
    if small.height > small.width:                                          # a long table: its upper part
        small = small.crop((0, 0, small.width, round(small.width * height / width)))
    small.thumbnail((width, height), Image.LANCZOS)
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(small, ((width - small.width) // 2, (height - small.height) // 2))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(few_colours(canvas, colours))


def make_thumbnails(results):
    "The small pictures of the front page, and the README's figure, from a folder of results."
    from PIL import Image

    from gradcheck.pictures import few_colours

    for name in FIGURES:
        path = Path(results) / f"{name}.png"
        if path.is_file():
            thumbnail(path, NBS / "images" / "thumbs" / f"{name}.png")
        else:
            print(f"{name}: no {path}, the picture of before stays")
    if (Path(results) / "figure_2.png").is_file():
        figure = Image.open(Path(results) / "figure_2.png").convert("RGB")
        figure.thumbnail((1200, 1200), Image.LANCZOS)
        (NBS / "images" / "figure_2.png").write_bytes(few_colours(figure, 128))


def shrink(path):
    "Re-encode the pictures of a notebook's outputs in as many colours as it may be large."
    from gradcheck.paper.plots import notebook_text

    path.write_text(notebook_text(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")


def first_cell(path):
    "Title and sentence (without the links in it) of a notebook's first cell."
    cell = next(c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "markdown")
    lines = "".join(cell["source"]).splitlines()
    title = next(line[2:] for line in lines if line.startswith("# "))
    sentence = next((line[2:] for line in lines if line.startswith("> ")), "")
    return title, re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", sentence)


def notebooks(folder):
    return [p for p in sorted((NBS / folder).glob("*.ipynb")) if p.name != "index.ipynb"]


def list_of_notebooks():
    parts = []
    for folder, content in FOLDERS.items():
        name = "nbs" if folder == "." else folder
        parts.append(f"**{name}**: {content}\n")
        for path in notebooks(folder):
            title, sentence = first_cell(path)
            parts.append(f"* [{title}]({path.relative_to(NBS).as_posix()}). {sentence}")
        parts.append("")
    return "\n".join(parts).rstrip()


def gallery():
    "All figures as small pictures that link to their notebooks, three in a row."
    cells = []
    for name in FIGURES:
        title = first_cell(NBS / "figures" / f"{name}.ipynb")[0]
        link = f"figures/{name}.ipynb"
        cells.append(f"[![{title}](images/thumbs/{name}.png)]({link})<br>[{title}]({link})")
    cells += [""] * (-len(cells) % 3)
    rows = ["| | | |", "|:---:|:---:|:---:|"]
    for k in range(0, len(cells), 3):
        rows.append("| " + " | ".join(cells[k:k + 3]) + " |")
    return "\n".join(rows)


def claims_in_short():
    "The headline claims of the studies, as a table; None where there is no study."
    import pandas as pd

    from gradcheck.paper.page import markdown, summary
    from gradcheck.paper.quirks import STUDIED

    there = [path for name in STUDIED.values() if (path := REFERENCE / name / "claims.csv").is_file()]
    if not there:
        return None
    return markdown(summary(pd.concat(map(pd.read_csv, there))))


CLASSIFIERS = [("laptop", name) for name in ("robust", "nonrobust", "judge")]
CLASSIFIERS += [("coupled", name) for name in ("robust", "nonrobust")]


def accuracies():
    "Held-out accuracy by noise level, from the cards of the bundled classifiers."
    lines = {}
    for folder, name in CLASSIFIERS:
        card = ROOT / "gradcheck" / "weights" / folder / f"{name}.json"
        said = name if folder == "laptop" else f"{name}, {folder} draws"
        lines[said] = json.loads(card.read_text(encoding="utf-8"))["accuracy_by_t"]
    times = [t for t in lines["robust"] if t != "0"]
    rows = ["| t | " + " | ".join(t.replace("-1", "clean") for t in times) + " |", "|---" * (len(times) + 1) + "|"]
    for name, by_t in lines.items():
        rows.append(f"| {name} | " + " | ".join(f"{by_t[t]:.3f}" for t in times) + " |")
    return "\n".join(rows)


PARTS = {"notebooks": list_of_notebooks, "figures": gallery, "claims": claims_in_short, "accuracies": accuracies}


def filled(text):
    "The text with what belongs between its marks."
    for name, make in PARTS.items():
        content = make() if f"<!-- {name} -->" in text else None
        if content is not None:
            between = f"<!-- {name} -->\n\n{content}\n\n<!-- /{name} -->"
            text = re.sub(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _: between, text, flags=re.S)
    return text


def pages():
    "Path and new text of each page that has marks."
    readme = ROOT / "README.md"
    yield readme, filled(readme.read_text(encoding="utf-8"))
    for path in [NBS / "index.ipynb", *sorted((NBS / "guides").glob("*.ipynb"))]:
        page = json.loads(path.read_text(encoding="utf-8"))
        for cell in page["cells"]:
            cell["source"] = filled("".join(cell["source"])).splitlines(keepends=True)
        yield path, json.dumps(page, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def write_pages():
    for path, text in pages():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    what, *rest = sys.argv[1:] or ["pages"]
    if what == "thumbnails":
        make_thumbnails(*rest or [ROOT / "results" / "laptop"])
    elif what == "pages":
        write_pages()
    elif what == "shrink":
        for path in rest:
            shrink(Path(path))
    else:
        sys.exit(f"'{what}' is not known here; write thumbnails, pages or shrink.")
