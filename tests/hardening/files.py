"""All cases of damaged files in one table: `python tests/hardening/files.py [KIND ...]`, with PYTHONPATH before another
version's folder for that version. The table and the failing cases go to $HARDENING_TABLES, or a temporary folder."""
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from documents import drawn
from kinds import KINDS
from test_damaged_files import tried
from verdicts import Tally, target, written
from warm import Warm
from worlds import ROOT, made

JOBS = len(os.sched_getaffinity(0))                        # kinds that are tried at once, each by a server of its own


def main(names):
    "Try the kinds (all by default), and write the table after each."
    folder, tally, servers = Path(tempfile.mkdtemp(prefix="hardening-")), Tally(), SimpleQueue()
    table = target(folder) / "files.csv"
    for _ in range(JOBS): servers.put(Warm())
    world = made(first := servers.get(), folder / "world")
    servers.put(first)
    drawn()                                                # once, before there are threads

    def work(name):
        warm = servers.get()
        known = tried(warm, world, name, KINDS[name], folder / "stage" / name.replace(" ", "_"), tally)
        servers.put(warm)
        written(tally, table, quiet=True)
        return [] if known else [f"{name}: this version cannot do what is healthy"]

    with ThreadPoolExecutor(JOBS) as pool: absent = [line for lines in pool.map(work, names or KINDS) for line in lines]
    for _ in range(JOBS): servers.get().close()
    print(f"code: {ROOT}", *absent, sep="\n")
    written(tally, table)


if __name__ == "__main__": main(sys.argv[1:])
