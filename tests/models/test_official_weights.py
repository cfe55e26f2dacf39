"""The authors' state dicts, made here in their format by layers written as their papers' code names the tensors."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import condconv
from condconv.models import load_official
from condconv.models.specs import SPECS


class OmniAttention(nn.Module):
    """ODConv's: one linear layer for each factor, as 1x1 convolutions."""

    def __init__(self, conv: Any, n: int) -> None:
        super().__init__()
        inputs, outputs, taps = conv.in_channels, conv.out_channels, conv.kernel_size[0] ** 2
        hidden = max(inputs // 16, 16)
        self.fc, self.bn = nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.channel_fc = nn.Conv2d(hidden, inputs, 1)
        if not inputs == conv.groups == outputs:
            self.filter_fc = nn.Conv2d(hidden, outputs, 1)
        if taps > 1:
            self.spatial_fc = nn.Conv2d(hidden, taps, 1)
        if n > 1:
            self.kernel_fc = nn.Conv2d(hidden, n, 1)

    def forward(self, x: Tensor) -> list[Tensor | None]:
        z = F.relu(self.bn(self.fc(x.mean((2, 3), keepdim=True))))
        heads = [getattr(self, f"{name}_fc", None) for name in ("channel", "filter", "spatial", "kernel")]
        logits = [None if head is None else head(z).flatten(1) for head in heads]
        factors = [None if part is None else part.sigmoid() for part in logits[:3]]
        return [*factors, None if logits[3] is None else logits[3].softmax(1)]


class Omni(nn.Module):
    """A layer of ODConv's networks, one example after the other."""

    def __init__(self, conv: Any, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n, *conv.weight.shape) * 0.2)
        self.attention = OmniAttention(conv, n)
        self.how = conv.stride, conv.padding, conv.dilation, conv.groups

    def forward(self, x: Tensor) -> Tensor:
        channel, filters, spatial, mixing = self.attention(x)
        outputs = []
        for b, image in enumerate(x):
            kernel = self.weight[0] if mixing is None else torch.einsum("n,noikl->oikl", mixing[b], self.weight)
            if spatial is not None:
                kernel = kernel * spatial[b].reshape(kernel.shape[2:])
            y = F.conv2d((image * channel[b, :, None, None])[None], kernel, None, *self.how)
            outputs.append(y if filters is None else y * filters[b, :, None, None])
        return torch.cat(outputs)


