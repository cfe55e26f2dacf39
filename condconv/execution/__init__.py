"""Execution strategies: how to convolve each example with its own kernel. They know no router, no bank, no paper."""

from condconv.execution.pins import Pins, Question, machine_of, pinned, question
from condconv.execution.planner import (
    AUTO,
    Road,
    Strategy,
    check_strategy,
    choose,
    execute,
    executed_macs,
    refusal,
    road,
    run,
    strategies,
    use_strategy,
    watch_execution,
)
from condconv.execution.single import convolve_one, kernel_of_one, multiply_one

__all__ = [
    "AUTO",
    "Pins",
    "Question",
    "Road",
    "Strategy",
    "check_strategy",
    "choose",
    "convolve_one",
    "execute",
    "executed_macs",
    "kernel_of_one",
    "machine_of",
    "multiply_one",
    "pinned",
    "question",
    "refusal",
    "road",
    "run",
    "strategies",
    "use_strategy",
    "watch_execution",
]
