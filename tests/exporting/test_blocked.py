"""Kernels mixed in ONNX Runtime's own layout: used where they give the same, at one image and in a loop."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import condconv
from condconv.conversion.apply import conditional_layers
from condconv.exporting import blocked, onnx_session
from condconv.exporting.looped import of_one_image
from condconv.layers import ConditionalConv2d
from tests.exporting.networks import images, network

onnx = pytest.importorskip("onnx")
for package in ("onnxscript", "onnxruntime"):
    pytest.importorskip(package)


@pytest.fixture(scope="module", params=[1, "dynamic"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    return condconv.export(network(), path, batch=request.param, example=images(1)).path


def agree(path: Path) -> None:
    session = onnx_session(path)
    x = images(1)
    got = torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
    torch.testing.assert_close(got, network()(x).detach(), rtol=1e-4, atol=1e-4)


def test_all_convolutions_are_in_blocks(file: Path) -> None:
    made = blocked.in_blocks(file)
    assert made is not None
    graph = of_one_image(made)[0].graph
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    constants = {constant.name for constant in graph.initializer}
    mixed = [node for node in convolutions if node.input[1] not in constants]
    conditional = [layer for _, layer in conditional_layers(network()) if isinstance(layer, ConditionalConv2d)]
    assert len(mixed) == len(conditional) > 1
    assert not any(name.endswith("_numbers") for name in constants)


def test_it_is_used_and_says_so(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "condconv"):
        agree(file)
    assert "net.onnx: mixes kernels in blocks; error" in caplog.text


def refused(path: Path) -> Any:
    raise RuntimeError("another version")


@pytest.mark.parametrize(("instead", "reason"), [(refused, "another version"), (lambda path: None, "none")])
def test_the_file_as_it_is_where_blocks_cannot_be_had(
    instead: Any, reason: str, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(blocked, "in_blocks", instead)
    with caplog.at_level(logging.INFO, "condconv"):
        agree(file)
    assert "runs as it is" in caplog.text and reason in caplog.text


def test_the_file_as_it_is_where_blocks_compute_something_else(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    laid_out = blocked._laid_out

    def swapped(constant: Any, kernels: Any) -> Any:
        found = laid_out(constant, kernels)
        return found and found._replace(first=found.first + 1)

    monkeypatch.setattr(blocked, "_laid_out", swapped)
    with caplog.at_level(logging.INFO, "condconv"):
        agree(file)
    assert "runs as it is; kernels in blocks: error" in caplog.text


def test_a_static_network_and_a_file_of_someone_else(tmp_path: Path) -> None:
    static = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3)).eval()
    path = condconv.export(static, tmp_path / "net.onnx", example=images(1)).path
    assert blocked.in_blocks(path) is None
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    onnx_session(path).run(None, {"images": images(3).numpy()})
