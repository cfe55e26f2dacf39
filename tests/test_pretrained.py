"""A network is opened by one call, whatever it is named by: run folder, saved folder, name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import condconv
from condconv import pretrained
from condconv.cli.main import main
from condconv.errors import ArgumentError, CheckpointError, UnknownNameError
from condconv.models import noted_images
from condconv.routers import Router
from condconv.runs.trained import load_run
from tests.runs.writing import write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, _ = write_run(tmp_path_factory.mktemp("runs"), twin=True, expert_dropout=0.1, gate="softmax")
    return folder


class Elsewhere(nn.Module):
    """A network that create_model does not make."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.third = nn.Conv2d(width, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x).relu()).relu()).mean((2, 3))


def same(one: nn.Module, other: nn.Module, *shape: int) -> bool:
    images = torch.rand(3, *shape)
    with torch.no_grad():
        return torch.equal(one.eval()(images), other.eval()(images))


@pytest.mark.parametrize("network", [None, "static", "widened"])
def test_a_run_folder_gives_its_networks_and_what_they_were_trained_on(run: Path, network: str | None) -> None:
    state = torch.get_rng_state()
    model = condconv.from_pretrained(run, network=network)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training and same(model, load_run(run, network or "conditional"), 1, 8, 8)
    noted = noted_images(model)
    assert noted is not None and noted["label_names"] == tuple(map(str, range(10)))
    config = timm.data.resolve_model_data_config(model)
    assert (config["input_size"], config["mean"], config["std"]) == ((1, 8, 8), (0.305,), (0.376,))


def test_a_network_of_a_run_is_saved_and_opened_again_with_all_that_is_known(run: Path, tmp_path: Path) -> None:
    model = condconv.from_pretrained(run)
    condconv.save_pretrained(model, tmp_path / "saved")
    again = condconv.from_pretrained(tmp_path / "saved")
    assert same(model, again, 1, 8, 8) and noted_images(again) == noted_images(model) is not None
    gates = [type(module.gate).__name__ for module in again.modules() if isinstance(module, condconv.PooledLinear)]
    routers = [module for module in again.modules() if hasattr(module, "expert_dropout")]
    assert routers and all(router.expert_dropout == 0.1 for router in routers) and set(gates) <= {"SoftmaxGate"}
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "multiply-adds at 1×8×8" in card


