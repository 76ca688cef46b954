"""Writes durations.json, what each test costs, from the lines that `pytest --cpu FILE` wrote: `make durations`.

Tests below a tenth of a second are left out, and so are those that are gone; of several measurements, the last
counts."""
import json
import sys
from pathlib import Path

LEAST = 0.1


def durations(lines):
    "test -> CPU seconds, the longest first."
    rows = [json.loads(line) for line in lines]
    known = {row["test"]: row["cpu"] for row in rows}
    return {test: cpu for test, cpu in sorted(known.items(), key=lambda pair: (-pair[1], pair[0])) if cpu >= LEAST}


def by_file(known):
    "Lines: the CPU seconds of each file of tests, and their sum."
    files = {}
    for test, cpu in known.items(): files[test.partition("::")[0]] = files.get(test.partition("::")[0], 0) + cpu
    rows = sorted(files.items(), key=lambda pair: -pair[1])
    return [f"{cpu:8.1f} s  {file}" for file, cpu in [*rows, ("all", sum(files.values()))]]


if __name__ == "__main__":
    known = durations(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines())
    target = Path(__file__).parent / "durations.json"
    target.write_text(json.dumps(known, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    print(*by_file(known), sep="\n")
