"""The authors' TensorFlow checkpoints: names and layouts, on a checkpoint in that format that the test writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from condconv.errors import CheckpointError
from condconv.models import create_model, load_tensorflow_checkpoint
from tests.models.bundle_writer import write_bundle

SMALL = {"width_multiplier": 0.25, "num_classes": 7}
AVERAGE = "/ExponentialMovingAverage"


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(1)
    network = create_model("condconv_efficientnet_b0_4e", **SMALL)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, 0.0, 0.1)
    return network.eval()


def authors_variables(model: nn.Module, scope: str = "efficientnet-condconv-b0-4e") -> dict[str, Tensor]:
    """The network's tensors as the authors' code names and lays them out.

    Written from its source: the Keras names of conditional layers count over the whole graph and lie below the model's
    own name scope; the numbers of the other layers start anew in each variable scope.
    """
    out: dict[str, Tensor] = {}

    def convolution(name: str, layer: nn.Module) -> None:
        out[f"{name}/kernel"] = layer.weight.permute(2, 3, 1, 0)
        if layer.bias is not None:
            out[f"{name}/bias"] = layer.bias

    def norm(name: str, layer: nn.Module) -> None:
        out[f"{name}/gamma"], out[f"{name}/beta"] = layer.weight, layer.bias
        out[f"{name}/moving_mean"], out[f"{name}/moving_variance"] = layer.running_mean, layer.running_var

    def dense(name: str, layer: nn.Module) -> None:
        out[f"{name}/kernel"], out[f"{name}/bias"] = layer.weight.T, layer.bias

    def conditional(number: int, block: str, layer: nn.Module) -> None:
        suffix = f"_{number}" if number else ""
        n = layer.num_experts
        experts = layer.weight.permute(0, 3, 4, 2, 1).reshape(n, -1)
        out[f"{scope}/model/{block}/cond_conv2d{suffix}/condconv_kernel"] = experts

    convolution(f"{scope}/stem/conv2d", model.conv_stem)
    norm(f"{scope}/stem/tpu_batch_normalization", model.bn1)
    keras = 0
    for index, block in enumerate(block for stage in model.blocks for block in stage):
        name = f"{scope}/blocks_{index}"
        bn = f"{name}/tpu_batch_normalization"
        if hasattr(block, "router"):
            dense(f"{name}/dense", block.router.body[0])
            # The code makes an unused fused convolution first, then expand and project.
            conditional(3 * keras + 1, f"blocks_{index}", block.conv_pw)
            conditional(3 * keras + 2, f"blocks_{index}", block.conv_pwl)
            suffix = f"_{keras}" if keras else ""
            depthwise = block.conv_dw.weight.permute(0, 3, 4, 1, 2).reshape(block.conv_dw.num_experts, -1)
            layer = f"{scope}/model/blocks_{index}/depthwise_cond_conv2d{suffix}"
            out[f"{layer}/depthwise_condconv_kernel"] = depthwise
            keras += 1
        else:
            out[f"{name}/depthwise_conv2d/depthwise_kernel"] = block.conv_dw.weight.permute(2, 3, 0, 1)
            convolution(f"{name}/conv2d", block.conv_pw)
            if hasattr(block, "conv_pwl"):
                convolution(f"{name}/conv2d_1", block.conv_pwl)
        for number, layer in enumerate(getattr(block, f"bn{i}") for i in (1, 2, 3) if hasattr(block, f"bn{i}")):
            norm(bn + (f"_{number}" if number else ""), layer)
        convolution(f"{name}/se/conv2d", block.se.conv_reduce)
        convolution(f"{name}/se/conv2d_1", block.se.conv_expand)
    convolution(f"{scope}/head/conv2d", model.conv_head)
    norm(f"{scope}/head/tpu_batch_normalization", model.bn2)
    dense(f"{scope}/head/dense", model.classifier)
    return {name: tensor.detach().contiguous() for name, tensor in out.items()}


def training_checkpoint(model: nn.Module) -> dict[str, Tensor]:
    """What a training run leaves: other raw weights, the averages, optimiser slots, the step."""
    averages = authors_variables(model)
    raw = {name: tensor + 1 for name, tensor in averages.items()}
    slots = {f"{name}/RMSProp": torch.zeros(1) for name in averages} | {
        f"{name}/RMSProp_1": torch.zeros(1) for name in averages
    }
    return raw | slots | {name + AVERAGE: t for name, t in averages.items()} | {"global_step": torch.tensor(218949)}


def test_loads_the_moving_averages(tmp_path: Path, model: nn.Module) -> None:
    write_bundle(tmp_path / "model.ckpt", training_checkpoint(model))
    loaded = create_model("condconv_efficientnet_b0_4e", **SMALL).eval()
    load_tensorflow_checkpoint(loaded, tmp_path / "model.ckpt")
    state = model.state_dict()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name]) or name.endswith("num_batches_tracked"), name
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def test_loads_the_raw_weights_when_asked_to(tmp_path: Path, model: nn.Module) -> None:
    write_bundle(tmp_path / "model.ckpt", training_checkpoint(model))
    loaded = create_model("condconv_efficientnet_b0_4e", **SMALL)
    load_tensorflow_checkpoint(loaded, tmp_path / "model.ckpt", moving_average=False)
    assert torch.equal(loaded.classifier.bias, model.classifier.bias + 1)


def test_layout_of_experts_by_a_kernel_with_its_own_indices(tmp_path: Path, model: nn.Module) -> None:
    """Element (h, w, i, o) of TensorFlow's kernel is the number h·10⁶ + w·10⁴ + i·100 + o."""
    variables = authors_variables(model)
    layer = model.blocks[4][0].conv_dw
    n, channels, _, height, width = layer.weight.shape
    h, w, c = torch.meshgrid(torch.arange(height), torch.arange(width), torch.arange(channels), indexing="ij")
    name = next(key for key in variables if key.endswith("blocks_8/depthwise_cond_conv2d/depthwise_condconv_kernel"))
    variables[name] = (h * 1e6 + w * 1e4 + c * 100).reshape(1, -1).repeat(n, 1)
    pointwise = model.blocks[4][0].conv_pw
    _, out, inner, _, _ = pointwise.weight.shape
    i, o = torch.meshgrid(torch.arange(inner), torch.arange(out), indexing="ij")
    name = next(key for key in variables if key.endswith("blocks_8/cond_conv2d_1/condconv_kernel"))
    variables[name] = (i * 1000.0 + o).reshape(1, -1).repeat(n, 1)
    write_bundle(tmp_path / "model.ckpt", variables)
    loaded = create_model("condconv_efficientnet_b0_4e", **SMALL)
    load_tensorflow_checkpoint(loaded, tmp_path / "model.ckpt")
    assert loaded.blocks[4][0].conv_dw.weight[1, 3, 0, 2, 1].item() == 2e6 + 1e4 + 300
    assert loaded.blocks[4][0].conv_pw.weight[2, 5, 3, 0, 0].item() == 3005


