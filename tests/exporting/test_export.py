"""Exporting: the file computes what the network does at every batch, says what it is, or is not there."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import condconv
from condconv.conversion.same_padding import same_padded
from condconv.errors import ArgumentError, ConversionError
from condconv.exporting import About, ExportedNetwork, formats, to_onnx
from condconv.exporting.rewriting import PlainLayer, plain_form, static_form
from condconv.models.specs import SPECS
from condconv.routers import annealed_gates
from condconv.variants import variants
from tests.contract.cases import LAYERS, MIXTURES, OTHERS, example_input, example_layer, name_of
from tests.exporting.networks import SIZE, images, network, settled

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)

ANY_BATCH = [name for name, kind in formats.FORMATS.items() if not kind.one_image]


def have(format: str) -> None:
    for package in formats.writer(format).PACKAGES:
        pytest.importorskip(package)


def file(folder: Path, format: str = "onnx") -> Path:
    return folder / f"net{formats.FORMATS[format].suffix}"


@torch.no_grad()
def check(model: nn.Module, path: Path, size: tuple[int, ...] = SIZE, tolerance: float = 1e-4) -> None:
    """Apart from what `export` itself compares: other images, through the loader that `predict` uses."""
    exported = ExportedNetwork(path)
    for batch in (1, 2, 5):
        x = images(batch, size) + 0.1
        expected = model(x)
        assert float((exported(x) - expected).abs().max() / expected.abs().max()) < tolerance


@pytest.mark.parametrize("format", ANY_BATCH)
def test_any_batch(format: str, tmp_path: Path) -> None:
    check_any_batch("condconv", format, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("variant", variants.names())
@pytest.mark.parametrize("format", ANY_BATCH)
def test_any_batch_of_every_variant(variant: str, format: str, tmp_path: Path) -> None:
    check_any_batch(variant, format, tmp_path)


def check_any_batch(variant: str, format: str, tmp_path: Path) -> None:
    have(format)
    model = network(variant)
    before = copy.deepcopy(model.state_dict())
    done = condconv.export(model, file(tmp_path, format), example=images(2))
    assert done.batches == (1, 2, 5) and done.about.batch is None and 0 < done.error < 1e-4
    check(model, done.path)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("format", ANY_BATCH)
def test_a_fixed_batch_serves_any_number_of_images(format: str, batch: int, tmp_path: Path) -> None:
    have(format)
    done = condconv.export(network(), file(tmp_path, format), batch=batch, example=images(2))
    assert done.about.batch == batch and done.batches == (batch,)
    check(network(), done.path)


def test_a_fixed_batch_of_a_static_network_is_one_call(tmp_path: Path) -> None:
    import onnx

    static = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    done = condconv.export(static, file(tmp_path), batch=2, example=images(1))
    assert "Scan" not in [node.op_type for node in onnx.load(done.path).graph.node]
    check(static, done.path)


@pytest.mark.slow
@pytest.mark.parametrize("variant", variants.names())
def test_executorch(variant: str, tmp_path: Path) -> None:
    have("executorch")
    done = condconv.export(network(variant), file(tmp_path, "executorch"), batch=1, example=images(1))
    check(network(variant), done.path)
    assert ExportedNetwork(done.path).about == done.about


@pytest.mark.slow
@pytest.mark.parametrize("cls", LAYERS, ids=name_of)
def test_every_layer(cls: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = example_layer(cls, num_experts=3).eval()
    x = example_input(cls, 2)
    condconv.export(layer, tmp_path / "layer.onnx", example=x)
    exported = ExportedNetwork(tmp_path / "layer.onnx")
    torch.testing.assert_close(exported(x), layer(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "cls",
    [
        cls if cls is condconv.ODConv2d else pytest.param(cls, marks=pytest.mark.slow)
        for cls in OTHERS
        if cls.static_type in (nn.Conv2d, nn.Linear)
    ],
    ids=name_of,
)
def test_layers_that_are_more_than_mixtures(cls: Any, tmp_path: Path) -> None:
    for channels in (8, 40):  # Factors are cheaper on the maps of the one, on the kernels of the other.
        torch.manual_seed(0)
        layer, x = example_layer(cls, channels).eval(), example_input(cls, 2, channels)
        for gate in annealed_gates(layer):
            gate.anneal(gate.end)
        done = condconv.export(layer, tmp_path / "layer.onnx", example=x, twin=channels == 8)
        assert done.batches == (1, 2, 5) and done.error < 1e-4
        torch.testing.assert_close(ExportedNetwork(done.path)(x), layer(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "how",
    [
        {"stride": 2, "padding": 2, "dilation": 2, "groups": 4, "bias": False},
        {"padding": "same", "groups": 8},
        {"padding": 1, "padding_mode": "reflect"},
        {"stride": 2, "same": True},
        {"router": lambda site, slices: condconv.PooledLinear(
            site.in_channels, slices.size, gate=condconv.TopKGate(condconv.SigmoidGate(), 2))},
        {"router": lambda site, slices: condconv.PooledLinear(site.in_channels, slices.size, hidden_channels=4)},
    ],
    ids=["geometry", "depthwise", "reflect", "SAME", "top-k", "hidden"],
)  # fmt: skip
def test_geometries_and_routers(how: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    cls: Any = same_padded(condconv.CondConv2d) if how.pop("same", False) else condconv.CondConv2d
    layer = cls(8, 16, 3, num_experts=3, **how)
    for buffer in layer.buffers():
        buffer.uniform_(0.5, 2)
    layer.eval()
    x = torch.randn(3, 8, 9, 9)
    condconv.export(layer, tmp_path / "layer.onnx", example=x)
    torch.testing.assert_close(ExportedNetwork(tmp_path / "layer.onnx")(x), layer(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_goes_into_the_experts(bias: bool) -> None:
    model = settled(nn.Sequential(condconv.CondConv2d(3, 8, 3, bias=bias), nn.BatchNorm2d(8)), images(16))
    plain: Any = plain_form(model)
    assert isinstance(plain[0], PlainLayer) and isinstance(plain[1], nn.Identity)
    torch.testing.assert_close(plain(images(1)), model(images(1)).detach(), rtol=1e-4, atol=1e-5)


def nodes(model: nn.Module, size: tuple[int, ...]) -> int:
    graph = to_onnx.graph(model, images(1, size), 1, ["output"], "").graph
    return len(graph.node)


def check_nodes(name: str, most: float) -> None:
    size = (3, 96, 96)
    plain = plain_form(condconv.create_model(name, num_classes=10).eval())
    ratio = nodes(plain, size) / nodes(static_form(plain), size)
    assert 1 < ratio <= most


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SPECS if SPECS[name].variant in MIXTURES and "ssd" not in name])
def test_the_graphs_of_the_zoo(name: str) -> None:
    # A router for each layer is five nodes more than one for each block of three.
    check_nodes(name, 2.5 if SPECS[name].variant == "condconv" else 4.6)


@pytest.mark.slow
@pytest.mark.parametrize("format", ANY_BATCH)
# With random weights and maps of 2x2 the pose networks are up to 2 % from themselves in f64, in eager mode too.
@pytest.mark.parametrize("name", [name for name in SPECS if "pose" not in name])
def test_the_zoo(name: str, format: str, tmp_path: Path) -> None:
    have(format)
    torch.manual_seed(0)
    size = (3, 300, 300) if "ssd" in name else (3, 64, 64)
    experts = 2 if SPECS[name].num_experts > 1 else None
    model = settled(condconv.create_model(name, num_classes=10, num_experts=experts), images(8, size))
    done = condconv.export(model, file(tmp_path, format), example=images(5, size))
    assert done.error < 1e-4
    if "ssd" not in name:
        # Random weights make large outputs of rounding: eager mode is 5e-5 of the largest from itself in f64.
        check(model, done.path, size, tolerance=1e-3)


class Detector(nn.Module):
    """Two named outputs, as a detector has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = condconv.CondConv2d(3, 4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.layer(x)
        return {"boxes": y[:, :, 0], "maps": y.sigmoid()}


@pytest.mark.parametrize("batch", ["dynamic", 1])
def test_several_outputs_keep_their_names(batch: Any, tmp_path: Path) -> None:
    import onnx

    model = Detector().eval()
    done = condconv.export(model, tmp_path / "net.onnx", example=images(1), batch=batch)
    graph = onnx.load(done.path).graph
    assert [output.name for output in graph.output] == ["boxes", "maps"] and graph.input[0].name == "images"
    found = ExportedNetwork(done.path)(images(2))
    for got, expected in zip(found, model(images(2)).values(), strict=True):
        torch.testing.assert_close(got, expected.detach(), rtol=1e-4, atol=1e-5)
    assert done.about.classes == ()


def test_the_file_says_how_images_are_prepared(tmp_path: Path) -> None:
    told = About("pets", 7, (1, 1, 1), (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), ("cät", 'd"o<g'), native=True)
    for format in ANY_BATCH:
        have(format)
        net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        condconv.export(net, file(tmp_path, format), batch=1, example=images(1), about=told)
        found = ExportedNetwork(file(tmp_path, format)).about
        assert found == About("pets", 1, SIZE, told.mean, told.std, told.classes, native=True)


def test_the_static_twin_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("condconv.exporting.verb._BURST_S", 0.0)
    done = condconv.export(network(), tmp_path / "net.onnx", batch=2, example=images(1), twin=True)
    assert done.beside is not None and done.beside.bytes == done.bytes == (tmp_path / "net.onnx").stat().st_size
    assert done.beside.twin_bytes < done.bytes and done.beside.twin_ms > 0 and done.beside.ratio > 0
    assert "static twin" in str(done) and "batch 2" in str(done)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    static = nn.Sequential(nn.Conv2d(3, 2, 3))
    assert condconv.export(static, tmp_path / "net.onnx", example=images(1), twin=True).beside is None


def test_a_file_that_computes_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file(tmp_path)
    path.write_text("an earlier export")

    def spoilt(model: nn.Module) -> nn.Module:
        plain = plain_form(model)
        layer = next(module for module in plain.modules() if isinstance(module, PlainLayer))
        layer.bank.rows[0] *= 1.1
        return plain

    monkeypatch.setattr("condconv.exporting.verb.plain_form", spoilt)
    with pytest.raises(ConversionError, match="onnx differs from the network by .* nothing was written"):
        condconv.export(network(), path, example=images(1))
    assert path.read_text() == "an earlier export" and len(list(tmp_path.iterdir())) == 1


def test_what_an_exporter_cannot_express_is_said(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) if bool(x.sum() > 0) else x.amax((2, 3))

    with pytest.raises(ConversionError, match="export: onnx cannot express the network"):
        condconv.export(Branches(), tmp_path / "net.onnx", example=images(1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"path": "net.bin"}, "has no suffix of a known format; use one of .onnx"),
        ({"path": "net.pt2", "format": "onnx"}, "does not end in .onnx"),
        ({"format": "onxx"}, "did you mean 'onnx'"),
        ({"format": "tflite"}, "is not written here; convert the .onnx file"),
        ({"batch": 0}, "batch=0 must be at least 1"),
        ({"batch": "two"}, "batch='two' must be an integer"),
        ({"path": "net.pte"}, "batch='dynamic' is not possible for format='executorch'"),
        ({"example": torch.zeros(0, 3, 8, 8)}, "must be images"),
        ({"example": torch.zeros(1, 5, 8, 8)}, "does not run on images of 5x8x8"),
        ({"model": 3}, "is not a torch.nn.Module"),
    ],
)  # fmt: skip
def test_bad_arguments(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    if "pte" in str(changed.get("path")):
        have("executorch")
    given: dict[str, Any] = {"model": network(), "path": "net.onnx", **changed}
    given["path"] = tmp_path / given["path"]
    with pytest.raises(ArgumentError, match=message):
        condconv.export(**given)
    assert not list(tmp_path.iterdir())


def test_networks_that_cannot_be_exported(tmp_path: Path) -> None:
    unrouted = condconv.CondConv2d(3, 4, 3, router=False)
    with pytest.raises(ArgumentError, match="has no router"):
        condconv.export(unrouted, tmp_path / "net.onnx", example=images(1))
    counted = nn.Sequential(nn.Flatten(0), nn.Linear(3 * 48 * 48, 2))
    with pytest.raises(ConversionError, match=r"gives no tensors \(B, …\)"):
        condconv.export(counted, tmp_path / "net.onnx", example=images(1))
    packed = condconv.optimize_for_inference(network())
    with pytest.raises(ConversionError, match="inference form"):
        condconv.export(packed, tmp_path / "net.onnx", example=images(1))


def test_a_runtime_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats.writer("openvino"), "PACKAGES", ("no_such_runtime",))
    with pytest.raises(ArgumentError, match=r"needs the package no_such_runtime.*pip install 'condconv\[export\]'"):
        condconv.export(network(), tmp_path / "net.xml", example=images(1))


