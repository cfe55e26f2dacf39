"""The networks that are measured: ours, its static twin and timm's own implementation, and what they have to do."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn

import condconv
from condconv.banks import DenseBank
from condconv.inference.form import ExpertStorage, RestStorage
from condconv.models.specs import SPECS

OURS, STATIC, TIMM = "ours", "static", "timm"
ELEMENT_BYTES = {"f32": 4, "bf16": 2, "int8": 1}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
CHANNELS_LAST = torch.channels_last


@dataclass(frozen=True)
class Subject:
    """One network in one form; for ours and the static twin the inference form has batch norm folded."""

    kind: str
    experts: ExpertStorage = "f32"
    rest: RestStorage = "f32"

    @property
    def name(self) -> str:
        """A readable name."""
        return " ".join([self.kind, f"{self.experts} experts" if self.kind == OURS else "", self.rest]).replace(
            "  ", " "
        )


def timm_name(model: str) -> str | None:
    """Timm's implementation of the same conditional network, if it has one."""
    return SPECS[model].timm_name if model in SPECS else None


def raw_network(kind: str, model: str) -> nn.Module:
    """The network as it is trained."""
    if kind == TIMM:
        name = timm_name(model)
        assert name is not None, f"timm has no {model}"
        return timm.create_model(name)
    return condconv.create_model(model) if kind == OURS else condconv.static_twin(model)


def inference_network(subject: Subject, model: str) -> nn.Module:
    """The network in its inference form; timm's batch norms cannot be folded into its experts and stay."""
    network = raw_network(subject.kind, model).eval()
    if subject.kind == TIMM:
        return network.to(memory_format=CHANNELS_LAST)
    return condconv.optimize_for_inference(network, experts=subject.experts, rest=subject.rest)


def image_batch(batch: int, size: int, rest: str = "f32") -> Tensor:
    """Random images (B, 3, size, size)."""
    return torch.randn(batch, 3, size, size, dtype=DTYPES[rest]).contiguous(memory_format=CHANNELS_LAST)


@dataclass(frozen=True)
class Work:
    """Multiply-adds of one image, by the papers' convention, and the elements of the weights."""

    convolution: int
    mixing: int
    static_weights: int
    expert_weights: int

    @staticmethod
    @functools.cache
    def of(model: str, kind: str, size: int) -> Work:
        """Count a network and what its experts hold; timm's does the same as ours."""
        with torch.device("meta"):  # shapes are enough
            network = raw_network(STATIC if kind == STATIC else OURS, model)
        counted = condconv.count(network, (3, size, size))
        mixing = sum(row.mixing for row in counted.rows)
        banks = sum(bank.weight.numel() for bank in network.modules() if isinstance(bank, DenseBank))
        return Work(counted.macs - mixing, mixing, counted.params - banks, banks)

    def weight_bytes(self, subject: Subject) -> int:
        """Bytes of the weights as a subject stores them."""
        return self.static_weights * ELEMENT_BYTES[subject.rest] + self.expert_weights * ELEMENT_BYTES[subject.experts]
