"""How many multiply-adds an operator executes: a formula for each operator that torch dispatches to.

A native operator brings its own: `register_formula(torch.ops.condconv.mixed_conv2d, formula)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from condconv.errors import ArgumentError
from condconv.execution.native import triton_ops

Formula = Callable[..., int]
"""(result, *arguments of the operator, **keyword arguments) → multiply-adds."""

_formulas: dict[Any, Formula] = {}


def register_formula(operator: Any, formula: Formula) -> None:
    """Let `executed` counts include an operator.

    Args:
        operator: An overload packet such as `torch.ops.aten.mm`.
        formula: Called with the operator's result and its arguments.

    Raises:
        ArgumentError: the operator has a formula already.
    """
    if operator in _formulas:
        raise ArgumentError(f"register_formula: operator={operator} has a formula already; register each operator once")
    _formulas[operator] = formula


def formula_of(operator: Any) -> Formula | None:
    """Return the formula of an overload packet, or None for an operator that multiplies no matrices."""
    return _formulas.get(operator)


def _convolution(y: Tensor, x: Tensor, weight: Tensor, *arguments: Any) -> int:
    transposed = arguments[4]
    return (x if transposed else y).numel() * math.prod(weight.shape[1:])


def _matrix_product(y: Tensor, a: Tensor, b: Tensor, **_: Any) -> int:
    return y.numel() * a.shape[-1]


def _added_matrix_product(y: Tensor, added: Tensor, a: Tensor, b: Tensor, **_: Any) -> int:
    return y.numel() * a.shape[-1]


def _attention(result: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    scores = math.prod(query.shape[:-1]) * key.shape[-2]
    return scores * (query.shape[-1] + value.shape[-1])


def _mixed_convolution(y: Tensor, x: Tensor, coefficients: Tensor, experts: Tensor, *_: Any) -> int:
    return len(coefficients) * experts.numel() + y.numel() * math.prod(experts.shape[2:])


_FORMULAS: dict[str, Formula] = {
    "convolution": _convolution,
    "mm": _matrix_product,
    "bmm": _matrix_product,
    "mv": _matrix_product,
    "dot": _matrix_product,
    "addmm": _added_matrix_product,
    "addmv": _added_matrix_product,
    "baddbmm": _added_matrix_product,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
    "_scaled_dot_product_cudnn_attention": _attention,
}
for _name, _formula in _FORMULAS.items():
    register_formula(getattr(torch.ops.aten, _name), _formula)
register_formula(triton_ops.conv2d, _mixed_convolution)
