"""Tables in Markdown, estimates in them, and what stands between two marks of a page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from benchmarks.accuracy.comparison import Estimate, Outcome


def shown(value: Estimate, sign: bool = False) -> str:
    """Mean and half the width of the interval."""
    mean = f"{value.mean:+.2f}" if sign else f"{value.mean:.2f}"
    return mean if math.isnan(value.half_width) else f"{mean} ± {value.half_width:.2f}"


def gain(outcome: Outcome, arm: str, other: str | None) -> str:
    """The gain of an arm over another one."""
    difference = None if other is None else outcome.difference(arm, other)
    return "not run" if difference is None else shown(difference, sign=True)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A Markdown table."""
    yield "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)) + "\n"


def between(text: str, name: str, content: Iterable[str]) -> str:
    """A page with other content between the marks `<!-- name -->` and `<!-- end of name -->`."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"{begin} and {end} are not both in the page")
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n{''.join(content)}{end}{rest.partition(end)[2]}"
