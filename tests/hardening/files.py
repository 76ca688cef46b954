"""All cases of damaged files in one table: `python tests/hardening/files.py [KIND ...]`, with PYTHONPATH before another
version's folder for that version. The table and the failing cases go to $HARDENING_TABLES, or a temporary folder."""
import sys
import tempfile
from pathlib import Path

from kinds import KINDS
from test_damaged_files import tried
from verdicts import Tally, target, written
from warm import Warm
from worlds import ROOT, made


def main(names):
    "Try the kinds (all by default), one after the other."
    folder, tally, absent, warm = Path(tempfile.mkdtemp(prefix="hardening-")), Tally(), [], Warm()
    world = made(warm, folder / "world")
    for name in names or KINDS:
        if not tried(warm, world, name, KINDS[name], folder / "stage" / name.replace(" ", "_"), tally):
            absent.append(name)
        written(tally, target(folder) / "files.csv", quiet=True)               # so far
    warm.close()
    print(f"code: {ROOT}", *(f"{name}: this version cannot do what is healthy" for name in absent), sep="\n")
    written(tally, target(folder) / "files.csv")


if __name__ == "__main__": main(sys.argv[1:])
