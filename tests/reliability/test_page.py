"""docs/reliability.md says what is: its table of counts, and every limit with its default."""

from __future__ import annotations

from condconv.limits import LIMITS
from tests.reliability.counts import CSV, PAGE, read, rendered


def test_the_counts_are_those_of_the_table() -> None:
    assert rendered(PAGE.read_text()) == PAGE.read_text()
    assert all(row["bad"] == "0" for row in read(CSV))


def test_every_limit_is_on_the_page() -> None:
    text = PAGE.read_text()
    for name, limit in LIMITS.items():
        assert f"| {name.upper()} | {limit.bounds} | {limit.default:,} |" in text
