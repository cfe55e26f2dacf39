"""Which layers are selected, and the blocks and stages that selection and sharing rest on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import condconv
from condconv.conversion.blocks import find_blocks, has_weights
from condconv.conversion.select import stages_of
from condconv.conversion.sites import survey
from condconv.errors import ArgumentError, ConversionError
from condconv.variants import variants


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, 2, 1)
        self.expand = nn.Conv2d(2, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


class Inverted(nn.Module):
    """Declared in another order than it is called in."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.project = nn.Conv2d(2 * channels, channels, 1)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, stride, 1, groups=2 * channels)
        self.expand = nn.Conv2d(channels, 2 * channels, 1)
        self.se = SqueezeExcite(2 * channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.project(self.se(self.depthwise(self.expand(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.stages = nn.Sequential(
            nn.Sequential(Inverted(4), Inverted(4)), nn.Sequential(Inverted(4, 2), Inverted(4), Inverted(4))
        )
        self.up = nn.ConvTranspose2d(4, 4, 2, 2)
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.up(self.stages(self.stem(x))).mean((2, 3)))


SIZE = (3, 16, 16)


def converted(targets: object, variant: str = "condconv", net: nn.Module | None = None) -> tuple[str, ...]:
    return condconv.plan(net or Net(), variant, targets=targets, input_size=SIZE).converted


def test_depth_is_the_order_of_execution() -> None:
    found = survey(Net(), variants["condconv"], SIZE)
    names = [site.name for site in found.convolutions]
    assert names[:4] == ["stem", "stages.0.0.expand", "stages.0.0.depthwise", "stages.0.0.project"]
    without = [site.name for site in survey(Net(), variants["condconv"], None).convolutions]
    assert without[1] == "stages.0.0.project"


def test_default_of_condconv_is_the_second_half() -> None:
    # 17 convolutions besides squeeze-excite: stem, 5 × 3, up; the second half starts at the 9th.
    names = [site.name for site in survey(Net(), variants["condconv"], SIZE).convolutions]
    assert len(names) == 17
    assert converted(None) == tuple(names[8:])


class Residual(nn.Module):
    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Identity() if before == channels else nn.Conv2d(before, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.shortcut(x))


@pytest.mark.parametrize("size", [None, SIZE])
def test_a_shortcut_is_not_converted_without_its_block(size: tuple[int, ...] | None) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), Residual(4, 4), Residual(4, 8), Residual(8, 8), Residual(8, 8))
    plan = condconv.plan(net, input_size=size)  # ten convolutions, and the sixth is the shortcut
    assert plan.converted == ("3.conv1", "3.conv2", "4.conv1", "4.conv2")
    assert "shortcut of a block in the first half" in str(plan)
    wider = nn.Sequential(*net[:3], Residual(8, 8))  # eight, and the fifth is the convolution before it
    assert condconv.plan(wider, input_size=size).converted == ("2.conv2", "2.shortcut", "3.conv1", "3.conv2")


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(16, 8), nn.Linear(8, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.outer(torch.relu(self.inner(x)))


@pytest.mark.parametrize("size", [None, SIZE])
def test_networks_whose_blocks_are_linear_are_told_that_the_default_takes_convolutions(
    size: tuple[int, ...] | None,
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Flatten(2), Mixer(), Mixer())
    with pytest.warns(UserWarning, match="the 2 blocks of Sequential hold linear layers alone.*pass targets"):
        assert condconv.plan(net, input_size=size).converted == ("0",)
    assert len(condconv.plan(net, targets="linear", input_size=size).converted) == 4


def test_default_of_dynamic_convolution_is_all_but_the_first() -> None:
    names = converted(None, "dynamic_convolution")
    assert len(names) == 16 and "stem" not in names and "head" not in names
    assert not any("se." in name for name in names)


@pytest.mark.parametrize(
    ("target", "count", "example"),
    [
        ("pointwise", 10, "stages.0.0.expand"),
        ("depthwise", 5, "stages.1.2.depthwise"),
        ("dense", 1, "stem"),
        ("transposed", 1, "up"),
        ("linear", 1, "head"),
        ("last 2 blocks", 6, "stages.1.1.expand"),
        ("last 1 stage", 9, "stages.1.0.project"),
        ("last 2 stages", 15, "stages.0.0.expand"),
        (r"^stages\.1\.", 15, "stages.1.0.se.reduce"),  # named on purpose: squeeze-excite included
        (lambda name, module: isinstance(module, nn.Linear), 1, "head"),
        (["dense", "^head$"], 2, "head"),
        (["last 1 block", lambda name, module: name == "stem"], 4, "stem"),
    ],
)
def test_targets(target: object, count: int, example: str) -> None:
    names = converted(target)
    assert len(names) == count and example in names


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("stages.9", "matches no layer"),
        ("stages.1.0.exband", r"did you mean 'stages.1.0.expand'.*stages\.\*\.\*\.expand \(5\)"),
        ("depth-wise", "did you mean 'depthwise'"),
        ("last 9 blocks", "asks for 9 of the 5 blocks"),
        ("last 0 stages", "asks for 0 of the 2 stages"),
        ("(", "not a regular expression"),
        (3.5, "targets=.*"),
    ],
)
def test_targets_that_match_nothing_or_mean_nothing(target: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        converted(target if not isinstance(target, float) else [target])


def test_a_network_without_layers() -> None:
    with pytest.raises(ArgumentError, match="nothing to convert"):
        condconv.plan(nn.Sequential(nn.ReLU()))


def test_stages_of_a_flat_sequence_need_the_input_size() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(Inverted(4), Inverted(4), Inverted(4, 2), Inverted(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.blocks(x)

    found = survey(Flat(), variants["condconv"], (4, 8, 8))
    assert stages_of(found, "targets") == [["blocks.0", "blocks.1"], ["blocks.2", "blocks.3"]]
    with pytest.raises(ConversionError, match="pass input_size"):
        condconv.plan(Flat(), targets="last 1 stage")
    with pytest.raises(ConversionError, match="plan: warehouses='stage': .* pass input_size"):
        condconv.plan(Flat(), "kernel_warehouse")


def blocks_of(net: nn.Module) -> dict[str, tuple[str, ...]]:
    layers = [name for name, module in net.named_modules() if has_weights(module)]
    return {block.name: block.layers for block in find_blocks(net, layers)}


def test_wrapped_backbones_and_heads_are_no_blocks() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    assert blocks_of(nn.Sequential(Plain(), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))) == {}
    assert set(blocks_of(nn.Sequential(Plain(), Plain()))) == {"0", "1"}


@pytest.mark.parametrize(
    ("name", "kind", "count", "stages"),
    [
        ("mobilenetv1_100", "DepthwiseSeparableConv", 13, 5),
        ("mobilenetv2_100", "InvertedResidual", 16, 7),
        ("efficientnet_b0", "InvertedResidual", 15, 7),
        ("resnet18", "BasicBlock", 8, 4),
        ("resnet50", "Bottleneck", 16, 4),
        ("regnetx_002", "Bottleneck", 13, 4),
        ("densenet121", "DenseLayer", 58, 4),
        ("xception41", "SeparableConv2d", 39, None),
    ],
)
def test_blocks_of_timm_networks(name: str, kind: str, count: int, stages: int | None) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        net = timm.create_model(name)
    blocks = blocks_of(net)
    kinds = [type(net.get_submodule(block)).__name__ for block in blocks]
    assert kinds.count(kind) == count
    # MobileNetV2's and EfficientNet's first block is a separable one, and a block too.
    assert len(blocks) == count + (name in ("mobilenetv2_100", "efficientnet_b0"))
    assert stages is None or len({block.rpartition(".")[0] for block in blocks}) == stages


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [
        ("mobilenet_v2", "InvertedResidual", 17),
        ("mobilenet_v3_small", "InvertedResidual", 11),
        ("efficientnet_b0", "MBConv", 16),
        ("resnet18", "BasicBlock", 8),
        ("shufflenet_v2_x0_5", "InvertedResidual", 16),
        ("squeezenet1_0", "Fire", 8),
        ("mnasnet0_5", "_InvertedResidual", 16),
        ("convnext_tiny", "CNBlock", 18),
        ("vgg11", "none", 0),
    ],
)
def test_blocks_of_torchvision_networks(name: str, kind: str, count: int) -> None:
    models = pytest.importorskip("torchvision").models
    with torch.device("meta"):
        net = models.get_model(name, weights=None)
    kinds = [type(net.get_submodule(block)).__name__ for block in blocks_of(net)]
    assert kinds == [kind] * count