def test_everything_that_does_not_fit_is_listed_and_nothing_is_loaded(tmp_path: Path, model: nn.Module) -> None:
    variables = authors_variables(model)
    scope = "efficientnet-condconv-b0-4e"
    del variables[f"{scope}/stem/conv2d/kernel"]
    variables[f"{scope}/head/dense/bias"] = torch.zeros(9)
    variables[f"{scope}/blocks_99/dense/bias"] = torch.zeros(4)
    write_bundle(tmp_path / "model.ckpt", variables)
    loaded = create_model("condconv_efficientnet_b0_4e", **SMALL)
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_tensorflow_checkpoint(loaded, tmp_path / "model.ckpt")
    for words in ("missing: conv_stem.weight (8, 3, 3, 3)", "wrong shape: classifier.bias (9,)", "extra: blocks_99"):
        assert words in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.state_dict().items())


def test_another_number_of_experts_is_listed(tmp_path: Path, model: nn.Module) -> None:
    write_bundle(tmp_path / "model.ckpt", authors_variables(model))
    with pytest.raises(CheckpointError, match=r"wrong shape: blocks\.4\.0\.conv_pw\.bank\.weight"):
        load_tensorflow_checkpoint(create_model("condconv_efficientnet_b0_8e", **SMALL), tmp_path / "model.ckpt")


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path / "model.ckpt", {"bert/encoder/kernel": torch.zeros(2, 2)})
    model = create_model("condconv_efficientnet_b0_4e", **SMALL)
    with pytest.raises(CheckpointError, match=r"variables that the authors' .* does not have:\n  bert/encoder"):
        load_tensorflow_checkpoint(model, tmp_path / "model.ckpt")
