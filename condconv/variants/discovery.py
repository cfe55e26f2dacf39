"""Finding the variants: the files beside this one, and what other packages offer as entry points."""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Iterable
from importlib.metadata import entry_points

GROUP = "condconv.variants"
_NO_VARIANTS = ("base", "discovery")


def discover(path: Iterable[str], package: str) -> None:
    """Import every module of a package that registers a variant, then those that other packages offer.

    One of another package that cannot be imported is named in a warning, and the others work.
    """
    for module in sorted(module.name for module in pkgutil.iter_modules(path)):
        if module not in _NO_VARIANTS:
            importlib.import_module(f"{package}.{module}")
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:  # Whatever the code of somebody else raises.
            where = f"entry point {entry.name!r} of group {GROUP!r} ({entry.value})"
            warnings.warn(f"{where} cannot be imported and its variant is missing: {error!r}", stacklevel=2)