@pytest.mark.parametrize(
    "words",
    [["count", "{}"], ["count", "{}", "--network", "static"], ["convert", "{}", "--network", "static"],
     ["count", "{saved}"]],
)  # fmt: skip
def test_every_verb_takes_run_folders_and_saved_ones(
    run: Path, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "{saved}" in words:
        condconv.save_pretrained(condconv.from_pretrained(run), tmp_path)
    assert main([word.format(run, saved=tmp_path) for word in words]) == 0
    assert capsys.readouterr().out


def test_evaluation_and_prediction_of_a_saved_network_prepare_images_as_the_run_did(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    condconv.save_pretrained(condconv.from_pretrained(run), "saved")
    said = []
    for model in (str(run), "saved"):
        assert main(["eval", model, "--data", "digits", "--device", "cpu"]) == 0
        said.append(capsys.readouterr().out.splitlines()[0])
    assert said[0] == said[1]
    Path("images").mkdir()
    from PIL import Image

    Image.new("L", (8, 8), 200).save("images/one.png")
    for model, out in ((str(run), "a.csv"), ("saved", "b.csv")):
        assert main(["predict", model, "images", "--out", out, "--device", "cpu"]) == 0
    assert Path("a.csv").read_text() == Path("b.csv").read_text()


def routed(kind: Any, **arguments: Any) -> Any:
    return lambda site, slices: kind(site.in_channels, slices.size, **arguments)


TOP_TWO = condconv.TopKGate(condconv.SoftmaxGate(3.0), 2)
CONVERSIONS: dict[str, dict[str, Any]] = {
    "hidden layer": {"router": routed(condconv.PooledLinear, hidden_channels=4)},
    "softmax, narrower": {"router": routed(condconv.SqueezeExcite, reduction=2, expert_dropout=0.2)},
    "two of three": {"router": routed(condconv.PooledLinear, gate=TOP_TWO), "num_experts": 3, "init": "fresh"},
    "dropout, shared": {"router": routed(condconv.PooledLinear, dropout=0.1), "share": "network"},
    "options": {"variant": "odconv"},
}


@pytest.mark.parametrize("kind", CONVERSIONS)
def test_a_network_from_elsewhere_is_saved_with_its_conversion(kind: str, tmp_path: Path) -> None:
    model = condconv.convert(Elsewhere(), targets=["second", "third"], **CONVERSIONS[kind])
    condconv.save_pretrained(model, tmp_path, input_size=(3, 16, 16))
    again = condconv.from_pretrained(tmp_path, model=Elsewhere())
    assert same(model, again, 3, 16, 16)
    gates, others = ([str(m.gate) for m in net.modules() if isinstance(m, Router)] for net in (model, again))
    assert gates == others != []
    condconv.save_pretrained(again, tmp_path / "again", input_size=(3, 16, 16))
    assert same(model, condconv.from_pretrained(tmp_path / "again", model=Elsewhere()), 3, 16, 16)
    with pytest.raises(CheckpointError, match=r"Elsewhere, which create_model does not make.*model=…"):
        condconv.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"wrong shape: first\.weight|no router for 6 channels was saved"):
        condconv.from_pretrained(tmp_path, model=Elsewhere(width=6))


def test_several_conversions_are_done_again_one_after_another(tmp_path: Path) -> None:
    model = condconv.convert(Elsewhere(), targets=["second"], num_experts=3)
    model = condconv.convert(model, "dynamic_convolution", targets=["third"], num_experts=2)
    condconv.save_pretrained(model, tmp_path, input_size=(3, 16, 16))
    assert same(model, condconv.from_pretrained(tmp_path, model=Elsewhere()), 3, 16, 16)
    config = json.loads((tmp_path / "config.json").read_text())
    assert [(part["variant"], part["num_experts"]) for part in config["conversion"]] == [
        ("condconv", 3), ("dynamic_convolution", 2),
    ]  # fmt: skip
    assert config["format_version"] == 2


def test_what_is_simple_is_written_as_older_versions_read_it(tmp_path: Path) -> None:
    model = condconv.create_model("mobilenetv1_025", num_classes=3)
    condconv.save_pretrained(condconv.convert(model), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["format_version"] == 1


def test_what_cannot_be_saved_says_what_to_do(tmp_path: Path) -> None:
    by_hand = nn.Sequential(condconv.CondConv2d(3, 4, 3, num_experts=2))
    other = condconv.convert(Elsewhere(), targets=["second", "third"], share=None)
    other.third.router.gate.forward = lambda logits: logits.softmax(1)
    other.third.router.expert_dropout = 0.5
    for model, words in (
        (by_hand, "not converted by condconv.convert"),
        (other, "differs from another one for 8 channels"),
    ):
        with pytest.raises(condconv.CondConvError, match=words) as error:
            condconv.save_pretrained(model, tmp_path / "no")
        assert "load_weights" in str(error.value)
    assert not (tmp_path / "no").exists()


def test_a_name_gives_published_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(pretrained, "create_model", lambda name, **given: asked.append((name, given)) or Elsewhere())
    assert not condconv.from_pretrained("resnet50").training
    assert asked == [("resnet50", {"pretrained": True})]


def test_what_cannot_be_opened_says_why(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="no weights are published for it.*models.upcycle"):
        condconv.from_pretrained("condconv_resnet50")
    with pytest.raises(UnknownNameError, match="resnet51: no such folder; and unknown model 'resnet51'; did you mean"):
        condconv.from_pretrained("resnet51")
    with pytest.raises(CheckpointError, match="no such folder; pass a run folder"):
        condconv.from_pretrained(tmp_path / "nowhere" / "at" / "all")
    with pytest.raises(ArgumentError, match="unknown network 'statics'; did you mean 'static'"):
        condconv.from_pretrained(run, network="statics")
    with pytest.raises(ArgumentError, match="network='static' is of a run folder"):
        condconv.from_pretrained("resnet50", network="static")
    with pytest.raises(ArgumentError, match="model='Elsewhere' is for a folder of save_pretrained"):
        condconv.from_pretrained(run, model=Elsewhere())
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text("data: digits\n")
    with pytest.raises(CheckpointError, match="no trained weights in it; finish it with: condconv train --resume"):
        condconv.from_pretrained(unfinished)
    for words in (["count", "resnet18", "--network", "static"], ["convert", str(tmp_path / "no" / "where")]):
        assert main(words) == 2
