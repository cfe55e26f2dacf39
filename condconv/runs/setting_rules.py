"""What the values of a setting may be: rules that a field carries in its metadata, checked in one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from condconv.errors import ArgumentError, argument_error
from condconv.registry import unknown_name_message


@dataclass(frozen=True)
class Rule:
    """`holds` decides, `text` says it in a message; NaN breaks every rule here."""

    holds: Callable[[Any], bool]
    text: str


COUNT = Rule(lambda value: value >= 1, "must be at least 1")
WHOLE = Rule(lambda value: value >= 0, "must not be negative")
POSITIVE = Rule(lambda value: 0 < value < float("inf"), "must be positive and finite")
NOT_NEGATIVE = Rule(lambda value: 0 <= value < float("inf"), "must be finite and not negative")
PROBABILITY = Rule(lambda value: 0 <= value < 1, "must lie in [0, 1)")
SEED = Rule(lambda value: 0 <= value < 2**63, "must be in 0 … 2^63 - 1")


def setting(
    default: Any, help: str, rule: Rule | Sequence[str] | None = None, without_value: str | None = None
) -> Any:
    """A field of `TrainConfig`: its default, its help text on the command line, its rule or its known names.

    `without_value`: what the flag stands for where no value follows it; None: one has to.
    """
    return field(default=default, metadata={"help": help, "rule": rule, "without_value": without_value})


def check_rules(config: Any) -> None:
    """Raise `ArgumentError` for the first field that breaks its rule; None stands for "left out" and breaks none."""
    for each in fields(config):
        value, rule = getattr(config, each.name), each.metadata.get("rule")
        if value is None or rule is None:
            continue
        if not isinstance(rule, Rule):
            if value not in rule:
                raise ArgumentError(f"--{flag(each.name)}: {unknown_name_message(each.name, value, rule)}")
        elif not rule.holds(value):
            default = "leave it out" if each.default is None else f"the default is {each.default}"
            raise argument_error("train", each.name, value, rule.text, f"pass another --{flag(each.name)}; {default}")


def flag(name: str) -> str:
    """The command line's spelling of a field."""
    return name.replace("_", "-")
