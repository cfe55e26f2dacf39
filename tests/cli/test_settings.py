from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from condconv.cli.main import main
from condconv.runs.config import SECTIONS, TrainConfig

RECIPE = ("train", "--recipe", "imagenet_condconv_efficientnet_b0_8e", "--print-config")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert main(list(arguments)) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_the_printed_settings_are_a_config_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first = printed(capsys, "train", "--data", "digits", "--epochs", "7", "--eps", "0.1", "--print-config")
    assert (first["data"], first["epochs"], first["eps"]) == ("digits", 7, 0.1)
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(first))
    assert printed(capsys, "train", "--config", str(path), "--print-config") == first


def test_a_file_wins_over_a_recipe_and_a_flag_over_both(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plain = printed(capsys, *RECIPE)
    assert (plain["optimizer"], plain["lr"], plain["channels_last"]) == ("rmsproptf", 0.016, True)
    path = tmp_path / "settings.yaml"
    path.write_text("lr: 0.5\nepochs: 3\n")
    changed = printed(capsys, *RECIPE, "--config", str(path), "--epochs", "4", "--no-channels-last")
    assert changed == {**plain, "lr": 0.5, "epochs": 4, "channels_last": False}
    path.write_text("recipe: imagenet_condconv_efficientnet_b0_8e\n")
    assert printed(capsys, "train", "--config", str(path), "--print-config") == plain


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("train", "--recipe", "fashion_mnist_dynamik", "--data", "x"), "did you mean 'fashion_mnist_dynamic'"),
        (("train", "--resume", "--fast-dev-run"), "--fast-dev-run: a resumed run keeps its settings"),
        (("train", "--data", "digits", "--tune", "--compile"), "tune=True does not go with --compile"),
        (("train", "--data", "digits", "--tune", "--variant", "none"), "which has no conditional layer"),
        (("train", "--data", "digits", "--num-classes", "1000"), "10 classes, and the classifier is to have 1000"),
        (("lr-find", "--data", "digits", "--lowest", "2", "--highest", "1"), "lowest=2.0 must be above 0 and below"),
        (("lr-find", "--data", "digits", "--steps", "1"), "steps=1 must be at least 10"),
        (("lr-find", "--lowst", "2"), "unknown option '--lowst'; did you mean '--lowest'"),
    ],
)
def test_wrong_calls_are_explained(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    assert expected in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_help_is_in_parts_and_every_setting_stands_in_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = capsys.readouterr().out
    assert said.startswith("usage: condconv train --data DATA [options]\n")
    parts = [line.removesuffix(":") for line in said.splitlines() if line and not line.startswith(" ")][2:]
    assert parts == ["options", *SECTIONS.values()]
    assert list(SECTIONS) == [field.name for field in fields(TrainConfig) if field.name in SECTIONS]
    assert next(iter(SECTIONS)) == fields(TrainConfig)[0].name


def test_a_flag_may_stand_without_its_value(capsys: pytest.CaptureFixture[str]) -> None:
    given = printed(capsys, "train", "--data", "x", "--pretrained", "--epochs", "3", "--print-config")
    assert (given["pretrained"], given["epochs"]) == ("published", 3)
    assert printed(capsys, "train", "--data", "x", "--pretrained", "runs/a", "--print-config")["pretrained"] == "runs/a"
