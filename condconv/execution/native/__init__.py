"""Compiled kernels: the C++ operators of csrc/ and the strategy that runs them."""

from condconv.execution.native.library import available, cpu_features, instruction_set, load_error

__all__ = ["available", "cpu_features", "instruction_set", "load_error"]
