from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from condconv.cli.main import main
from condconv.cli.recipes import NOT_RUN
from condconv.errors import ArgumentError, UnknownNameError
from condconv.models.pose import POSES
from condconv.models.specs import SPECS
from condconv.models.ssd import DETECTORS
from condconv.recipes import list_recipes, load_recipe
from condconv.runs.config import TrainConfig
from condconv.studies.study import read_study
from condconv.training.optimization import learning_rate_factor, peak_learning_rate


def settings(name: str) -> TrainConfig:
    return TrainConfig(**{"data": "somewhere", **load_recipe(name).settings})


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_is_a_run_with_source_and_outcome(name: str) -> None:
    recipe, config = load_recipe(name), settings(name)
    assert recipe.source and recipe.outcome and recipe.dataset
    assert config.grad_clip > 0
    if recipe.dataset == "ImageNet":
        assert name == f"imagenet_{config.model}"
        assert SPECS[config.model].variant == config.variant
        assert (config.num_classes, config.input_size) == (1000, 224)


def test_every_classifier_of_the_zoo_has_its_imagenet_recipe() -> None:
    others = {*DETECTORS, *POSES}
    classifiers = {f"imagenet_{name}" for name, spec in SPECS.items() if spec.backbone not in others}
    assert classifiers == {name for name in list_recipes() if name.startswith("imagenet_")}


def test_the_papers_settings_arrive() -> None:
    efficientnet = settings("imagenet_condconv_efficientnet_b0_8e")
    assert (efficientnet.optimizer, efficientnet.eps, efficientnet.ema) == ("rmsproptf", 1e-3, 0.9999)
    assert (efficientnet.dropout, efficientnet.drop_path, efficientnet.epochs) == (0.25, 0.2, 350)
    assert peak_learning_rate(efficientnet, 2048) == pytest.approx(0.128)
    assert learning_rate_factor(efficientnet, 96, 10) == pytest.approx(0.97**4)
    detector = settings("coco_condconv_ssd_mobilenetv1_050_focal")
    assert (detector.detection_loss, detector.schedule, detector.task) == ("focal", "cosine", "detect")
    assert peak_learning_rate(detector, 32) == pytest.approx(0.9 / 32)
    mobilenet = settings("imagenet_condconv_mobilenetv2_100")
    assert (mobilenet.optimizer, mobilenet.auto_augment, mobilenet.mixup) == ("sgd", "imagenet", 0.2)
    assert peak_learning_rate(mobilenet, 4096) == pytest.approx(1.6)
    dynamic = settings("imagenet_dynamic_mobilenetv2_100")
    assert (dynamic.lr, dynamic.weight_decay, dynamic.epochs, dynamic.dropout) == (0.05, 4e-5, 300, 0.2)
    assert (dynamic.temperature_start, dynamic.temperature_end, dynamic.temperature_epochs) == (30, 1, 10)
    resnet = settings("imagenet_dynamic_resnet18")
    factors = [learning_rate_factor(resnet, epoch, 1) for epoch in (0, 29, 30, 60, 90)]
    assert factors == pytest.approx([1, 1, 0.1, 0.01, 0.001])


STUDIES = Path(__file__).parents[2] / "benchmarks" / "accuracy"
SMALL = {
    "cifar10_jpeg_condconv": ("a_cifar10", "condconv8"),
    "cifar10_jpeg_dynamic": ("a_cifar10", "dynamic4"),
    "fashion_mnist_condconv": ("a_fashion", "condconv8"),
    "fashion_mnist_dynamic": ("a_fashion", "dynamic4"),
    "fashion_mnist_conditions": ("demo", "condconv8"),
}


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_small_recipe_is_an_arm_of_a_study_with_its_outcome(name: str) -> None:
    study, arm = read_study(STUDIES / f"{SMALL[name][0]}.yaml"), SMALL[name][1]
    finished = study.finished()
    accuracies = {seed: float(row["top1_pct"]) for (name, seed), row in finished.items() if name == arm}
    gains = [top1 - float(finished["static", seed]["top1_pct"]) for seed, top1 in accuracies.items()]
    arms = TrainConfig(data="somewhere", **study.common, **study.arms[arm])
    where_it_runs = {"data": "somewhere", "workers": 0, "channels_last": True}  # They change the time, not the outcome.
    assert replace(settings(name), **where_it_runs) == replace(arms, **where_it_runs)
    if not accuracies:
        assert load_recipe(name).outcome == NOT_RUN
        return
    seeds = "one seed" if len(accuracies) == 1 else f"mean of {len(accuracies)} seeds"
    assert load_recipe(name).outcome == (
        f"{fmean(accuracies.values()):.1f} % top-1, {seeds} ({fmean(gains):+.1f} beside its static twin)"
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "ground.yaml").write_text("dataset: digits\nlr: 0.2\nepochs: 7\n")
    return tmp_path


def write(folder: Path, text: str, name: str = "mine") -> None:
    (folder / f"{name}.yaml").write_text(text)


def test_a_file_holds_its_differences_from_its_base(folder: Path) -> None:
    (folder / "bases" / "middle.yaml").write_text("base: ground\nepochs: 9\nmodel: resnet10\n")
    write(folder, "base: middle\nema: 0.9\nsource: here\noutcome: not run here\n")
    recipe = load_recipe("mine", folder)
    assert dict(recipe.settings) == {"lr": 0.2, "epochs": 9, "model": "resnet10", "ema": 0.9}
    assert (recipe.dataset, recipe.source, recipe.outcome) == ("digits", "here", "not run here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: ground\nepoch: 3\n", "mine.yaml: unknown key 'epoch'; did you mean 'epochs'"),
        ("base: grund\n", "mine.yaml: unknown base 'grund'; did you mean 'ground'"),
        ("base: ground\nname: run\n", "unknown key 'name'"),
        ("base: ground\nweight_decay: 1e-5\n", "weight_decay: '1e-5' is of another kind than float; 1e-5 is text"),
        ("base: ground\nepochs: 1.5\n", "epochs: 1.5 is of another kind than int$"),
        ("base: ground\nepochs: true\n", "epochs: True is of another kind than int$"),
        ("base: ground\nsource: here\n", "neither it nor its bases say outcome"),
        ("just words\n", "holds no settings"),
        ("a: [1\n", "not valid YAML"),
        ("base: first\n", "its base leads back to itself: first → second → first"),
    ],
)
def test_a_wrong_file_is_refused_with_a_hint(folder: Path, text: str, message: str) -> None:
    (folder / "bases" / "first.yaml").write_text("base: second\n")
    (folder / "bases" / "second.yaml").write_text("base: first\n")
    write(folder, text)
    with pytest.raises(ArgumentError, match=message):
        load_recipe("mine", folder)


def test_an_unknown_recipe_lists_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'imagenet_condconv_resnet50'"):
        load_recipe("imagenet_condconv_resnet_50")


def test_those_that_were_run_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    run = [name for name in list_recipes() if not load_recipe(name).outcome.startswith(NOT_RUN)]
    assert names[: len(run)] == run and set(names[len(run) :]) == set(list_recipes()) - set(run)


def test_the_verb_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "*resnet*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + sum("resnet" in name for name in list_recipes())
    for word in ("recipe", "network", "data", "outcome", "source"):
        assert word in lines[0]
    assert main(["recipes", "imagenet_condcov_resnet50"]) == 2
    assert "did you mean 'imagenet_condconv_resnet50'" in capsys.readouterr().err


def test_the_table_of_the_docs_is_made_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--markdown"]) == 0
    page = Path(__file__).parents[2] / "docs" / "training.md"
    assert capsys.readouterr().out in page.read_text()
