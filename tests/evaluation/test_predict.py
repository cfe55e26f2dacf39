from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from condconv.cli.main import main
from condconv.data.inputs import open_inputs
from condconv.errors import DataError
from condconv.evaluation.evaluate import evaluate
from condconv.runs.config import TrainConfig
from condconv.runs.trained import load_trained
from condconv.tasks import task_of
from condconv.tasks.classify import prediction as module
from tests.data.writers import jpeg, shard_samples, write_folder_set, write_tar
from tests.runs.writing import write_run


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pets")
    write_folder_set(folder / "pets", per_class=6)
    write_run(folder, str(folder / "pets"), name="run")
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def predict(pets: Path, *words: object) -> int:
    return main(["predict", str(pets / "run-1"), *map(str, words), "--workers", "0", "--device", "cpu"])


def test_the_answers_are_those_of_the_evaluation(pets: Path, tmp_path: Path) -> None:
    from condconv.data import open_source

    out = tmp_path / "p.csv"
    assert predict(pets, pets / "pets" / "val", "--out", out, "--top-k", 9, "--batch-size", 5) == 0
    table = rows(out)
    assert list(table[0]) == ["image", "class_1", "probability_1", "class_2", "probability_2"]
    assert [row["image"] for row in table] == sorted(str(path) for path in (pets / "pets" / "val").rglob("*.jpg"))
    assert all(float(row["probability_1"]) >= float(row["probability_2"]) for row in table)
    network, source = load_trained(pets / "run-1", "conditional", open_source(str(pets / "pets")))
    task = task_of(TrainConfig(data=""))
    found = evaluate(network, source, task, batch_size=4, workers=0, device=torch.device("cpu")).found
    right = sum(row["class_1"] == Path(row["image"]).parent.name for row in table)
    assert right / len(table) == pytest.approx(found.top1)


def test_files_folders_and_shards_in_the_order_given(pets: Path, tmp_path: Path) -> None:
    single = tmp_path / "b.png"
    single.write_bytes(jpeg(7, kind="PNG"))
    write_tar(tmp_path / "shards" / "x.tar", {**shard_samples(3), "z.jpg": jpeg(9)})  # the last one without label
    out = tmp_path / "p.csv"
    assert predict(pets, tmp_path / "shards", single, "--out", out) == 0
    names = [row["image"] for row in rows(out)]
    tar = tmp_path / "shards" / "x.tar"
    assert names == [*(f"{tar}, sample {name}" for name in ("s000", "s001", "s002", "z")), str(single)]


def test_interrupted_it_goes_on_where_it_was(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (pets / "pets", "--batch-size", "5", "--out")
    assert predict(pets, *words, tmp_path / "whole.csv") == 0
    out = tmp_path / "p.csv"
    answers = module._answers

    def interrupted(*arguments: object) -> Iterator[object]:
        yield next(answers(*arguments))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "_answers", interrupted)
        assert predict(pets, *words, out) == 130
    assert "go on with the same command" in capsys.readouterr().out
    assert not out.exists()
    growing = tmp_path / ".p.csv.partial"
    # As a kill leaves it: the last line is cut.
    growing.write_text(growing.read_text() + '[["ca')
    firsts = []

    def watched(*arguments: object) -> Iterator[object]:
        firsts.append(arguments[2])
        yield from answers(*arguments)

    monkeypatch.setattr(module, "_answers", watched)
    assert predict(pets, pets / "pets", "--batch-size", "5", "--top-k", "1", "--out", out) == 2
    assert "was begun with another network, other images or another --top-k" in capsys.readouterr().err
    assert predict(pets, *words, out) == 0
    assert firsts == [5]
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not growing.exists()
    assert predict(pets, *words, out) == 2
    assert "is there already" in capsys.readouterr().err


def test_damaged_images_stop_it_or_have_an_empty_row(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        (images / f"{number}.jpg").write_bytes(jpeg(number)[: 100 if number == 1 else None])
    write_tar(images / "x.tar", {"a.txt": b"no image"})
    out = tmp_path / "p.csv"
    assert predict(pets, images, "--out", out) == 2
    assert "x.tar, sample a: no image" in capsys.readouterr().err
    (images / "x.tar").unlink()
    assert predict(pets, images, "--out", out, "--batch-size", "1") == 2
    assert f"{images / '1.jpg'}: cannot be decoded" in capsys.readouterr().err
    write_tar(images / "x.tar", {"a.txt": b"no image", "b.jpg": jpeg(5)})
    (tmp_path / ".p.csv.partial").unlink()
    assert predict(pets, images, "--out", out, "--skip-bad-images") == 0
    output = capsys.readouterr().out
    assert "4 images, 2 damaged" in output and f"notice: {images / '1.jpg'}: cannot be decoded" in output
    table = rows(out)
    assert [bool(row["class_1"]) for row in table] == [True, False, True, True]
    assert table[1]["probability_2"] == ""


def test_parquet_has_the_same_answers(pets: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in ("p.csv", "p.parquet"):
        assert predict(pets, pets / "pets" / "val", "--out", tmp_path / name) == 0
    table = parquet.read_table(tmp_path / "p.parquet").to_pydict()
    expected = rows(tmp_path / "p.csv")
    assert list(table) == list(expected[0])
    assert table["image"] == [row["image"] for row in expected]
    assert table["probability_1"] == pytest.approx([float(row["probability_1"]) for row in expected], abs=1e-6)


def test_parquet_without_its_package(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert predict(pets, pets / "pets", "--out", tmp_path / "p.parquet") == 2
    assert "Parquet needs the package pyarrow; install it with: pip install pyarrow" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("{}/pets", "--out", "{}/p.txt"), "must end in .csv or .parquet"),
        (("{}/no", "--out", "{}/p.csv"), "no such file or folder"),
        (("{}/run-1/config.yaml", "--out", "{}/p.csv"), "neither an image nor a tar shard"),
        (("{}/run-1", "--out", "{}/p.csv"), "no images and no tar shards in it"),
        (("{}/pets", "--out", "{}/p.csv", "--top-k", "0"), "must be at least 1"),
        (("{}/pets", "--out", "{}/p.csv", "--network", "static"), "unknown network 'static'; known: conditional"),
    ],
)
def test_what_is_wrong_on_the_command_line(
    pets: Path, words: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(pets, *(word.format(pets) for word in words)) == 2
    assert expected in capsys.readouterr().err


def test_networks_without_weights_or_runs_that_are_not_finished(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (str(pets / "pets"), "--out", str(tmp_path / "p.csv"))
    assert main(["predict", "mobilenetv1_025", *words]) == 2
    assert "has no weights; pass a run folder" in capsys.readouterr().err
    (tmp_path / "config.yaml").touch()
    assert main(["predict", str(tmp_path), *words]) == 2
    assert "no trained weights in it; finish it with: condconv train --resume" in capsys.readouterr().err


def test_a_folder_without_an_image_in_its_shards(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"a.txt": b""})
    with pytest.raises(DataError, match="no images in it"):
        open_inputs([str(tmp_path)], skip_bad=True)
