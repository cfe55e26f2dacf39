"""Test-time augmentation: the mean answer over an image and its mirror image, routing that of the image."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

import condconv
from condconv.cli.main import main
from condconv.data import open_source
from condconv.evaluation.evaluate import evaluate
from condconv.runs.config import TrainConfig
from condconv.runs.trained import load_trained
from condconv.tasks import task_of
from tests.data.writers import write_folder_set
from tests.runs.writing import write_run


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pets")
    write_folder_set(folder / "pets", per_class=6)
    write_run(folder, str(folder / "pets"), name="run")
    return folder


def test_mean_probabilities_are_what_the_table_has(pets: Path, tmp_path: Path) -> None:
    out, images = tmp_path / "p.csv", pets / "pets" / "val"
    words = ["predict", str(pets / "run-1"), str(images), "--workers", "0", "--device", "cpu", "--out", str(out)]
    assert main([*words, "--tta", "--batch-size", "5"]) == 0
    with out.open() as file:
        rows = list(csv.DictReader(file))
    model = condconv.from_pretrained(pets / "run-1")
    _, source = load_trained(pets / "run-1", "conditional", open_source(str(pets / "pets")))
    view = task_of(TrainConfig(data="")).view(source, train=False)
    for place, row in enumerate(rows):
        image = view[(0, place)].image[None]
        with torch.no_grad():
            mean = (model(image).softmax(dim=1) + model(image.flip(-1)).softmax(dim=1)) / 2
        answer = {row[f"class_{rank}"]: float(row[f"probability_{rank}"]) for rank in (1, 2)}
        assert [answer[name] for name in source.classes] == pytest.approx(mean[0].tolist(), abs=2e-5)


def test_a_mirrored_set_gets_the_same_answers_and_routing_is_not_mirrored(pets: Path) -> None:
    network, source = load_trained(pets / "run-1", "conditional", open_source(str(pets / "pets")))
    task = task_of(TrainConfig(data=""))
    how = {"batch_size": 5, "workers": 0, "device": torch.device("cpu")}

    class Mirrored(type(task)):  # type: ignore[misc]
        def run(self, network: object, batch: list[torch.Tensor]) -> torch.Tensor:
            return super().run(network, [batch[0].flip(-1), *batch[1:]])

    plain = evaluate(network, source, task, **how)
    both = evaluate(network, source, task, tta=True, **how)
    turned = evaluate(network, source, Mirrored(task.config), tta=True, **how)
    assert torch.equal(both.found.confusion, turned.found.confusion)
    assert all(torch.equal(both.routing[name], plain.routing[name]) for name in plain.routing)


def test_a_table_begun_without_is_not_gone_on_with(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from condconv.tasks.classify import prediction

    out = tmp_path / "p.csv"
    words = ["predict", str(pets / "run-1"), str(pets / "pets" / "val"), "--workers", "0", "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(prediction, "_write_csv", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        assert main(words) == 2
    assert main([*words, "--tta"]) == 2
    assert main(words) == 0


def test_a_task_without_a_mean_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = write_run(tmp_path, "digits", name="r")
    config = run / "config.yaml"
    config.write_text(
        config.read_text().replace("task: null", "task: restore").replace("output_stride: 4", "output_stride: null")
    )
    for verb, words in (("eval", ["--data", "digits"]), ("predict", ["x.png"])):
        assert main([verb, str(run), *words, "--tta"]) == 2
        assert f"{verb}: --tta=True says nothing to --task restore" in capsys.readouterr().err
