"""Exported files on the command line: the same table as the run folder's, and clear words for every other file."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import condconv
from condconv.cli.main import main
from condconv.errors import CheckpointError
from condconv.exporting import ExportedNetwork
from condconv.exporting.about import KEY
from tests.data.writers import write_folder_set
from tests.exporting.networks import images
from tests.runs.writing import write_run

onnx = pytest.importorskip("onnx")
for package in ("onnxscript", "onnxruntime"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pets")
    write_folder_set(folder / "pets", per_class=4)
    write_run(folder, str(folder / "pets"), name="run")
    return folder


def predict(model: Path, pets: Path, out: Path) -> list[dict[str, str]]:
    words = [str(model), str(pets / "pets" / "val"), "--out", str(out), "--workers", "0", "--batch-size", "3"]
    assert main(["predict", *words, "--device", "cpu"]) == 0
    with out.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def check_table(pets: Path, tmp_path: Path, suffix: str, *words: str) -> None:
    expected = predict(pets / "run-1", pets, tmp_path / "expected.csv")
    file = tmp_path / f"net{suffix}"
    assert main(["export", str(pets / "run-1"), "--out", str(file), *words]) == 0
    table = predict(file, pets, tmp_path / "got.csv")
    assert [row["image"] for row in table] == [row["image"] for row in expected] and len(table) > 3
    assert [row["class_1"] for row in table] == [row["class_1"] for row in expected]
    for row, other in zip(table, expected, strict=True):
        assert float(row["probability_1"]) == pytest.approx(float(other["probability_1"]), abs=1e-4)


def test_the_table_is_that_of_the_run_folder(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("condconv.exporting.verb._BURST_S", 0.0)
    check_table(pets, tmp_path, ".onnx", "--batch", "2")
    said = capsys.readouterr().out
    assert "compared at batch 2" in said and "static twin" in said


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "package"), [(".xml", "openvino"), (".pt2", "torch"), (".pte", "executorch")])
def test_the_table_in_other_formats(
    suffix: str, package: str, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(package)
    monkeypatch.setattr("condconv.exporting.verb._BURST_S", 0.0)
    check_table(pets, tmp_path, suffix)


@pytest.mark.slow
def test_int8_says_what_it_costs(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("condconv.exporting.verb._BURST_S", 0.0)
    words = ["export", str(pets / "run-1"), "--out", str(tmp_path / "net.onnx")]
    assert main([*words, "--int8", str(pets / "pets")]) == 0
    said = capsys.readouterr().out
    assert "then int8" in said and "f32: top-1" in said and "int8: top-1" in said
    (tmp_path / "empty").mkdir()
    for changed, message in (
        (["--int8", str(tmp_path / "empty")], "empty"),
        (["--int8", "digits", "--out", str(tmp_path / "net.pt2")], "is a format without int8 here"),
        (["--int8", "digits", "--out", str(tmp_path / "net.xml")], "pass batch=1"),
    ):
        assert main([*words, *changed]) == 2
        assert message in capsys.readouterr().err


def exported(path: Path) -> Path:
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    return condconv.export(net, path, batch=1, example=images(1)).path


@pytest.mark.parametrize("suffix", [".onnx", ".xml", pytest.param(".pte", marks=pytest.mark.slow), ".pt2"])
def test_truncated_and_foreign_files_are_named(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip({".onnx": "onnxruntime", ".xml": "openvino", ".pte": "executorch", ".pt2": "torch"}[suffix])
    path = tmp_path / f"net{suffix}"
    with pytest.raises(CheckpointError, match="no such file; export one with: condconv export MODEL --out"):
        ExportedNetwork(path)
    whole = exported(path).read_bytes()
    for content in (b"", b"no network", whole[:700]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"net\{suffix}: is no file that .* can open, or a part of one"):
            ExportedNetwork(path)


def test_a_file_of_someone_else_is_named(tmp_path: Path) -> None:
    model = onnx.load(exported(tmp_path / "net.onnx"))
    known = json.loads(model.metadata_props[0].value)

    def saying(text: str | None) -> Path:
        del model.metadata_props[:]
        if text is not None:
            model.metadata_props.add(key=KEY, value=text)
        onnx.save(model, tmp_path / "other.onnx")
        return tmp_path / "other.onnx"

    for text, message in (
        (None, "other.onnx: was not written by condconv export"),
        ("{", "cannot be read"),
        (json.dumps({}), "no format_version"),
        (json.dumps(known | {"format_version": 99, "condconv_version": "9.9"}), "by condconv 9.9, which is newer"),
        (json.dumps({key: value for key, value in known.items() if key != "mean"}), "no mean"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=message):
            ExportedNetwork(saying(text))


def test_the_command_line_says_what_is_wrong(pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = str(pets / "run-1"), str(tmp_path / "net.onnx")
    detector = nn.Sequential(condconv.CondConv2d(3, 2, 3)).eval()
    condconv.export(detector, tmp_path / "maps.onnx", batch=1, example=images(1))
    for words, message in (
        (["export", run, "--out", str(tmp_path / "net.tflite")], "no suffix of a known format"),
        (["export", run, "--out", out, "--batch", "some"], "--batch='some' must be a whole number of at most"),
        (["export", run, "--out", out, "--formt", "onnx"], "did you mean '--format'"),
        (["export", str(tmp_path / "none"), "--out", out], "no such folder"),
        (["predict", str(tmp_path / "none.onnx"), str(pets), "--out", f"{out}.csv"], "none.onnx: no such file"),
        (["predict", str(tmp_path / "maps.onnx"), str(pets), "--out", f"{out}.csv"], "gives no scores of classes"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "net.onnx").exists()


def test_files_are_told_apart_by_what_is_in_them(tmp_path: Path) -> None:
    first = ExportedNetwork(exported(tmp_path / "a.onnx"))
    torch.manual_seed(1)
    second = ExportedNetwork(exported(tmp_path / "b.onnx"))
    assert not torch.equal(first.digest, second.digest)
    assert torch.equal(first.digest, ExportedNetwork(tmp_path / "a.onnx").digest)


def test_a_copy_opens_the_file_again(tmp_path: Path) -> None:
    network = ExportedNetwork(exported(tmp_path / "net.onnx"))
    again = pickle.loads(pickle.dumps(network))
    assert again.about == network.about and torch.equal(again(images(2)), network(images(2)))
