"""Fine-tuning: the weights that networks begin with, whoever trained them, and a new classifier for other classes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import condconv
from condconv.cli.main import main
from condconv.data import Source, open_source
from condconv.errors import ArgumentError, CheckpointError
from condconv.runs.building import NetworkBuilder
from condconv.runs.config import TrainConfig
from condconv.runs.folder import RunFolder
from condconv.runs.networks import first_start, plan_networks
from condconv.runs.starting import about_start, as_the_start
from condconv.tasks import task_of
from tests.cli.runner import quick
from tests.data.writers import write_folder_set
from tests.runs.writing import write_run

IMAGE = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def few() -> Source:
    """The digits, of which only four are told apart."""
    source = open_source("digits")
    return replace(source, classes=source.classes[:4])


def builder(source: Source, **settings: Any) -> NetworkBuilder:
    config = TrainConfig(data="digits", **{"output_stride": 4, "num_experts": 2, **settings})
    return NetworkBuilder(task_of(config), source)


def features(model: nn.Module) -> torch.Tensor:
    return model.eval().forward_features(IMAGE)


@pytest.fixture
def static_file(tmp_path: Path) -> Path:
    source = open_source("digits")
    path = tmp_path / "static.safetensors"
    about = {"classes": source.classes, "mean": source.mean, "std": source.std}
    save_file(builder(source, seed=5).static().state_dict(), path, {name: json.dumps(of) for name, of in about.items()})
    return path


def test_other_classes_get_a_new_classifier_and_it_is_said(static_file: Path, few: Source) -> None:
    made = builder(few, pretrained=str(static_file))
    original = builder(open_source("digits"), seed=5).static()
    static, conditional, fresh = made.static(), made.conditional(), builder(few).static()
    assert torch.equal(features(static), features(original))
    assert static(IMAGE).shape == (3, 4) and torch.equal(static.classifier.weight, fresh.classifier.weight)
    # Upcycled, with the classifier that the twin has too.
    torch.testing.assert_close(conditional.eval()(IMAGE), static.eval()(IMAGE), atol=1e-4, rtol=1e-4)
    (line,) = about_start(made.start("static"), few)
    assert line == (
        f"notice: begins with the weights of {static_file}; new classifier for 4 classes in place of that for 10"
    )
    assert list(about_start(made.start("static"), open_source("digits"))) == [
        f"notice: begins with the weights of {static_file}"
    ]


def test_a_run_goes_on_with_its_own_networks(tmp_path: Path, few: Source) -> None:
    run, _ = write_run(tmp_path, "digits", name="first")
    trained = condconv.from_pretrained(run)
    config = RunFolder(run).read_config()
    made = NetworkBuilder(task_of(replace(config, pretrained=str(run), seed=9)), few)
    conditional = made.conditional()
    assert torch.equal(features(conditional), features(trained))
    assert conditional(IMAGE).shape == (3, 4)


def test_a_saved_network_and_what_it_was_normalised_by(tmp_path: Path, few: Source) -> None:
    source = open_source("digits")
    model = builder(source, variant="none", seed=3).static()
    condconv.models.trained_on.note_images(model, {
        "input_size": (1, 8, 8), "mean": (0.1,), "std": (0.2,), "label_names": source.classes, "native": True,
    })  # fmt: skip
    condconv.save_pretrained(model, tmp_path / "saved")
    made = builder(few, variant="none", pretrained=str(tmp_path / "saved"))
    start = first_start(task_of(made.config), few)
    assert start is not None and start.classes == 10
    assert (as_the_start(few, start).mean, as_the_start(few, start).std) == ((0.1,), (0.2,))
    assert torch.equal(features(made.static()), features(model))


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Iterator[nn.Module]:
    """timm's resnet10t with weights that stand for the published ones."""
    torch.manual_seed(7)
    weights = timm.create_model("resnet10t")
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(weights.state_dict()))
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", lambda *_, **__: dict(weights.state_dict()))
    yield weights


def test_published_weights_come_with_new_classes_and_channels(published: nn.Module, few: Source) -> None:
    source = replace(few, image_size=(64, 64), native=False)
    made = builder(source, model="resnet10t", pretrained="published", output_stride=None)
    static = made.static()
    assert torch.equal(static.layer1[0].conv1.weight, published.layer1[0].conv1.weight)
    assert static.fc.weight.shape[0] == 4 and static.conv1[0].weight.shape[1] == 1
    image = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(made.conditional().eval()(image), static.eval()(image), atol=1e-4, rtol=1e-4)
    (line,) = about_start(made.start("static"), source)
    assert "the published weights of resnet10t; new classifier for 4 classes in place of that for 1000" in line


def test_what_cannot_begin_says_why(tmp_path: Path, few: Source, static_file: Path) -> None:
    with pytest.raises(ArgumentError, match="no weights are published for it"):
        builder(few, model="cifar_resnet8", pretrained="published").static()
    with pytest.raises(CheckpointError, match="no such file"):
        builder(few, pretrained=str(tmp_path / "lost.safetensors")).static()
    with pytest.raises(CheckpointError, match="missing"):
        builder(few, model="cifar_resnet8", pretrained=str(static_file)).static()


@pytest.mark.parametrize("words", [["--upcycle-from", "nowhere"], ["--upcycle-from=nowhere"]])
def test_the_flag_of_before_works_and_names_its_successor(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--data", "digits", "--model", "mobilenetv1_025", "--out", str(tmp_path), *words]) == 2
    said = capsys.readouterr().err
    assert said.count("notice: --upcycle-from is now --pretrained") == 1
    assert "error: --pretrained nowhere: no such file or folder" in said


def test_a_run_of_before_says_its_setting_under_the_old_name(tmp_path: Path, static_file: Path) -> None:
    run, _ = write_run(tmp_path, "digits", name="old")
    text = (run / "config.yaml").read_text().replace("pretrained: null", f"upcycle_from: {static_file}")
    (run / "config.yaml").write_text(text)
    assert RunFolder(run).read_config().pretrained == str(static_file)


def test_a_fine_tuned_run_is_built_again_without_what_it_began_with(
    tmp_path: Path, static_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick(monkeypatch)
    write_folder_set(tmp_path / "pets", grey=True, size=(8, 8))
    words = ("--data", str(tmp_path / "pets"), "--pretrained", str(static_file), "--epochs", "1", "--batch-size", "4")
    settings = (
        "--num-experts",
        "2",
        "--twin",
        "--no-report",
        "--workers",
        "0",
        "--name",
        "tuned",
        "--out",
        str(tmp_path),
    )
    assert main(["train", "--model", "mobilenetv1_025", *words, *settings]) == 0
    said = capsys.readouterr().out
    assert said.count("new classifier for 2 classes in place of that for 10") == 1
    static_file.unlink()
    specs = RunFolder(tmp_path / "tuned-1")
    assert condconv.from_pretrained(specs.path)(IMAGE).shape == (3, 2)
    assert condconv.from_pretrained(specs.path, network="static")(IMAGE).shape == (3, 2)


def test_the_widened_twin_has_fresh_weights_and_says_so(static_file: Path) -> None:
    source = open_source("digits").limited(20, 20)
    config = TrainConfig(data="digits", output_stride=4, num_experts=2, twin=True, pretrained=str(static_file))
    assert plan_networks(task_of(config), source)[2].description.endswith("from fresh weights")
