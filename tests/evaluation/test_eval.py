from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from condconv.cli.main import main
from condconv.data import Source, TensorImages, open_source
from condconv.errors import ArgumentError, DataError
from condconv.evaluation.evaluate import evaluate
from condconv.evaluation.figures import confusion_matrix, drawable
from condconv.runs.config import TrainConfig
from condconv.tasks import task_of
from condconv.tasks.classify.evaluation_report import headline, write_evaluation
from condconv.tasks.classify.evaluator import MISTAKES
from tests.data.writers import write_folder_set
from tests.runs.writing import write_run

CPU = torch.device("cpu")
CLASSIFY = task_of(TrainConfig(data=""))


def source_of(labels: list[int], classes: int = 10) -> Source:
    """Image i has value i in every pixel."""
    pixels = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    images = TensorImages(pixels, torch.tensor(labels), "made up")
    names = tuple(f"${label}$" for label in range(classes))
    return Source("toy", images, images, names, 1, (2, 2), True, False, (0.0,), (1.0,))


class _Table(nn.Module):
    """Logits of image i are row i of a table."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[(255 * images[:, 0, 0, 0]).round().long()]


def test_classes_without_validation_images_are_named() -> None:
    assert list(CLASSIFY.notices(source_of([0, 1, 2, 2], classes=3))) == []
    (notice,) = CLASSIFY.notices(source_of([0, 2], classes=4))
    assert "2 of 4 classes have no validation images ($1$, $3$)" in notice
    (notice,) = CLASSIFY.notices(source_of([9]))
    assert "($0$, $1$, $2$, $3$, $4$, …)" in notice


def test_letters_without_a_glyph_are_numbered() -> None:
    assert drawable("cost $5 \U0001f9a9") == r"cost \$5 <U+1F9A9>"
    assert confusion_matrix({"network": torch.eye(2)}, ("\U0001f9a9", "\U0001f9ab"))[:4] == b"\x89PNG"


def test_accuracies_confusions_and_mistakes() -> None:
    labels = [0, 0, 1, 2, 2, 2]
    logits = torch.zeros(6, 10)
    logits[range(6), torch.tensor([0, 1, 1, 9, 0, 2])] = torch.tensor([1.0, 3, 1, 5, 2, 1])
    # Image 3 is of class 2, which comes sixth; image 4's true class comes second.
    logits[3, 4:8] = 1.0
    logits[4, 2], logits[1, 0] = 1.5, 0.5
    seen = []
    found = evaluate(
        _Table(logits), source_of(labels), CLASSIFY, batch_size=4, workers=0, device=CPU,
        progress=lambda done, total: seen.append((done, total)),
    ).found  # fmt: skip
    assert found.images == 6 and found.top1 == 0.5
    assert found.top5 == pytest.approx(5 / 6)
    expected = torch.zeros(10, 10, dtype=torch.int64)
    expected[[0, 0, 1, 2, 2, 2], [0, 1, 1, 9, 0, 2]] = 1
    assert torch.equal(found.confusion, expected)
    assert found.of_class[:3].tolist() == pytest.approx([0.5, 1, 1 / 3]) and found.of_class[3:].isnan().all()
    assert [(m.place, m.true, m.predicted) for m in found.mistakes] == [(3, 2, 9), (1, 0, 1), (4, 2, 0)]
    assert found.mistakes[1].confidence == pytest.approx(float(logits[1].softmax(0).max()), abs=1e-6)
    assert seen == [(4, 6), (6, 6)]


def test_two_classes_have_no_top_five(tmp_path: Path) -> None:
    found = evaluate(_Table(torch.eye(2)), source_of([0, 1], 2), CLASSIFY, batch_size=2, workers=0, device=CPU)
    assert headline(found.found) == "top-1 100.00 %, top-2 100.00 %, 2 images"
    folder = write_evaluation(tmp_path / "e", "toy", source_of([0, 1], 2), found)
    assert not (folder / "mistakes.png").exists()


def test_another_number_of_classes() -> None:
    with pytest.raises(ArgumentError, match="toy has 3 classes and the network tells 10 apart"):
        evaluate(_Table(torch.zeros(2, 10)), source_of([0, 1], 3), CLASSIFY, batch_size=2, workers=0, device=CPU)


def test_the_folder_has_tables_and_pictures(tmp_path: Path) -> None:
    labels = [i % 3 for i in range(40)]
    source = source_of(labels, 3)
    evaluation = evaluate(_Table(torch.randn(40, 3)), source, CLASSIFY, batch_size=16, workers=0, device=CPU)
    found = evaluation.found
    assert 0 < len(found.mistakes) <= MISTAKES
    folder = write_evaluation(tmp_path / "e", "toy", source, evaluation)
    with (folder / "confusion_matrix.csv").open() as file:
        table = list(csv.reader(file))
    assert table[0][1:] == [row[0] for row in table[1:]] == list(source.classes)
    assert [[int(cell) for cell in row[1:]] for row in table[1:]] == found.confusion.tolist()
    with (folder / "mistakes.csv").open() as file:
        assert [row["image"] for row in csv.DictReader(file)] == [f"made up, image {m.place}" for m in found.mistakes]
    for name in ("confusion_matrix.png", "mistakes.png"):
        assert (folder / name).read_bytes()[:4] == b"\x89PNG"
    summary = (folder / "summary.md").read_text()
    assert headline(found) in summary and summary.count("| $") == 3


def test_a_run_and_what_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "pets"
    write_folder_set(data, per_class=6)
    bad = data / "val" / "cat" / "2.jpg"
    whole = bad.read_bytes()
    run, source = write_run(tmp_path, str(data), twin=True)
    words = ["eval", str(run), "--workers", "0", "--device", "cpu", "--batch-size", "5", "--out", str(tmp_path / "e")]
    assert main(words) == 0
    assert "12 images" in capsys.readouterr().out
    bad.write_bytes(whole[:60])
    assert main(words) == 2
    assert f"{bad}: cannot be decoded" in capsys.readouterr().err
    assert main([*words, "--skip-bad-images", "--network", "widened"]) == 0
    output = capsys.readouterr().out
    assert "11 images" in output and "left out 1 damaged samples" in output
    summary = (tmp_path / "e-2" / "summary.md").read_text()
    assert f"* {bad}: cannot be decoded" in summary and ", widened on pets" in summary
    assert main([*words, "--network", "wide"]) == 2
    assert "unknown network 'wide'; did you mean 'widened'?" in capsys.readouterr().err
    assert main([*words, "--data", "digits"]) == 2
    assert "digits has 10 classes" in capsys.readouterr().err


def test_no_image_that_can_be_decoded(tmp_path: Path) -> None:
    write_folder_set(tmp_path, per_class=2)
    for path in (tmp_path / "val").rglob("*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the 4 validation images can be decoded"):
        evaluate(
            _Table(torch.zeros(256, 2)), open_source(str(tmp_path)), CLASSIFY, batch_size=3, workers=0, device=CPU,
            skip_bad=True,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("nothing",), "--data is missing"),
        (("nothing", "--data", "digits"), "unknown model 'nothing'"),
        (("nothing", "--data", "digits", "--batch-size", "0"), "must be at least 1"),
        (("nothing", "--data", "digits", "--workers", "-1"), "must not be negative"),
        (("nothing", "--data", "digits", "--limit", "0"), "must be at least 1"),
        (("nothing", "--data", "digit"), "did you mean 'digits'?"),
    ],
)
def test_what_is_wrong_on_the_command_line(
    words: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["eval", *words, "--out", str(tmp_path / "e")]) == 2
    assert expected in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_is_evaluated_under_its_own_conditions_or_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = write_run(tmp_path / "runs", variant="none", model="cifar_resnet8", conditions="inverted")

    def said(*flags: str) -> str:
        assert main(["eval", str(run), "--limit", "100", "--out", str(tmp_path / "e"), *flags]) == 0
        return capsys.readouterr().out.splitlines()[0]

    assert said() == said("--conditions", "inverted") != said("--conditions", "plain")
    assert main(["eval", str(run), "--conditions", "inverte", "--out", str(tmp_path / "e")]) == 2
    assert "did you mean 'inverted'" in capsys.readouterr().err
