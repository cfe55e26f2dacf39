"""`condconv benchmark` measures what it says, beside whom it says; no test looks at a time."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import threading
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import condconv
from condconv.benchmarking import memory, networks, rows
from condconv.benchmarking.rows import Benchmark, TimingCell, timing_cells
from condconv.benchmarking.timings import as_picture, as_table
from condconv.cli.main import main
from condconv.conversion.apply import conditional_layers
from condconv.exporting import ExportedNetwork
from condconv.exporting.formats import FORMATS
from tests.cli.runner import SMALL as SMALL_RUN
from tests.cli.runner import condconv as run_condconv
from tests.cli.runner import quick

Line = dict[str, str]
Words = tuple[str, ...]
CPU = torch.device("cpu")
NAMED = ("condconv_mobilenetv1_025", "--num-experts", "2", "--input-size", "3x32x32")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    monkeypatch.setattr("condconv.timing.TURNS", 2)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Words:
    """Words that name a saved network with two conditional layers."""
    folder = tmp_path_factory.mktemp("saved") / "net"
    net = condconv.create_model("mobilenetv1_025", num_classes=4)
    condconv.convert(net, "condconv", targets="last 1 blocks", num_experts=2)
    condconv.save_pretrained(net, folder, input_size=(3, 32, 32))
    return (str(folder), "--input-size", "3x32x32", "--device", "cpu", "--threads", "1")


def lines(folder: Path) -> list[Line]:
    with (folder / "benchmark.csv").open() as file:
        return list(csv.DictReader(file))


def test_it_measures_cells_and_writes_them(small: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, threads = tmp_path / "speed", torch.get_num_threads()
    arguments = ("--batch", "2", "1", "--modes", "eager", "--out", str(out))
    assert main(["benchmark", *small, *arguments]) == 0
    found = lines(out)
    assert [(row["mode"], row["batch"], row["threads"]) for row in found[::3]] == [
        ("eager", "2", "1"), ("eager", "1", "1"),
    ]  # fmt: skip
    assert {row["contender"] for row in found} == {"static", "timm's layers", "conditional"}
    assert all(row["ratio"] == "1.000" for row in found if row["contender"] == "static")
    assert all(value for row in found for name, value in row.items() if name not in ("strategy", "noisy"))
    assert {row["strategy"] != "" for row in found if row["contender"] == "conditional"} == {True}
    row = found[0]
    assert float(row["images_per_s"]) == pytest.approx(2e3 / float(row["median_ms"]), rel=1e-2)
    assert float(row["p95_ms"]) >= float(row["median_ms"]) and row["memory_mb"] == "1.5"
    assert b"<svg" in (out / "benchmark.svg").read_bytes()[:400] and torch.get_num_threads() == threads
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("net, inference, images of 3x32x32, ")
    assert printed[1].split()[:4] == ["mode", "batch", "threads", "contender"] and printed[-1] == f"benchmark: {out}"
    assert main(["benchmark", *small, "--modes", "eager", "--out", str(out)]) == 0
    assert (tmp_path / "speed-2" / "benchmark.csv").exists() and len(lines(out)) == 6


def test_tuned_inference_forms_and_training_stand_beside(small: Words, tmp_path: Path) -> None:
    assert main(["benchmark", *small, "--tune", "--modes", "inference", "--out", str(tmp_path / "a")]) == 0
    assert [row["contender"] for row in lines(tmp_path / "a")] == [
        "static", "timm's layers", "conditional", "conditional, tuned",
    ]  # fmt: skip
    assert main(["benchmark", *small, "--training", "--batch", "2", "--tune", "--out", str(tmp_path / "b")]) == 0
    found = lines(tmp_path / "b")
    assert len(found) == 4 and {(row["work"], row["mode"]) for row in found} == {("training", "eager")}


@pytest.mark.parametrize("runtime", ["onnx", *(pytest.param(n, marks=pytest.mark.slow) for n in ("openvino", "pt2"))])
def test_runtimes_stand_beside(small: Words, tmp_path: Path, runtime: str) -> None:
    package = pytest.importorskip(FORMATS[runtime].runtime).__name__
    pytest.importorskip("onnxscript")
    words = ("--modes", "eager", "--runtimes", runtime, "--batch", "2", "--out", str(tmp_path / "speed"))
    assert main(["benchmark", *small, *words]) == 0
    found = [row for row in lines(tmp_path / "speed") if row["mode"] == runtime]
    assert [row["contender"] for row in found] == ["static", "conditional"]
    assert {row["strategy"] for row in found} == {f"{package} {metadata.version(package)}"}
    assert found[0]["ratio"] == "1.000" and all(row["median_ms"] and row["memory_mb"] for row in found)


@pytest.mark.slow
def test_a_runtime_is_weighed_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.undo()
    static = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x = torch.randn(1, 3, 8, 8)
    made = ExportedNetwork(condconv.export(static, tmp_path / "net.onnx", batch=1, example=x).path)
    assert float(str(memory.measure(made, x)["total_mb"])) > 1


def test_compiled_code_is_reset_from_cell_to_cell(small: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[type[nn.Module]] = []
    monkeypatch.setattr(torch, "compile", lambda network, dynamic: compiled.append(type(network)) or network)
    assert main(["benchmark", *small, "--modes", "compiled", "eager", "--tune"]) == 0
    assert len(compiled) == 3


def test_a_name_and_a_run_are_models_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", *NAMED, "--modes", "eager", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("condconv_mobilenetv1_025, inference, images of 3x32x32")
    run = (*SMALL_RUN, "--epochs", "1", "--limit-train", "16", "--workers", "0", "--device", "cpu")
    assert main(["train", *run, "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["benchmark", str(tmp_path / "small-1"), "--modes", "eager", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("small-1, inference, images of 1x8x8")
    assert main(["benchmark", str(tmp_path / "small-1"), "--network", "conditionl"]) == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("mobilenetv1_025",), "has no conditional layer, so there is nothing to compare"),
        (("condconv_mobilnetv1_025",), "did you mean 'condconv_mobilenetv1_025'"),
        ((*NAMED, "--batch", "0"), "--batch=0 must be at least 1"),
        ((*NAMED, "--threads", "0"), "--threads=0 must be at least 1"),
        ((*NAMED, "--modes", "eagre"), "did you mean 'eager'"),
        ((*NAMED, "--training", "--modes", "inference"), "'inference' cannot be trained"),
        ((*NAMED, "--training"), "--batch=1 has no batch statistics"),
        ((*NAMED, "--tune", "--modes", "compiled"), "does nothing in compiled code"),
        ((*NAMED, "--runtimes", "onxx"), "did you mean 'onnx'"),
        ((*NAMED, "--runtimes", "onnx", "--training", "--batch", "2"), "--runtimes='onnx' is for inference"),
        (("condconv_mobilenetv1_025", "--input-size", "4x32x32"), "does not run on images of 4x32x32"),
        (("condconv_mobilenetv1_025", "--input-size", "3x32"), "does not run on images of 3x32"),
        (("no/such/folder",), "no such folder"),
    ],
)
def test_bad_input_is_said(arguments: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", *arguments]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1


def test_what_torch_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = Benchmark("net", condconv.create_model("condconv_mobilenetv1_025"), (3, 32, 32), False, False, CPU)

    def fail(*_: object) -> None:
        raise RuntimeError("no memory\nat all")

    monkeypatch.setattr(rows, "measure", fail)
    with pytest.raises(condconv.ArgumentError, match="eager, batch 1: no memory; leave that cell out"):
        benchmark.rows(TimingCell("eager", 1, 1))
    with pytest.raises(condconv.ArgumentError, match="gives no logits"):
        Benchmark("ssd", condconv.create_model("condconv_ssd_mobilenetv1_050"), (3, 300, 300), True, False, CPU)


def interrupt_second_cell() -> None:
    """Ctrl-C comes while the second cell is measured."""
    quick()
    # Where the tests themselves run in the background, their children would ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cell_rows, done = Benchmark.rows, list[Any]()

    def measured(self: Benchmark, cell: TimingCell) -> list[dict[str, object]]:
        if done:
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(10)
        done.append(cell)
        return cell_rows(self, cell)

    Benchmark.rows = measured


def test_interrupted_it_leaves_the_rows_that_are_done(small: Words, tmp_path: Path) -> None:
    arguments = (*small, "--modes", "eager", "--batch", "1", "2", "3", "--out", str(tmp_path / "speed"))
    done: subprocess.CompletedProcess[str] = run_condconv("benchmark", *arguments, prepare=[interrupt_second_cell])
    assert done.returncode == 130 and "stopped after 1 of 3 cells" in done.stdout and "Traceback" not in done.stderr
    assert [row["batch"] for row in lines(tmp_path / "speed")] == ["1"] * 3
    assert sorted(path.name for path in (tmp_path / "speed").iterdir()) == ["benchmark.csv", "benchmark.svg"]


def test_the_plan_has_each_cell_once_and_compiling_last() -> None:
    assert timing_cells(["compiled", "eager", "eager"], [1, 2, 1], [1]) == [
        TimingCell("eager", 1, 1), TimingCell("eager", 2, 1),
        TimingCell("compiled", 1, 1), TimingCell("compiled", 2, 1),
    ]  # fmt: skip


def test_timms_network_is_taken_where_there_is_one() -> None:
    found = networks.rivals(condconv.create_model("condconv_efficientnet_b0_4e", num_classes=3))
    assert list(found) == ["static", "timm"] and "EfficientNet" in type(found["timm"]).__name__
    other = networks.rivals(condconv.create_model("condconv_efficientnet_b0_4e", num_experts=2))
    assert list(other) == ["static"]  # Its padding is TensorFlow's.


def test_timms_layers_compute_what_ours_do() -> None:
    model = condconv.create_model("dynamic_mobilenetv2_035", num_classes=5).eval()
    swapped = networks.with_timm_layers(model)
    assert swapped is not None
    assert all(layer.geometry.rank == 1 for _, layer in conditional_layers(swapped))
    ours = {name: layer for name, layer in conditional_layers(model) if layer.geometry.rank == 2}
    for name, layer in ours.items():
        convolution = swapped.get_submodule(name).convolution
        with torch.no_grad():
            convolution.weight.copy_(layer.weight.flatten(1))
            if layer.bias is not None:
                convolution.bias.copy_(layer.bias)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(swapped(x), model(x), rtol=1e-3, atol=1e-4)
    circular = nn.Sequential(condconv.CondConv2d(3, 3, 3, padding=1, padding_mode="circular"))
    assert networks.with_timm_layers(circular) is None


def test_noise_and_single_points_are_shown() -> None:
    row = dict.fromkeys(rows.COLUMNS, "1") | {"mode": "eager", "contender": "static", "noisy": "yes", "ratio": "1.000"}
    assert "1.000~" in as_table([row]) and as_table([row]).splitlines()[-1].startswith("~ a turn differed")
    assert as_picture([row]).startswith(b"<?xml")


