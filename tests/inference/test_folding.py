"""Batch norm is folded where that is exact, and nowhere else."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import condconv
from condconv.inference.folding import find_pairs, fold_static, without_norm
from tests.contract.cases import CONVOLUTIONS, example_input, name_of
from tests.conversion.networks import difference, make_telling, tensors

NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def telling_norm(norm: Any) -> Any:
    """Give a batch norm statistics and weights that are not its initial ones; in eval mode."""
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        if norm.weight is not None:
            norm.weight.uniform_(-1.5, 1.5)
            norm.bias.normal_()
    return norm.eval()


def fold(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """A folded copy in the precision of `model`, and the names of what was folded."""
    made = copy.deepcopy(model).eval()
    pairs = find_pairs(made)
    for pair in pairs:
        norm = made.get_submodule(pair.norm)
        fold_static(made.get_submodule(pair.convolution), norm)
        made.set_submodule(pair.norm, without_norm(norm))
    return made, [pair.norm for pair in pairs]


def check_fold(model: nn.Module, x: Any, tolerance: float = 1e-12) -> list[str]:
    """Fold, compare, and return what was folded."""
    made, names = fold(model)
    with torch.no_grad():
        assert difference(made(x), model.eval()(x)) <= tolerance
    return names


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("cls", [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d])
def test_static_convolutions(cls: Any, affine: bool) -> None:
    rank = int(cls.__name__[-2])
    for options in ({}, {"groups": 2, "bias": False, "stride": 2}):
        convolution = cls(4, 6, 3, dtype=torch.float64, **options)
        norm = telling_norm(NORMS[rank](6, eps=1e-2, affine=affine, dtype=torch.float64))
        model = nn.Sequential(convolution, norm, nn.ReLU())
        assert check_fold(model, torch.randn(2, 4, *[7] * rank, dtype=torch.float64)) == ["1"]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cls", CONVOLUTIONS, ids=name_of)
def test_conditional_convolutions(cls: Any, bias: bool) -> None:
    for options in ({}, {"groups": 2, "stride": 2}):
        layer = cls(8, 12, 3, num_experts=3, padding=1, bias=bias, **options)
        model = nn.Sequential(layer, telling_norm(NORMS[cls.rank](12)), nn.ReLU()).eval()
        made = condconv.optimize_for_inference(model)
        assert made.inference_form.folded == ("1",) and isinstance(made[1], nn.Identity)
        for batch in (1, 2, 7, 0):
            x = example_input(cls, batch)
            if batch:
                assert difference(made(x), model(x)) <= 1e-5
            assert made(x).shape == model(x).shape


class Residual(nn.Module):
    """conv → bn → relu → conv → bn, and the input on top."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class OutputUsedTwice(Residual):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        return self.bn1(y) + y


class ConvolutionCalledTwice(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x)) + self.bn2(self.conv1(x + 1))


class NormCalledTwice(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x)) + self.bn1(self.conv2(x))


class PreActivation(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.relu(self.bn2(self.conv1(torch.relu(self.bn1(x))))))


class WeightUsedElsewhere(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x)) + nn.functional.conv2d(x, self.conv1.weight, padding=1)


class Branching(nn.Module):
    """Code that depends on values: it cannot be traced, its blocks can."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.blocks = nn.ModuleList([Residual(), Residual()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)) if x.sum() > -1e9 else x
        return self.blocks[1](self.blocks[0](x))


class ByName(Residual):
    def forward(self, x: Tensor, mode: str = "plain") -> Tensor:
        return self.bn1(input=self.conv1(x)) if mode == "plain" else x


class OptionalSkip(Residual):
    """None is what it is called with: the other branch must not be traced."""

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        y = self.conv1(x)
        return self.bn1(y) if skip is None else self.bn1(y + skip)


class SkippingInside(Branching):
    """What a block is called with cannot be told when its parent cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([OptionalSkip(), Residual()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)) if x.sum() > -1e9 else x
        return self.blocks[1](self.blocks[0](x, skip=x))


class Remembering(Residual):
    """Keeps what it saw last: tracing must not leave its stand-ins there."""

    seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return super().forward(x)


