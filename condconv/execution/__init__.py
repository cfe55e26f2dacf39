"""Execution strategies: how to convolve each example with its own kernel. They know no router, no bank, no paper."""

from condconv.execution.pins import Pins, Question, machine_of, pinned, question
from condconv.execution.planner import (
    AUTO,
    Strategy,
    check_strategy,
    choose,
    execute,
    executed_macs,
    refusal,
    run,
    strategies,
    use_strategy,
    watch_execution,
)

__all__ = [
    "AUTO",
    "Pins",
    "Question",
    "Strategy",
    "check_strategy",
    "choose",
    "execute",
    "executed_macs",
    "machine_of",
    "pinned",
    "question",
    "refusal",
    "run",
    "strategies",
    "use_strategy",
    "watch_execution",
]
