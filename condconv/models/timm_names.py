"""Makes the papers' networks known to ``timm.create_model`` and ``timm.list_models``.

timm finds an entry point's module by its ``__module__`` and adds the names to this module's ``__all__``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models import register_model
from torch import nn

from condconv.models.specs import SPECS
from condconv.models.zoo import create_model

__all__: list[str] = []

# What timm.create_model passes to every entry point and means nothing to a network without a configuration in timm.
_TIMM_ONLY = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def _entry_point(name: str) -> Callable[..., nn.Module]:
    def entry_point(pretrained: bool = False, **arguments: Any) -> nn.Module:
        for argument in _TIMM_ONLY:
            if arguments.get(argument) is None:
                arguments.pop(argument, None)
        return create_model(name, pretrained=pretrained, **arguments)

    entry_point.__name__ = entry_point.__qualname__ = name
    entry_point.__doc__ = f"{name}: {SPECS[name].placement} ({SPECS[name].variant})."
    entry_point.__module__ = __name__
    return entry_point


for _name in SPECS:
    register_model(_entry_point(_name))
