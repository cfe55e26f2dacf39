"""compress: what routing leaves unused goes, nothing beyond the loss that was allowed, and the file says so."""

from __future__ import annotations

import copy
import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import condconv
from condconv.cli.main import main
from condconv.conversion.apply import conditional_layers
from condconv.errors import ArgumentError, ConversionError
from condconv.routers import Router
from tests.conversion.networks import difference
from tests.exporting.networks import images, network
from tests.runs.writing import write_run

pytest.importorskip("timm")


def routed(variant: str = "condconv") -> nn.Module:
    """A small network whose routers tell images apart."""
    model = network(variant)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Router):
                last: Any = module.body[-1]
                last.weight.mul_(30)
    return model


def batches(model: nn.Module, number: int = 24) -> list[tuple[Tensor, Tensor]]:
    """Images with the network's own answers as labels: its accuracy is 100 %."""
    x = images(number)
    with torch.no_grad():
        labels = model(x).argmax(1)
    return list(zip(x.split(8), labels.split(8), strict=True))


def likeness(model: nn.Module, loader: Any) -> Any:
    """A score without steps: 100 less how far the outputs are from the network's, in percent of the largest."""
    x = torch.cat([batch for batch, _ in loader])
    expected = model(x).detach()
    return lambda made: 100 - 100 * difference(made(x).detach(), expected)


def test_dead_and_equal_experts_and_constant_routing() -> None:
    model = routed()
    (first, layer), (last, constant) = conditional_layers(model)
    with torch.no_grad():
        layer.weight[1].copy_(layer.weight[0])
        body: Any = constant.router.body
        body[-1].weight.zero_()
        body[-1].bias.copy_(torch.tensor([3.0, -1.0, 0.0]))
    loader = batches(model)
    done = condconv.compress(model, loader, max_loss=0.01, score=likeness(model, loader), max_bytes=10**9)
    form: Any = done.network.inference_form
    assert form.static == (last,) and type(done.network.get_submodule(last)) is nn.Conv2d
    assert form.layers[first].kernels == 2
    x = images(5)
    assert difference(done.network(x), model(x).detach()) < 0.03
    assert done.steps[-1].score >= done.steps[0].score - 0.01 and done.small_enough
    assert done.steps[-1].macs < done.steps[0].macs


@pytest.mark.parametrize("max_loss", [0.0, 0.3, 5.0])
def test_no_more_is_lost_than_is_allowed(max_loss: float) -> None:
    model = routed("dynamic_convolution")
    loader = batches(model)
    score = likeness(model, loader)
    before = copy.deepcopy(model.state_dict())
    done = condconv.compress(model, loader, max_loss=max_loss, max_bytes=1, score=score)
    assert score(done.network) == pytest.approx(done.steps[-1].score, abs=1e-4)
    assert min(step.score for step in done.steps) >= done.steps[0].score - max_loss - 1e-3  # to rounding
    assert not done.small_enough and "allow more with max_loss" in str(done)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


def test_more_loss_makes_smaller_files() -> None:
    model = routed()
    loader = batches(model)
    score = likeness(model, loader)
    sizes = [
        condconv.compress(model, loader, max_loss=loss, max_bytes=1, score=score).steps[-1].bytes
        for loss in (0.5, 5.0, 50.0)
    ]
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize("variant", ["condconv", "odconv"])
def test_the_file_has_that_size_and_opens(variant: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = condconv.create_model("mobilenetv1_025", num_classes=4, in_chans=1, output_stride=4)
    model = condconv.convert(model, variant, num_experts=3, init="fresh", targets="blocks.4").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    x = torch.randn(16, 1, 12, 12)
    loader = [(x, model(x).argmax(1))]
    done = condconv.compress(model, loader, max_loss=30.0)
    assert done.of_accuracy and done.steps[0].score == 100
    condconv.save_pretrained(done.network, tmp_path / "small", input_size=(1, 12, 12))
    assert (tmp_path / "small" / "model.safetensors").stat().st_size == pytest.approx(done.steps[-1].bytes, rel=0.3)
    again = condconv.from_pretrained(tmp_path / "small")
    assert torch.equal(again(x), done.network(x))
    condconv.save_pretrained(again, tmp_path / "again", input_size=(1, 12, 12))  # saved once more, as it was opened
    assert torch.equal(condconv.from_pretrained(tmp_path / "again")(x), again(x))
    with pytest.raises(ConversionError, match="inference form"):
        condconv.compress(again, loader)


@pytest.mark.parametrize("experts", [pytest.param("f32", marks=pytest.mark.slow), "int8"])
def test_inference_forms_are_saved(experts: Any, tmp_path: Path) -> None:
    model = condconv.create_model("condconv_mobilenetv1_025", num_classes=4, num_experts=2).eval()
    form = condconv.optimize_for_inference(model, experts=experts, rest="bf16", skip_below=0.25)
    condconv.save_pretrained(form, tmp_path, input_size=(3, 32, 32))
    again: Any = condconv.from_pretrained(tmp_path)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), form(x))
    assert again.inference_form == form.inference_form and "static" in str((tmp_path / "config.json").read_text())


def test_the_command_and_its_table_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    run, _ = write_run(tmp_path, name="run")
    words = ["--workers", "0", "--limit", "20", "--max-loss", "100", "--device", "cpu"]
    assert main(["compress", str(run), "--out", str(tmp_path / "small"), *words]) == 0
    said = capsys.readouterr().out
    assert "static network, f32" in said and f"network: {tmp_path / 'small'}" in said
    assert (tmp_path / "small" / "compression.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "small" / "compression.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["step"] == "as trained" and int(rows[-1]["bytes"]) < int(rows[0]["bytes"])
    small = ["--data", "digits", "--workers", "0", "--out", str(tmp_path / "evaluation")]
    assert main(["eval", str(tmp_path / "small"), *small]) == 0
    for wrong, message in (
        (["--max-size", "0"], "--max-size=0.0 must be a number, above 0"),
        (["--max-loss", "-1"], "max_loss=-1.0 must be a number, at least 0"),
        (["--limit", "0"], "--limit=0 must be at least 1"),
    ):
        assert main(["compress", str(run), "--out", str(tmp_path / "no"), "--workers", "0", *wrong]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_bad_arguments() -> None:
    model = routed()
    loader = batches(model)
    static = nn.Sequential(nn.Conv2d(3, 2, 3))
    for error, message, given in (
        (ArgumentError, "can be gone through once", {"loader": iter(loader)}),
        (ArgumentError, "gives no batches", {"loader": 3}),
        (ConversionError, "gives no batch", {"loader": []}),
        (ArgumentError, "gives no images and labels.*pass score=", {"loader": [x for x, _ in loader]}),
        (ConversionError, "has no conditional layer", {"model": static}),
        (ArgumentError, "score=3 is no function", {"score": 3}),
        (ArgumentError, "max_bytes=0 must be at least 1", {"max_bytes": 0}),
        (ArgumentError, "is not a torch.nn.Module", {"model": 3}),
    ):  # fmt: skip
        arguments: dict[str, Any] = {"model": model, "loader": loader, **given}
        with pytest.raises(error, match=message):
            condconv.compress(**arguments)
