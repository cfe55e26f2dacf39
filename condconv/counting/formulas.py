"""How many multiply-adds an operator executes: a formula for each operator that torch dispatches to.

An operator is known by its qualified name, "aten::mm", so that one which is not built or not loaded can be registered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from condconv.assembled import transform_macs
from condconv.errors import ArgumentError

Formula = Callable[..., int]
"""(result, *arguments of the operator, **keyword arguments) → multiply-adds."""

_formulas: dict[str, Formula] = {}


def register_formula(operator: str, formula: Formula) -> None:
    """Let `executed` counts include an operator.

    Args:
        operator: Qualified name of an overload packet, such as "aten::mm".
        formula: Called with the operator's result and its arguments.

    Raises:
        ArgumentError: the operator has a formula already.
    """
    if operator in _formulas:
        raise ArgumentError(f"register_formula: operator={operator} has a formula already; register each operator once")
    _formulas[operator] = formula


def formula_of(operator: Any) -> Formula | None:
    """Return the formula of an overload packet, or None for an operator that multiplies no matrices."""
    return _formulas.get(getattr(operator, "_qualified_op_name", ""))


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


def _packed_convolution(
    y: Tensor, x: Tensor, coefficients: Tensor, packed: Tensor, scale: Any, bias: Tensor | None, shift: Any,
    kernel_shape: Sequence[int], *_: Any,
) -> int:  # fmt: skip
    mixed = math.prod(kernel_shape) + (0 if bias is None else kernel_shape[0])
    return coefficients.numel() * mixed + y.numel() * math.prod(kernel_shape[1:])


def _inverse_transform(y: Tensor, x: Tensor, dim: Sequence[int], *_: Any) -> int:
    size = math.prod(y.shape[side] for side in dim)
    return y.numel() // size * transform_macs(size)


_FORMULAS: dict[str, Formula] = {
    "_fft_c2r": _inverse_transform,
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
    register_formula(f"aten::{_name}", _formula)
register_formula("condconv::triton_depthwise", _mixed_convolution)
register_formula("condconv::conv2d", _mixed_convolution)
register_formula("condconv::pooled_linear", lambda y, x, weight, bias, *gate: y.numel() * weight.shape[1])
register_formula("condconv::conv2d_packed", _packed_convolution)