class ScaledConv(nn.Conv2d):
    """Normalises its weight, so that a factor in it does nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / self.weight.norm(), self.bias)


def with_scaled_convolution() -> nn.Module:
    model = Residual()
    model.conv1 = ScaledConv(4, 4, 3, padding=1)
    return model


def with_parametrised_convolution() -> nn.Module:
    model = Residual()
    nn.utils.parametrizations.weight_norm(model.conv1)
    return model


def with_shared_block() -> nn.Module:
    block = Residual()
    return nn.Sequential(block, nn.ReLU(), block)


def without_statistics() -> nn.Module:
    model = Residual()
    model.bn1 = nn.BatchNorm2d(4, track_running_stats=False)
    return model


def with_hook(on: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = Residual()
        model.get_submodule(on).register_forward_hook(lambda module, args, output: 2 * output)
        return model

    return build


CASES: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "residual": (Residual, ["bn1", "bn2"]),
    "output used twice": (OutputUsedTwice, []),
    "convolution called twice": (ConvolutionCalledTwice, []),
    "norm called twice": (NormCalledTwice, []),
    "norm before": (PreActivation, ["bn2"]),
    "weight used elsewhere": (WeightUsedElsewhere, []),
    "untraceable": (Branching, ["blocks.0.bn1", "blocks.0.bn2", "blocks.1.bn1", "blocks.1.bn2"]),
    "optional argument": (OptionalSkip, ["bn1"]),
    "optional argument inside": (SkippingInside, ["blocks.1.bn1", "blocks.1.bn2"]),
    "by name": (ByName, ["bn1"]),
    "remembering": (Remembering, ["bn1", "bn2"]),
    "own arithmetic": (with_scaled_convolution, ["bn2"]),
    "parametrised": (with_parametrised_convolution, ["bn2"]),
    "shared block": (with_shared_block, []),
    "no running statistics": (without_statistics, ["bn2"]),
    "hook on the convolution": (with_hook("conv1"), ["bn2"]),
    "hook on the norm": (with_hook("bn1"), ["bn2"]),
    "no norm": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()), []),
}


@pytest.mark.parametrize("name", CASES)
def test_only_what_is_exact_is_folded(name: str) -> None:
    build, expected = CASES[name]
    model = build().double()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            telling_norm(norm)
    x = torch.randn(2, 3 if isinstance(model, Branching) else 4, 8, 8, dtype=torch.float64)
    assert check_fold(model, x) == expected


def test_tracing_leaves_nothing_on_the_modules() -> None:
    model = Remembering().eval()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    assert len(find_pairs(model)) == 2
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before


def test_tensorflow_padding() -> None:
    same = pytest.importorskip("timm.layers").Conv2dSame(4, 6, 3, stride=2)
    model = nn.Sequential(same, telling_norm(nn.BatchNorm2d(6))).double()
    assert check_fold(model, torch.randn(2, 4, 7, 8, dtype=torch.float64)) == ["1"]


def test_norms_of_other_libraries() -> None:
    layers = pytest.importorskip("timm.layers")
    frozen = pytest.importorskip("torchvision.ops").FrozenBatchNorm2d(6)
    for norm in (frozen, layers.BatchNormAct2d(6, act_layer=nn.SiLU, drop_layer=nn.Dropout2d)):
        model = nn.Sequential(nn.Conv2d(4, 6, 3), telling_norm(norm)).double()
        assert check_fold(model, torch.randn(2, 4, 7, 7, dtype=torch.float64)) == ["1"]
    assert [type(step) for step in fold(model)[0][1]] == [nn.Dropout2d, nn.SiLU]


TIMM = {
    "test_efficientnet": 0,
    "test_resnet": 0,
    "test_byobnet": 0,
}
"""timm's network → norms that cannot be folded."""
TIMM_SLOW = {
    "tf_efficientnet_lite0": 0,
    "mobilenetv4_conv_small": 0,
    "mobilenetv1_100": 0,
    "mobilenetv2_050": 0,
    "mobilenetv3_small_050": 0,
    "efficientnet_b0": 0,
    "mobilenetv4_hybrid_medium": 8,
    "resnet50": 0,
    "resnetv2_50": 17,
    "densenet121": 62,
    "regnety_002": 0,
    "ghostnet_050": 0,
    "repvgg_a0": 17,
    "mobileone_s0": 35,
    "fastvit_t8": 24,
    "mobilevit_xxs": 0,
    "efficientvit_b0": 0,
    "efficientformer_l1": 0,
    "levit_128s": 48,
    "convnext_atto": 0,
    "tiny_vit_5m_224": 0,
    "dla34": 0,
    "rexnet_100": 0,
}


@pytest.mark.parametrize("name", [*TIMM, *(pytest.param(name, marks=pytest.mark.slow) for name in TIMM_SLOW)])
def test_networks_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = timm.create_model(name, pretrained=False).double()
        config = model.pretrained_cfg
        size = config["input_size"][-1] if config.get("fixed_input_size") else 64
        x = torch.randn(2, 3, size, size, dtype=torch.float64)
        make_telling(model, (x,))
        folded = check_fold(model, x, tolerance=1e-10)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) - len(folded) == (TIMM | TIMM_SLOW)[name]


TORCHVISION = ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "efficientnet_b0", "googlenet"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "mobilenet_v3_small" else pytest.mark.slow) for name in TORCHVISION]
)
def test_networks_of_torchvision(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = models.get_model(name, weights=None).double()
        x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
        make_telling(model, (x,))
        assert check_fold(model, x, tolerance=1e-10)


@pytest.mark.slow
def test_a_detector_of_torchvision() -> None:
    detection = pytest.importorskip("torchvision.models.detection")
    model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None).eval()
    images = [torch.rand(3, 64, 64)]
    made = condconv.optimize_for_inference(model)
    assert made.inference_form.folded and not made.inference_form.left
    features = [tensors(net.backbone(images[0][None])) for net in (made, model)]
    assert all(difference(a, b) <= 1e-5 for a, b in zip(*features, strict=True))
    assert made(images)[0].keys() == model(images)[0].keys()
