"""The errors this package raises.

Every message names the place (a layer, a file, a command), the argument, its value, the rule that it breaks and the
remedy; `argument_error` puts the five together so that they always stand in the same order.
"""

from __future__ import annotations


class CondConvError(Exception):
    """Base of every error that this package raises on purpose."""


class ArgumentError(CondConvError, ValueError):
    """An argument has a value that its rule does not allow."""


class SiteError(ArgumentError):
    """A variant has no form for such a layer; a conversion skips it, for this reason."""


class UnknownNameError(ArgumentError):
    """A name is not in its registry; the message lists the closest ones."""


class ShapeError(CondConvError, ValueError):
    """A tensor has the wrong rank, channel count or batch size for the layer that received it."""


class StrategyError(CondConvError, RuntimeError):
    """A pinned execution strategy cannot serve the layer."""


class RoutingError(CondConvError, RuntimeError):
    """A layer was called without coefficients being available to it."""


class NonFiniteError(CondConvError, ArithmeticError):
    """A routing coefficient is NaN or infinite."""


class ConversionError(CondConvError, RuntimeError):
    """A network cannot be converted, reverted or collapsed as asked."""


class DataError(CondConvError, ValueError):
    """A data file or a sample in it is missing, damaged or inconsistent."""

    def __init__(self, message: str) -> None:
        # A loader process hands its error on as the text of a traceback, whose last line is the message.
        super().__init__(message.rsplit("condconv.errors.DataError: ", 1)[-1].rstrip())


class CheckpointError(CondConvError, RuntimeError):
    """Weights, a configuration or a checkpoint do not fit or cannot be read."""


class BusyError(CondConvError, RuntimeError):
    """Another process is writing what was to be written; the message names it."""


def argument_error(where: str, argument: str, value: object, rule: str, remedy: str) -> ArgumentError:
    """Return an `ArgumentError` that names the place, the argument, its value, the rule and the remedy."""
    return ArgumentError(f"{where}: {argument}={value!r} {rule}; {remedy}")
