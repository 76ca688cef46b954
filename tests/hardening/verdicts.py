"""What came of a case, in one word; and the table of all words by kind."""
import csv
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from warm import GIB

MOST_MEMORY = 2 * GIB
GOOD = ("refused in a sentence", "same result", "legal other value", "at work")
BAD = ("silent", "unforeseen", "hang", "memory")
COLUMNS = ("kind", "cases", *GOOD, *BAD)
UNFORESEEN = re.compile(r"Traceback \(most recent call last\)|not foreseen")


def is_sentence(done):
    "Exit code 2, and exactly one line that begins with the program's name."
    return done.code == 2 and len(re.findall(r"^gradcheck: ", done.err, re.M)) == 1


def is_unforeseen(done, codes=(0, 2)):
    "A traceback, the last line of defence, a signal, an exit code that means nothing here, or a refusal without words."
    wordless = done.code == 2 and not is_sentence(done)
    return bool(UNFORESEEN.search(done.said)) or done.code not in codes or wordless


def verdict(done, result, usual, legal, named=(), codes=(0, 2)):
    """One of `GOOD` or `BAD`. `result` is what the damaged call made, `usual` what the undamaged one does; a difference
    is silent unless it is `legal`, a value that the format allows, or one of the words `named` stands in what was
    said."""
    if done.cut: return "hang"
    if done.peak > MOST_MEMORY: return "memory"
    if is_unforeseen(done, codes): return "unforeseen"
    if done.code == 2: return "refused in a sentence"
    if result == usual: return "same result"
    return "legal other value" if legal or any(word in done.said for word in named) else "silent"


@dataclass
class Tally:
    "How many cases of which verdict, by kind, and a line on each bad one."
    counts: dict = field(default_factory=dict)
    failures: list = field(default_factory=list)

    def add(self, kind, case, word, done):
        self.counts.setdefault(kind, Counter())[word] += 1
        if word in BAD: self.failures.append((kind, word, case, last_words(done)))

    def bad(self, kind): return [f"{word}: {case} ({told})" for k, word, case, told in self.failures if k == kind]

    def rows(self):
        "A dict per kind, with all of `COLUMNS`."
        for kind, words in self.counts.items():
            yield dict(kind=kind, cases=sum(words.values())) | {w: words[w] for w in (*GOOD, *BAD)}


def last_words(done):
    "The last line that was said, and the code."
    lines = [line for line in done.said.splitlines() if line.strip()] or ["nothing said"]
    return f"exit {done.code}, {done.cpu:.0f} s, {done.peak / GIB:.1f} GiB: {lines[-1][:300]}"


def printed(rows):
    "The table for a terminal, kinds below each other, their sum last."
    rows = list(rows)
    total = {c: sum(row[c] for row in rows) for c in COLUMNS[1:]}
    short = {"refused in a sentence": "refused", "legal other value": "legal other", "same result": "same"}
    heads = [short.get(c, c) for c in COLUMNS]
    lines = [[str(row[c]) for c in COLUMNS] for row in [*rows, {"kind": "all"} | total]]
    return "\n".join(f"{line[0]:24}" + "".join(f"{word:>13}" for word in line[1:]) for line in [heads, *lines])


def gathered(folder):
    "The rows of all tables (CSV) in a folder."
    for path in sorted(Path(folder).glob("*.csv")):
        with open(path, encoding="utf-8", newline="") as f:
            for row in csv.DictReader(f): yield {c: row[c] if c == "kind" else int(row[c]) for c in COLUMNS}


def target(folder):
    "Where tables go: the folder $HARDENING_TABLES, or `folder`."
    return Path(os.environ.get("HARDENING_TABLES") or folder)


def written(tally, path, quiet=False):
    "Write a tally as CSV, and its table and failures as text beside it; print both."
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as f:
        table = csv.DictWriter(f, COLUMNS)
        table.writeheader()
        table.writerows(tally.rows())
    lines = [f"{kind} | {word} | {case} | {told}" for kind, word, case, told in sorted(tally.failures)]
    text = "\n".join([printed(tally.rows()), "", *lines, ""])
    path.with_suffix(".txt").write_text(text, encoding="utf-8", errors="replace")
    if not quiet: print(text.encode("utf-8", "replace").decode())


if __name__ == "__main__": print(printed(gathered(sys.argv[1])))
