"""What a paper decides about a layer: which bank, which router, how many experts, and what else may be chosen."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
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
class Common:
    """What the banks of several layers have in common, such as one warehouse of cells.

    Args:
        make: (sites, device, dtype, **options) → for each site what its bank is given as `common`; the layers of these
            sites share it. A layer that stands alone is the only site.
        option: the keyword of a conversion that says which layers share: "stage", those of one stage and kind, or
            {name: regex}; every other layer is by itself.
    """

    make: Callable[..., Sequence[Any]]
    option: str


@dataclass(frozen=True)
class Design:
    """The choices of one paper.

    Args:
        bank: (site, num_experts, device, dtype, **options) → bank.
        router: (site, slices, **options) → router.
        num_experts: default of `num_experts`.
        options: further keywords of the layers and of a conversion, with their defaults; each goes to those of the two
            factories that name it.
        common: what banks of several layers have in common; None where each has all of its own.
    """

    bank: BankFactory
    router: Callable[..., Router]
    num_experts: int
    options: Mapping[str, Any] = field(default_factory=dict)
    common: Common | None = None

    def check_options(self, where: str, options: Mapping[str, Any]) -> None:
        """Refuse what is no option."""
        for name in options:
            if name not in self.options:
                raise ArgumentError(f"{where}: {unknown_name_message('argument', name, self.options)}")

    def parse_options(self, where: str, words: Sequence[str]) -> dict[str, Any]:
        """Return the options that words NAME=VALUE on a command line mean; "none" is None.

        Raises:
            ArgumentError: a word of another form, an unknown name, or a text where a number belongs.
        """
        found: dict[str, Any] = {}
        for word in words:
            name, _, value = word.partition("=")
            if not (name and value):
                raise argument_error(where, "options", word, "is not of the form NAME=VALUE", "write budget=1/2")
            self.check_options(where, {name: value})
            found[name] = None if value == "none" else value
            if isinstance(self.options[name], int):
                if not value.isdecimal():
                    raise argument_error(where, name, value, "is no whole number", f"use {self.options[name]}")
                found[name] = int(value)
        return found

    def make_bank(
        self,
        site: ConvSite,
        num_experts: int,
        options: Mapping[str, Any],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        common: Any = None,
    ) -> Bank:
        """Return the bank of a layer; `common` is what it shares with other layers, None where it stands alone.

        Raises:
            ArgumentError: an option has a value that the paper does not allow.
            SiteError: the paper has no form for such a layer.
        """
        arguments = self._for(self.bank, options)
        if self.common is not None:
            alone = common is None
            arguments["common"] = self.make_common([site], options, device, dtype)[0] if alone else common
        return self.bank(site, num_experts, device, dtype, **arguments)

    def make_common(
        self,
        sites: Sequence[ConvSite],
        options: Mapping[str, Any],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Sequence[Any]:
        """Return for each of several layers what its bank is to share with the others'.

        Raises:
            ArgumentError: an option has a value that the paper does not allow.
            SiteError: such layers have nothing to share.
        """
        if self.common is None:
            return [None] * len(sites)
        return self.common.make(sites, device, dtype, **self._for(self.common.make, options))

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
