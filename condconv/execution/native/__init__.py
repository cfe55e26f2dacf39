"""Compiled kernels: the C++ operators of csrc/ and the strategy that runs them."""

from condconv.operators import available, built, cpu_features, instruction_set, load_error

__all__ = ["available", "built", "cpu_features", "instruction_set", "load_error"]
