"""Optimiser and learning rate of a run, as its settings say."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from condconv.errors import ArgumentError
from condconv.registry import unknown_name_message
from condconv.routers import Router
from condconv.runs.config import TrainConfig

DEFAULT_WARM_UP_SHARE = 0.05


def peak_learning_rate(config: TrainConfig, global_batch: int) -> float:
    """`lr`, scaled linearly from a step of `base_batch` images to one of `global_batch`, where a base is given."""
    return config.lr if config.base_batch is None else config.lr * global_batch / config.base_batch


def learning_rate_factor(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """What the peak learning rate is multiplied with at a step (counted from 0, as all epochs are).

    Linear warm-up first. Then "cosine" falls in half a wave to 0 at the end of the run; "step" is multiplied with
    `decay_factor` every `decay_epochs`, counted from the start of the run; "exponential" runs smoothly through the same
    points.
    """
    total = steps_per_epoch * config.epochs
    if config.warmup_epochs is None:
        warm_up = max(1, round(DEFAULT_WARM_UP_SHARE * total))
    else:
        warm_up = round(config.warmup_epochs * steps_per_epoch)
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, total - warm_up))))
    decays = step / (config.decay_epochs * steps_per_epoch)
    return config.decay_factor ** (math.floor(decays) if config.schedule == "step" else decays)


def make_optimizer(network: nn.Module, config: TrainConfig, lr: float) -> Optimizer:
    """Timm's optimiser of that name; routers have their own learning rate, and what is one-dimensional no decay.

    Raises `ArgumentError` for an optimiser that timm does not know.
    """
    from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers

    known = [str(name) for name in list_optimizers()]
    if config.optimizer not in known:
        message = unknown_name_message("optimizer", config.optimizer, ("sgd", "momentum", *known))
        raise ArgumentError(f"--optimizer: {message}")
    info = get_optimizer_info(config.optimizer)
    extra: dict[str, Any] = {"eps": config.eps} if config.eps is not None and info.has_eps else {}
    groups = parameter_groups(network, config, lr)
    optimizer: Optimizer = create_optimizer_v2(
        groups, opt=config.optimizer, lr=lr, momentum=config.momentum, weight_decay=0.0, **extra
    )
    return optimizer


def parameter_groups(network: nn.Module, config: TrainConfig, lr: float) -> list[dict[str, Any]]:
    """Groups by learning rate (routers, the rest) and by weight decay; `learning_rate_factor` scales all of them.

    Not decayed: normalisation, and unless `decay_biases` biases, the (n, O) biases of experts among them.
    """
    of_routers = {id(p) for module in network.modules() if isinstance(module, Router) for p in module.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter, decayed in _with_decay(network, config.decay_biases):
        rate = lr * config.router_lr_factor if id(parameter) in of_routers else lr
        groups.setdefault((rate, config.weight_decay if decayed else 0.0), []).append(parameter)
    return [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()]


def _with_decay(network: nn.Module, decay_biases: bool) -> Iterable[tuple[nn.Parameter, bool]]:
    seen: set[int] = set()
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter, decay_biases and not _is_norm(module) if name == "bias" else parameter.dim() > 1


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm))