INT8 = [("onnx", "dynamic"), *(pytest.param(name, 1, marks=pytest.mark.slow) for name in ("onnx", "openvino"))]


@pytest.mark.parametrize(("format", "batch"), INT8)
def test_int8(format: str, batch: Any, tmp_path: Path) -> None:
    have(format)
    if format == "openvino":
        pytest.importorskip("nncf")
    model, seen = network(), images(12)
    path = file(tmp_path, format)
    done = condconv.export(model, path, batch=batch, example=seen[:2], int8=seen)
    most = 0.5 if format == "onnx" else 0.8  # NNCF rounds mixed kernels more coarsely
    assert done.int8 is not None and done.error <= 1e-4 < done.int8.error < most
    assert done.bytes == sum(part.stat().st_size for part in tmp_path.iterdir())
    assert done.int8.same_answer is not None and "then int8" in str(done)
    made = ExportedNetwork(path)
    assert made.about == done.about
    x = images(3)
    got, expected = made(x), model(x)
    assert isinstance(got, Tensor) and got.shape == expected.shape
    error = float((got - expected).detach().abs().max() / expected.detach().abs().max())
    assert 1e-4 < error < most


def test_int8_that_cannot_be(tmp_path: Path) -> None:
    have("openvino")
    for given, message in (
        ({"path": "net.pt2"}, "int8='pt2' is a format without int8 here; use onnx or openvino"),
        ({"path": "net.xml"}, "batch='dynamic' cannot be had in int8 by openvino.*pass batch=1"),
        ({"path": "net.onnx", "int8": torch.zeros(0, 3, 8, 8)}, "must be images"),
        ({"path": "net.onnx", "int8": 3}, "int8='int' is not a tensor"),
    ):  # fmt: skip
        arguments: dict[str, Any] = {"model": network(), "example": images(1), "int8": images(2), **given}
        arguments["path"] = tmp_path / arguments["path"]
        with pytest.raises(ArgumentError, match=message):
            condconv.export(**arguments)
    assert not list(tmp_path.iterdir())
