"""How much was attacked, by the slow tests and under the sanitizers: they note it, and the page's table is made of it.

    RELIABILITY_COUNTS=tests/reliability/counts.csv pytest -m slow tests/reliability
    RELIABILITY_COUNTS=tests/reliability/counts.csv scripts/sanitize.sh
    python -m tests.reliability.counts
"""

from __future__ import annotations

import csv
import os
from collections import Counter, defaultdict
from pathlib import Path

CSV = Path(__file__).with_name("counts.csv")
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- counts: begin -->", "<!-- counts: end -->"
KINDS = {
    "kills": "kills, each at another file operation of a command",
    "random kills": "kills at random times, up to five in a row before the command may end",
    "arguments": "values of arguments of public functions and classes",
    "flags": "values of flags of the command line",
    "files": "spoiled files, over all formats that are read",
    "calls": "calls of the compiled operators, and of layers, with arguments that do not fit",
    "sanitized calls": "the same under AddressSanitizer and UBSan, with each instruction set",
}


def note(kind: str, name: str, count: int, bad: int) -> None:
    """Say what was done, and write it down where RELIABILITY_COUNTS names a table, in place of a former row."""
    print(f"{count} {kind} of {name}, {bad} bad")
    given = os.environ.get("RELIABILITY_COUNTS")
    if given is None:
        return
    path = ROOT / given  # tests run in folders of their own
    rows = {(row["kind"], row["name"]): row for row in read(path)}
    rows[kind, name] = {"kind": kind, "name": name, "count": str(count), "bad": str(bad)}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ("kind", "name", "count", "bad"), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[key] for key in sorted(rows))


def read(path: Path) -> list[dict[str, str]]:
    """The rows of the table; none where there is none."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table() -> str:
    """The table of the page."""
    total, bad, names = Counter[str](), Counter[str](), defaultdict[str, set[str]](set)
    for row in read(CSV):
        total[row["kind"]] += int(row["count"])
        bad[row["kind"]] += int(row["bad"])
        names[row["kind"]].add(row["name"].partition(", part ")[0])
    lines = ["| attacked with | number | of | bad |", "|---|---:|---:|---:|"]
    noted = [(kind, text) for kind, text in KINDS.items() if names[kind]]
    lines += [f"| {text} | {total[kind]:,} | {len(names[kind])} | {bad[kind]} |" for kind, text in noted]
    return "\n".join(lines)


def rendered(page: str) -> str:
    """The page with the present table."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text()))
