"""`condconv analyze` and the report at the end of `condconv train`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from condconv.cli.main import main
from condconv.data import open_source
from condconv.models import create_model, save_pretrained
from tests.cli.runner import SMALL, condconv, quick

WORKERS = ("--workers", "0")
TRAINING = (
    *(word for word in SMALL if word != "--no-report"),
    "--variant", "condconv", "--limit-train", "16", "--limit-val", "40",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training run, with report and TensorBoard pictures."""
    out = tmp_path_factory.mktemp("runs")
    ended = condconv("train", *TRAINING, "--out", str(out), "--tensorboard", "2", prepare=[quick])
    assert ended.returncode == 0, ended.stderr
    return out


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = create_model("condconv_mobilenetv1_025", num_classes=10, in_chans=1, num_experts=2, output_stride=8)
    return save_pretrained(model, tmp_path_factory.mktemp("saved"))


def layers(table: Path) -> set[str]:
    with table.open(encoding="utf-8", newline="") as file:
        return {row["layer"] for row in csv.DictReader(file)}


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["analyze", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_training_ends_with_a_report_that_the_summary_links(runs: Path) -> None:
    run = runs / "small-1"
    assert "[What the experts do](report/report.html)" in (run / "summary.md").read_text()
    page = (run / "report" / "report.html").read_text()
    assert "Routing of small-1" in page
    assert "Training curves" in page


def test_training_writes_pictures_for_tensorboard_at_every_second_epoch(runs: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(runs / "small-1" / "tensorboard" / "conditional"))
    events.Reload()
    tags = set(events.Tags()["images"])
    assert {"routing/mean_by_class", "routing/histogram", "routing/depth", "routing/attention"} <= tags
    assert [image.step for image in events.Images("routing/depth")] == [2]


def test_a_run_folder_needs_no_data_and_a_report_is_never_overwritten(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    ended = condconv("analyze", str(runs / "small-1"), "--out", str(out), "--limit", "20", *WORKERS)
    assert (ended.returncode, ended.stdout) == (0, f"report: {out / 'report.html'}\n"), ended.stderr
    before = (out / "report.html").read_bytes()
    assert main(["analyze", str(runs / "small-1"), "--out", str(out), "--limit", "10", *WORKERS]) == 0
    assert (out / "report.html").read_bytes() == before
    assert (tmp_path / "report-2" / "report.html").exists()
    with (tmp_path / "report-2" / "attention.csv").open() as file:
        assert {row["layer"] for row in csv.DictReader(file)} == {"layer2.0", "layer3.0"}


def test_the_weights_of_the_run_are_what_is_analysed(runs: Path) -> None:
    """The report at the end of training, from the network in memory, equals one made from the files."""
    from condconv.analysis import examine
    from condconv.runs.trained import load_trained

    model, source = load_trained(runs / "small-1", "conditional", open_source("digits"))
    found, _ = examine(model, source.limited(None, 40), title="", workers=0)
    with (runs / "small-1" / "report" / "mean_by_class.csv").open() as file:
        for row in csv.DictReader(file):
            group = next(group for group in found.groups if row["layer"] in group.layers)
            mean = found.measures[group.name].class_mean[found.classes.index(row["class"]), int(row["expert"])]
            assert row["mean"] == "" if mean.isnan() else float(row["mean"]) == pytest.approx(float(mean), abs=1e-5)


def test_a_saved_folder_and_a_name(saved: Path, tmp_path: Path) -> None:
    assert main(["analyze", str(saved), "--data", "digits", "--limit", "30", "--out", str(tmp_path / "a")]) == 0
    assert "classifier" in layers(tmp_path / "a" / "mean_by_class.csv")
    name = "condconv_mobilenetv1_025"
    assert main(["analyze", name, "--data", "digits", "--limit", "10", "--out", str(tmp_path / "b")]) == 0
    assert layers(tmp_path / "b" / "depth.csv") == layers(tmp_path / "a" / "depth.csv")


def write_folder(folder: Path) -> Path:
    """Two classes of ten grey pictures each for training; validation: one class, one picture of it damaged."""
    rng = np.random.default_rng(0)
    for half, classes in (("train", ("<b>cat", "dog")), ("val", ("dog",))):
        for name in classes:
            (folder / half / name).mkdir(parents=True)
            for number in range(10):
                pixels = rng.integers(0, 256, (12, 12), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / half / name / f"{number}.png")
    (folder / "val" / "dog" / "3.png").write_bytes(b"no picture")
    return folder


def test_an_image_folder_with_a_damaged_image_and_a_missing_class(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data")
    arguments = ("condconv_mobilenetv1_025", "--data", str(data), "--out", str(tmp_path / "report"), *WORKERS)
    assert main(["analyze", *arguments]) == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert f"1 images could not be decoded and were left out: {data / 'val' / 'dog' / '3.png'}." in page
    assert "1 of 2 classes have no image here, so no mean: &lt;b&gt;cat." in page


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("mobilenetv1_025", "--data", "digits"), "has no conditional layer, so there is no routing"),
        (("condconv_mobilenetv1_025",), "--data is missing"),
        (("condconv_mobilenetv1_025", "--data", "digts"), "did you mean 'digits'"),
        (("condconv_mobilenetv1_025", "--data", "digits", "--limit", "0"), "--limit=0 must be at least 1"),
        (("condconv_mobilenetv1_025", "--data", "digits", "--workers", "-1"), "--workers=-1 must not be negative"),
        (("condconv_mobilenetv1_025", "--data", "digits", "--device", "tpu"), "unknown device 'tpu'"),
        (("condconv_mobilenetv1_025", "--data", "digits", "--layers", "clasifier"), "did you mean 'classifier'"),
        (("condconv_mobilenetv1_025", "--data", "digits", "--classes", "eleven"), "unknown class 'eleven'"),
        (("condconv_mobilenetv1_25", "--data", "digits"), "condconv_mobilenetv1_025"),
        (("condconv_mobilenetv1_025", "--data", "digits", "--lmit", "3"), "did you mean '--limit'"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_said_before_the_pass(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    assert expected in fails(capsys, *arguments, "--out", str(tmp_path / "report"))
    assert list(tmp_path.iterdir()) == []


def test_images_of_another_kind_or_of_other_classes(
    capsys: pytest.CaptureFixture[str], runs: Path, saved: Path, tmp_path: Path
) -> None:
    grey = write_folder(tmp_path / "grey")
    run = str(runs / "small-1")
    assert "digits" not in fails(capsys, run, "--data", str(grey), "--out", str(tmp_path / "r"))
    colour = tmp_path / "colour"
    for half in ("train", "val"):
        for name in ("a", "b"):
            (colour / half / name).mkdir(parents=True)
            Image.new("RGB", (12, 12), "red").save(colour / half / name / "1.png")
    error = fails(capsys, str(saved), "--data", str(colour), "--out", str(tmp_path / "r"))
    assert "has images of 3 channels, and the network begins with 1" in error


def test_a_run_without_a_conditional_network_or_with_damaged_files(
    capsys: pytest.CaptureFixture[str], runs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text((runs / "small-1" / "config.yaml").read_text())
    assert "no trained weights in it" in fails(capsys, str(run), "--out", str(tmp_path / "r"))
    weights = (runs / "small-1" / "conditional.safetensors").read_bytes()
    (run / "conditional.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "truncated or damaged" in fails(capsys, str(run), "--out", str(tmp_path / "r"))
    (run / "conditional.safetensors").write_bytes(weights)
    assert "not a finished run folder (no metrics.csv in it)" in fails(capsys, str(run), "--out", str(tmp_path / "r"))
    error = fails(capsys, str(runs / "small-1"), "--runs", str(tmp_path), "--out", str(tmp_path / "r"))
    assert f"{tmp_path}: not a finished run folder" in error


def test_non_finite_weights_are_named_and_counted(saved: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((saved / "config.json").read_text())
    tensors = load_file(saved / "model.safetensors")
    tensors["classifier.router.body.0.bias"][0] = torch.nan
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    assert main(["analyze", str(broken), "--data", "digits", "--limit", "25", "--out", str(tmp_path / "r")]) == 0
    page = (tmp_path / "r" / "report.html").read_text()
    assert "classifier: coefficients that are not finite in 25 images" in page
    data = page.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    assert json.loads(data)["layers"][-1]["name"] == "classifier"


def test_one_image(saved: Path, tmp_path: Path) -> None:
    assert main(["analyze", str(saved), "--data", "digits", "--limit", "1", "--out", str(tmp_path / "r")]) == 0
    assert "Only one image" in (tmp_path / "r" / "report.html").read_text()
