"""From settings to a network: static or conditional, always the same weights for the same seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from condconv.coefficients import Slices
from condconv.conversion import convert
from condconv.conversion.apply import conditional_layers
from condconv.data import Source
from condconv.errors import argument_error
from condconv.layers import RouterFactory, route_by_tile
from condconv.models import create_model, initialise_experts, static_twin
from condconv.models.build import TORCHVISION
from condconv.models.specs import SPECS
from condconv.routers import Router, SigmoidGate, SoftmaxGate
from condconv.runs.config import TrainConfig
from condconv.runs.starting import Start, begin_with, find_start
from condconv.site import ConvSite
from condconv.tasks.base import Task
from condconv.variants import Share, variants

CONDITIONAL, STATIC, WIDENED = "conditional", "static", "widened"
_GATES = {"sigmoid": SigmoidGate, "softmax": SoftmaxGate}
_OF_A_CONVERSION = ("targets", "share", "gate")


class NetworkBuilder:
    """Builds the networks of one run; every call begins with the seed.

    `fresh`: without the weights that the run began with.
    """

    def __init__(self, task: Task, source: Source, *, fresh: bool = False) -> None:
        self.config = config = task.config
        self.source = source
        self.fresh = fresh
        self.spec = SPECS.get(config.model)
        self.variant = self.spec.variant if self.spec is not None else config.variant
        self.arguments: dict[str, Any] = task.network_arguments(source)
        if config.width != 1.0:
            self.arguments["width_multiplier"] = config.width
        if self.spec is not None:
            _refuse_conversion(config)

    def static(self, widening: float = 1.0) -> nn.Module:
        """The static network, with its channels times `widening`; only the unwidened can begin with given weights."""
        model = self._fresh_static(widening)
        start = self.start(STATIC) if widening == 1.0 else None
        if start is not None:
            begin_with(model, start, self._fresh_static)
        return model

    def conditional(self) -> nn.Module:
        """The conditional network: a row of the zoo, or a conversion as the settings say."""
        torch.manual_seed(self.config.seed)
        model = create_model(self.config.model, **self._conditional_arguments())
        if self.spec is None:
            targets = None if self.config.targets is None else self.config.targets.split(" + ")
            # A variant's own placement is about the backbone of torchvision's detectors; heads see levels and regions.
            whole = targets is not None or not self.config.model.startswith(TORCHVISION)
            convert(
                model if whole else model.get_submodule("backbone"), self.variant, targets=targets,
                num_experts=self.config.num_experts, share=self._share(), init="fresh", router=self._router(),
                **self._limit(),
            )  # fmt: skip
            initialise_experts(model)  # as the static twin draws its kernels, so that the two start alike
        start = self.start(CONDITIONAL)
        if start is not None:
            begin_with(model, start, self._fresh_static)
        _scale(model, self.config)
        return route_by_tile(model, self.config.tiles)

    def start(self, network: str) -> Start | None:
        """The weights that a network begins with; None for fresh ones."""
        if self.fresh or self.config.pretrained is None:
            return None
        torch.manual_seed(self.config.seed)  # published weights come with a new classifier, the same for all networks
        return find_start(self.config, network, self.arguments)

    def _fresh_static(self, widening: float = 1.0) -> nn.Module:
        torch.manual_seed(self.config.seed)
        arguments = dict(self.arguments)
        if widening != 1.0:
            arguments["width_multiplier"] = self.config.width * widening
        return (static_twin if self.spec is not None else create_model)(self.config.model, **arguments)

    def _conditional_arguments(self) -> dict[str, Any]:
        if self.spec is None:
            return self.arguments
        return self.arguments | {"num_experts": self.config.num_experts, **self._limit()}

    def _limit(self) -> dict[str, Any]:
        """The limit on the overhead of mixing, and the size of the images that it needs."""
        if self.config.max_overhead is None:
            return {}
        size = (self.source.channels, *self.source.image_size)
        return {"max_overhead": self.config.max_overhead, "input_size": size}

    def _share(self) -> Share:
        share = self.config.share
        if share is None:
            return variants[self.variant].share
        if share.isdigit():
            return int(share)
        return "block" if share == "block" else "network" if share == "network" else None

    def _router(self) -> RouterFactory | None:
        design, gate = variants[self.variant].design, self.config.gate
        if gate is None:
            return None

        def with_gate(site: ConvSite, slices: Slices) -> Router:
            router = design.make_router(site, slices, {})
            router.gate = _GATES[gate]()
            return router

        return with_gate


def _refuse_conversion(config: TrainConfig) -> None:
    for name in _OF_A_CONVERSION:
        if getattr(config, name) is not None:
            rule = f"is for conversions, and {config.model} is a row of the zoo, which says it itself"
            remedy = f"leave it out, or convert --model {SPECS[config.model].backbone}"
            raise argument_error("train", name, getattr(config, name), rule, remedy)


@torch.no_grad()
def _scale(model: nn.Module, config: TrainConfig) -> None:
    """What is asked of routers and experts beyond the papers' initialisation."""
    for module in model.modules():
        if isinstance(module, Router):
            module.expert_dropout = config.expert_dropout
            module.multiply(config.router_init_scale)
    for _, layer in conditional_layers(model):
        layer.bank.multiply(config.expert_init_scale)
