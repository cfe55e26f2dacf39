"""What a paper decides about a layer: which bank, which router, how many experts, and what else may be chosen."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from condconv.arguments import a_module
from condconv.banks import Bank
from condconv.coefficients import Slices
from condconv.errors import ArgumentError, argument_error
from condconv.registry import unknown_name_message
from condconv.routers import Router
from condconv.site import ConvSite

BankFactory = Callable[..., Bank]
"""(site, num_experts, device=, dtype=, **options) → bank."""

RouterFactory = Callable[[ConvSite, Slices], Router]
"""(site, slices that the bank needs) → router; `site.in_channels` are the channels of what it sees."""


@dataclass(frozen=True)
class Design:
    """The choices of one paper.

    Args:
        bank: (site, num_experts, device, dtype, **options) → bank.
        router: (site, slices, **options) → router.
        num_experts: default of `num_experts`.
        options: further keywords of the layers and of a conversion, with their defaults; each goes to those of the two
            factories that name it.
    """

    bank: BankFactory
    router: Callable[..., Router]
    num_experts: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def check_options(self, where: str, options: Mapping[str, Any]) -> None:
        """Refuse what is no option."""
        for name in options:
            if name not in self.options:
                raise ArgumentError(f"{where}: {unknown_name_message('argument', name, self.options)}")

    def make_bank(
        self,
        site: ConvSite,
        num_experts: int,
        options: Mapping[str, Any],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Bank:
        """Return the bank of a layer.

        Raises:
            ArgumentError: an option has a value that the paper does not allow.
            SiteError: the paper has no form for such a layer.
        """
        return self.bank(site, num_experts, device, dtype, **self._for(self.bank, options))

    def make_router(self, site: ConvSite, slices: Slices, options: Mapping[str, Any]) -> Router:
        """Return the router of a layer, or of several that share it."""
        return self.router(site, slices, **self._for(self.router, options))

    def _for(self, factory: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
        named = inspect.signature(factory).parameters
        return {name: value for name, value in {**self.options, **options}.items() if name in named}


def made_router(where: str, factory: Any, site: ConvSite, slices: Slices) -> Router:
    """What a factory of routers makes.

    Raises:
        ArgumentError: it cannot be called as one, makes something else, or another number of coefficients.
    """
    try:
        made = factory(site, slices)
    except TypeError as error:
        rule = f"cannot be called as router(site, slices): {error}"
        raise argument_error(where, "router", factory, rule, "pass a function that returns a router") from error
    router: Router = a_module(where, "router", made, Router)
    if router.slices.size != slices.size:
        rule = f"makes {router.slices.size} coefficients, not the {slices.size} that are needed ({slices})"
        raise argument_error(where, "router", type(made).__name__, rule, "use the slices that it is given")
    return router
