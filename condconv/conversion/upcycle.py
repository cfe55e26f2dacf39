"""Exact upcycling: a conditional layer that computes what the static one did, until training tells its examples apart.

A router whose last layer is zero gives every example the same coefficients; the bank sets its parameters so that those
stand for the static kernel (`Bank.start_from` of each bank says how).
"""

from __future__ import annotations

from torch import Tensor

from condconv.banks import Bank
from condconv.errors import ConversionError
from condconv.routers import Router


def upcycle_bank(bank: Bank, router: Router, weight: Tensor, bias: Tensor | None, where: str) -> None:
    """Fill a bank from a static kernel and bias, and make its router constant.

    Raises:
        ConversionError: the router's gate, or the bank, has no such state.
    """
    try:
        bank.start_from(weight.detach(), None if bias is None else bias.detach(), router.reset_to_constant())
    except ConversionError as error:
        raise ConversionError(f"{where}: routed by a {type(router.gate).__name__}: {error}") from None
