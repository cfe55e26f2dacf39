"""No arguments make a compiled operator, or a layer that uses it, crash, hang or fail without words.

The counts are printed: `pytest -s tests/reliability/test_native.py`.
"""

from __future__ import annotations

import pytest

from tests.execution.native_cases import NEEDS_NATIVE
from tests.reliability.counts import note
from tests.reliability.native import OPERATORS, attack

pytestmark = NEEDS_NATIVE

CALLS = 2000


@pytest.mark.slow
@pytest.mark.parametrize("operator", OPERATORS)
def test_calls_that_do_not_fit(operator: str) -> None:
    problems = attack(operator, range(CALLS))
    note("calls", operator, CALLS, len(problems))
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("operator", OPERATORS)
def test_some_calls_that_do_not_fit(operator: str) -> None:
    problems = attack(operator, range(CALLS, CALLS + 40))
    print(f"40 calls of {operator}, {len(problems)} bad")
    assert not problems, "\n".join(problems)