class WarehouseAttention(nn.Module):
    """KernelWarehouse's, at the end of its schedule."""

    def __init__(self, inputs: int, cells: int, mixtures: int) -> None:
        super().__init__()
        hidden = max(inputs // 16, 16)
        self.fc1, self.norm1 = nn.Linear(inputs, hidden, bias=False), nn.BatchNorm1d(hidden)
        self.fc2 = nn.Linear(hidden, mixtures * (cells + 1))
        self.cells = cells

    def forward(self, x: Tensor) -> Tensor:
        z = self.fc2(F.relu(self.norm1(self.fc1(x.mean((2, 3)))))).reshape(-1, self.cells + 1)
        return (z / (z.abs().sum(1, keepdim=True) + 1e-3))[:, :-1]


class Shelved(nn.Module):
    """A layer of KernelWarehouse's networks; the warehouse is not its child."""

    def __init__(self, conv: Any, cells: nn.Parameter) -> None:
        super().__init__()
        self.cells = [cells]
        mixtures = conv.weight.numel() // cells[0].numel()
        self.attention = WarehouseAttention(conv.in_channels, len(cells), mixtures)
        self.how, self.shape = (conv.stride, conv.padding, conv.dilation, conv.groups), conv.weight.shape

    def forward(self, x: Tensor) -> Tensor:
        (cells,), (o, i, k, _) = self.cells, self.shape
        size = cells.shape[1:3]
        mixed = (self.attention(x) @ cells.flatten(1)).reshape(len(x), k, k, o // size[0], i // size[1], *size)
        kernels = mixed.permute(0, 3, 5, 4, 6, 1, 2).reshape(len(x), o, i, k, k)
        return torch.cat([F.conv2d(x[b : b + 1], kernels[b], None, *self.how) for b in range(len(x))])


def replaced(net: nn.Module, ours: nn.Module, names: dict[str, str], made: Any) -> nn.Module:
    """The static network with the authors' layers in the places of our conditional ones."""
    for theirs, name in names.items():
        net.set_submodule(theirs, made(net.get_submodule(theirs), ours.get_submodule(name)))
    torch.manual_seed(1)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 1.5)
                for tensor in (module.bias, module.running_mean):
                    tensor.normal_(std=0.1)
    return net.eval()


def shelved(ours: nn.Module, manager: nn.Module) -> Any:
    """Makes KernelWarehouse's layers, and their warehouses in the order in which they are first asked for."""
    held: dict[Any, nn.Parameter] = {}

    def made(conv: Any, layer: Any) -> Shelved:
        common = layer.bank.common()
        if common not in held:
            held[common] = nn.Parameter(torch.randn(*common.cells.shape, 1, 1) * 0.2)
            manager.weights.append(held[common])
        return Shelved(conv, held[common])

    return made


def compared(net: nn.Module, ours: nn.Module, size: int) -> None:
    """Both compute the same, once the weights of the one are in the other."""
    load_official(ours, {f"module.{name}": tensor for name, tensor in net.state_dict().items()})
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = net(x)
        torch.testing.assert_close(ours.eval()(x), expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("n", [1, 4])
def test_odconv_of_a_residual_network(n: int) -> None:
    ours = condconv.create_model("odconv_resnet18", num_classes=5, num_experts=n, width_multiplier=0.25)
    static = condconv.static_twin("odconv_resnet18", num_classes=5, width_multiplier=0.25)
    names = {name: name for name in _conditional(static, "odconv_resnet18")}
    compared(replaced(static, ours, names, lambda conv, _: Omni(conv, n)), ours, 64)


def test_kernel_warehouse_of_a_residual_network() -> None:
    name = "kernel_warehouse_resnet18"
    ours = condconv.create_model(name, num_classes=5, width_multiplier=0.25, budget="2")
    static = condconv.static_twin(name, num_classes=5, width_multiplier=0.25)
    manager = nn.Module()
    manager.weights = nn.ParameterList()
    names = {layer: layer for layer in _conditional(static, name)}
    net = replaced(static, ours, names, shelved(ours, manager))
    net.warehouse_manager = manager
    compared(net, ours, 64)


@pytest.mark.parametrize("name", ["odconv_mobilenetv2_050", "kernel_warehouse_mobilenetv2_050"])
def test_mobile_networks_have_torchvisions_names(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    ours = condconv.create_model(name, num_classes=5)
    net = torchvision.models.mobilenet_v2(num_classes=5, width_mult=0.5)
    theirs = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    static = condconv.static_twin(name, num_classes=5)
    own = [name for name, module in static.named_modules() if isinstance(module, nn.Conv2d)]
    chosen = set(_conditional(static, name))
    names = {other: mine for other, mine in zip(theirs, own, strict=True) if mine in chosen}
    manager = nn.Module()
    manager.weights = nn.ParameterList()
    made = shelved(ours, manager) if "warehouse" in name else lambda conv, _: Omni(conv, 1)
    net = replaced(net, ours, names, made)
    if len(manager.weights):
        net.warehouse_manager = manager
    compared(net, ours, 64)


def test_what_does_not_fit_is_refused_and_nothing_is_loaded() -> None:
    ours = condconv.create_model("odconv_resnet18", num_classes=5, width_multiplier=0.25)
    static = condconv.static_twin("odconv_resnet18", num_classes=5, width_multiplier=0.25)
    names = {name: name for name in _conditional(static, "odconv_resnet18")}
    state = replaced(static, ours, names, lambda conv, _: Omni(conv, 1)).state_dict()
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    lacking = {name: tensor for name, tensor in state.items() if name != "layer2.0.conv1.attention.bn.weight"}
    for changed, message in (
        (lacking, "no tensor 'layer2.0.conv1.attention.bn.weight'"),
        (state | {"layer1.0.conv1.attention.fc3.weight": torch.ones(1)}, "extra: layer1.0.conv1.attention.fc3.weight"),
    ):
        with pytest.raises(condconv.CheckpointError, match=message):
            load_official(ours, changed)
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in before.items())


def _conditional(static: nn.Module, row: str) -> list[str]:
    """Names of the layers that a row makes conditional, in the order of the static network's modules."""
    return [name for name, _ in static.named_modules() if re.fullmatch(SPECS[row].pattern, name)]
