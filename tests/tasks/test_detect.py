"""Detection: annotations that are wrong, boxes that follow their image, COCO's numbers, and the command line."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from condconv.cli.main import main
from condconv.data import SampleKey
from condconv.data.sampling import PADDING
from condconv.detection import Detections
from condconv.errors import ArgumentError, DataError
from condconv.models import create_model
from condconv.models.ssd import SSDOutput, ssd_anchors
from condconv.runs.config import TrainConfig
from condconv.tasks import task_named_by, task_of
from condconv.tasks.detect.average_precision import annotations_of, average_precision, results_of
from condconv.tasks.detect.confusion import confusion
from condconv.tasks.detect.drawing import mistakes
from condconv.tasks.detect.evaluator import as_stored
from condconv.tasks.detect.objects import Objects, no_objects
from condconv.tasks.detect.opening import open_objects
from condconv.tasks.detect.view import collate
from tests.cli.runner import metrics, quick

COLOURS = ((220, 30, 30), (30, 30, 220))


def write_objects(folder: Path, count: int = 8, size: tuple[int, int] = (60, 48)) -> Path:
    """Grey images with red and blue boxes, which is all that there is to find; ids and categories have gaps."""
    random = np.random.default_rng(0)
    for half in ("train", "val"):
        (folder / half).mkdir(parents=True)
        content: dict[str, Any] = {"categories": [{"id": 7, "name": "red"}, {"id": 90, "name": "blue"}]}
        content |= {"images": [], "annotations": []}
        for number in range(count):
            pixels = np.full((size[1], size[0], 3), 128, dtype=np.uint8)
            for kind in random.integers(0, 2, number % 3):
                x, y = int(random.integers(0, size[0] - 24)), int(random.integers(0, size[1] - 20))
                width, height = (int(value) for value in random.integers(12, 20, 2))
                pixels[y : y + height, x : x + width] = COLOURS[kind]
                content["annotations"].append(
                    {"id": 1 + len(content["annotations"]), "image_id": 10 * number, "category_id": [7, 90][kind],
                     "bbox": [x, y, width, height], "area": width * height, "iscrowd": 0}
                )  # fmt: skip
            Image.fromarray(pixels).save(folder / half / f"{number}.png")
            content["images"].append(
                {"id": 10 * number, "file_name": f"{number}.png", "width": size[0], "height": size[1]}
            )
        (folder / f"{half}.json").write_text(json.dumps(content))
    return folder


def test_a_folder_is_recognised_and_category_ids_may_have_gaps(tmp_path: Path) -> None:
    folder = write_objects(tmp_path / "boxes")
    assert task_named_by(str(folder)) == "detect" and task_named_by("digits") is None
    source = open_objects(str(folder))
    assert source.classes == ("red", "blue") and len(source.train) == 8
    assert {int(label) for i in range(8) for label in source.train.target(i).labels} == {1, 2}
    some = source.limited(3, None)
    assert [some.train.where(i) for i in range(3)] and isinstance(some.train.target(1), Objects)


WRONG = {
    "has no area": {"bbox": [3, 3, 0, 5]},
    "is not four finite numbers": {"bbox": [3, float("nan"), 5, 5]},
    "lies outside of its image of 60 x 48 pixels": {"bbox": [100, 3, 5, 5]},
    "category 8 is not listed": {"category_id": 8},
    "of image 5, which is not listed": {"image_id": 5},
}


@pytest.mark.parametrize("expected", WRONG)
def test_a_wrong_annotation_is_named_or_left_out(
    expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_objects(tmp_path / "boxes")
    content = json.loads((folder / "val.json").read_text())
    before = sum(len(open_objects(str(folder)).val.target(i).labels) for i in range(8))
    content["annotations"][1] |= WRONG[expected]
    (folder / "val.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"1 entries of the annotations are wrong: .*annotation 2: .*{expected}"):
        open_objects(str(folder))
    source = open_objects(str(folder), skip_bad=True)
    assert sum(len(source.val.target(i).labels) for i in range(8)) == before - 1 and len(source.skipped) == 1
    assert main(["data", "check", str(folder)]) == 2
    assert expected in capsys.readouterr().out


def test_files_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_objects(tmp_path / "boxes")
    assert main(["data", "check", str(folder)]) == 0
    assert "val: 8 images, 3 of them without objects" in capsys.readouterr().out
    content = json.loads((folder / "train.json").read_text())
    (folder / "train" / "1.png").unlink()
    content["images"][2]["width"] = 61
    content["images"][4]["id"] = content["images"][3]["id"]
    (folder / "train.json").write_text(json.dumps(content))
    skipped = " ".join(open_objects(str(folder), skip_bad=True).skipped)
    assert "1.png is missing" in skipped and "is 60 x 48 pixels, and 61 x 48 are stated" in skipped
    assert "image id 30 occurs 2 times" in skipped
    (folder / "train.json").write_text(json.dumps(content)[:200])
    with pytest.raises(DataError, match="train.json: not readable as JSON, truncated or damaged"):
        open_objects(str(folder))
    (folder / "train.json").write_text("{}")
    with pytest.raises(DataError, match="no annotations in COCO's format"):
        open_objects(str(folder))


def test_boxes_follow_their_image(tmp_path: Path) -> None:
    folder = write_objects(tmp_path / "boxes")
    task = task_of(TrainConfig(data=str(folder), task="detect", input_size=96))
    source = task.prepared(task.open(str(folder)))
    for train in (True, False):
        view = task.view(source, train=train)
        for place in range(8):
            sample = view[SampleKey(3, place)]
            assert torch.equal(sample.image, view[SampleKey(3, place)].image)
            for (x1, y1, x2, y2), label in zip(sample.objects.boxes.tolist(), sample.objects.labels, strict=True):
                if x2 - x1 < 8 or y2 - y1 < 8:
                    continue  # too little of it is left in the crop
                # In the middle of a box (another may lie over it) the pixels have the colour of one of the classes.
                middle = sample.image[:, round((y1 + y2) / 2), round((x1 + x2) / 2)]
                assert float(middle[2 * (int(label) - 1)] - middle[1]) > 0.3 or len(sample.objects.labels) > 1
    blank = view[SampleKey(0, PADDING)]
    images, objects, places, decoded, sizes = collate([blank, view[SampleKey(0, 2)]])
    assert images.shape == (2, 3, 96, 96) and len(objects[0].labels) == 0 and places.tolist() == [PADDING, 2]
    stored = as_stored(objects[1], sizes[1].tolist(), (96, 96))
    torch.testing.assert_close(stored.boxes, source.val.target(2).boxes, atol=1e-3, rtol=0)


def random_images(count: int, classes: int) -> tuple[list[Objects], list[Detections]]:
    generator = torch.Generator().manual_seed(3)

    def boxes(number: int) -> torch.Tensor:
        corner, side = (torch.rand(number, 2, generator=generator) for _ in range(2))
        return torch.cat([200 * corner, 200 * corner + 8 + 120 * side], dim=1)

    truths, found = [], []
    for _ in range(count):
        number = int(torch.randint(0, 9, (), generator=generator))
        truth = boxes(number)
        labels = torch.randint(1, classes + 1, (number,), generator=generator)
        areas = (truth[:, 2:] - truth[:, :2]).prod(dim=1)
        truths.append(Objects(truth, labels, areas, torch.rand(number, generator=generator) < 0.1))
        near = torch.cat([truth + 6 * torch.randn(number, 4, generator=generator), boxes(4)])
        guesses = torch.cat([labels, torch.randint(1, classes + 1, (4,), generator=generator)])
        found.append(Detections(near, torch.rand(number + 4, generator=generator), guesses))
    return truths, found


def test_average_precision_is_that_of_pycocotools() -> None:
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    truths, found = random_images(30, 3)
    classes = ("a", "b", "c")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = annotations_of(truths, classes)
        truth.createIndex()
        reference = cocoeval.COCOeval(truth, truth.loadRes(results_of(found)), "bbox")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    mine = average_precision(truths, found, classes)
    assert list(mine.summary.values()) == pytest.approx(reference.stats[:6].tolist(), abs=1e-6)
    assert 0.05 < mine.summary["map"] < 0.95 and np.mean(mine.of_class) == pytest.approx(mine.summary["map"], abs=1e-6)


def test_no_detection_is_no_crash() -> None:
    truths, _ = random_images(5, 2)
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    found = average_precision(truths, [nothing] * 5, ("a", "b"))
    assert found.summary["map"] == 0.0 and found.of_class == [0.0, 0.0]
    assert average_precision([no_objects()] * 2, [nothing] * 2, ("a",)).summary["map"] == -1.0
    assert mistakes(truths[0], nothing) == int((~truths[0].crowd).sum())


def test_confusion_counts_each_object_and_each_detection_once() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]])
    crowd = torch.tensor([False, False, False, True])
    truth = Objects(boxes, torch.tensor([1, 1, 2, 2]), torch.full((4,), 100.0), crowd)
    places = torch.stack([boxes[0], boxes[0] + 1, boxes[1], boxes[2], torch.tensor([80.0, 0, 90, 10])])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.1, 0.6])
    found = Detections(places, scores, torch.tensor([1, 1, 2, 2, 2]))
    counts = confusion([truth, no_objects()], [found, Detections(*(part[:0] for part in found))], 2)
    # The second box on the first object is one too many, the third object is found with too low a score.
    assert counts.tolist() == [[1, 1, 0], [0, 0, 1], [1, 1, 0]]
    truths, guesses = random_images(20, 3)
    counts = confusion(truths, guesses, 3)
    assert int(counts[:-1].sum()) == sum(int((~each.crowd).sum()) for each in truths)
    assert int(counts[:, :-1].sum()) == sum(int((each.scores >= 0.25).sum()) for each in guesses)


def test_the_loss_is_finite_whatever_is_in_the_images() -> None:
    task = task_of(TrainConfig(data="somewhere", task="detect", model="ssd_mobilenetv1_050"))
    anchors = ssd_anchors((300, 300))
    output = SSDOutput(torch.randn(2, len(anchors), 3), torch.randn(2, len(anchors), 4))
    crowd = Objects(torch.tensor([[0.0, 0, 300, 300]]), torch.tensor([1]), torch.tensor([9e4]), torch.tensor([True]))
    images = torch.zeros(2, 3, 300, 300)
    empty = task.loss(output, (images, [no_objects(), no_objects()]))
    assert bool(empty.isfinite()) and torch.equal(empty, task.loss(output, (images, [crowd, no_objects()])))
    assert task.group_of((images, [crowd, no_objects()])).tolist() == [0, -1]
    with pytest.raises(ArgumentError, match="model='resnet18' does not detect; pass one of ssd_mobilenetv1_050"):
        task_of(TrainConfig(data="x", task="detect", model="resnet18")).network_arguments(None)


def test_what_is_asked_of_a_detector_follows_the_loss(tmp_path: Path) -> None:
    folder = write_objects(tmp_path / "boxes", count=3)
    task = task_of(TrainConfig(data=str(folder), task="detect", model="ssd_mobilenetv1_050", detection_loss="focal"))
    assert task.network_arguments(open_objects(str(folder)))["class_prior"] == 0.01
    logits = torch.full((1, len(ssd_anchors((300, 300))), 3), -20.0)
    logits[0, 7, 2] = 3.0
    evaluator = task.evaluator(open_objects(str(folder)), None)
    places = torch.tensor([0]), torch.tensor([True]), torch.tensor([[300, 300]])
    evaluator.add(SSDOutput(logits, torch.zeros(1, logits.shape[1], 4)), (None, [no_objects()], *places))
    (found,) = evaluator.detections
    assert found.labels.tolist() == [2] and float(found.scores[0]) == pytest.approx(1 / (1 + np.exp(-3.0)))
    name = "torchvision/ssdlite320_mobilenet_v3_large"
    with pytest.raises(ArgumentError, match="detection_loss='focal' is for SSD, and torchvision/ssdlite320"):
        task_of(TrainConfig(data="x", task="detect", model=name, detection_loss="focal"))


def test_a_detector_of_another_width_has_the_same_boxes() -> None:
    narrow, published = (create_model("ssd_mobilenetv1_050", width_multiplier=w, num_classes=2) for w in (0.5, 1.0))
    x = torch.rand(1, 3, 96, 96)
    shapes = [tuple(part.shape for part in network.eval()(x)) for network in (narrow, published)]
    assert shapes[0] == shapes[1] and shapes[0][1][1] == len(ssd_anchors((96, 96)))


ARGUMENTS = (
    "train", "--epochs", "2", "--batch-size", "2", "--num-experts", "2", "--input-size", "64", "--width", "0.25",
    "--workers", "0", "--device", "cpu", "--name", "run", "--no-report",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an uninterrupted run; its data is beside it."""
    out = tmp_path_factory.mktemp("whole")
    write_objects(out / "boxes")
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        assert main([*ARGUMENTS, "--data", str(out / "boxes"), "--out", str(out)]) == 0
    return out / "run-1"


def test_a_run_has_average_precision_by_size(whole: Path) -> None:
    rows = metrics(whole)
    assert {"train_class_loss", "train_box_loss", "map", "map_50", "map_75", "map_small"} <= rows[0].keys()
    summary = (whole / "summary.md").read_text()
    assert "objects of 2 classes" in summary and "| red |" in summary and "| small (below 32²) |" in summary
    assert (whole / "precision_recall.png").exists() and (whole / "mistakes.png").exists()
    assert (whole / "confusion_matrix.png").exists()


def test_evaluation_and_prediction(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("--workers", "0", "--device", "cpu")
    assert main(["eval", str(whole), "--out", str(tmp_path / "e"), *common]) == 0
    assert "mAP" in capsys.readouterr().out
    with (tmp_path / "e" / "images.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 8
    out = tmp_path / "found"
    words = ["predict", str(whole), str(whole.parent / "boxes" / "val"), "--out", str(out), *common]
    assert main(words) == 0
    found = json.loads((out / "detections.json").read_text())
    assert len(list(out.glob("*.png"))) == 8
    with (out / "detections.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(found)
    assert all(0 <= each["bbox"][0] <= 60 and 0 <= each["bbox"][1] <= 48 for each in found)
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err


def corners(folder: Path) -> list[tuple[list[list[float]], list[int]]]:
    source = open_objects(str(folder))
    return [
        (source.train.target(i).boxes.round(decimals=3).tolist(), source.train.target(i).labels.tolist())
        for i in range(len(source.train))
    ]


def test_other_formats_give_the_same_objects(tmp_path: Path) -> None:
    coco = write_objects(tmp_path / "coco")
    yolo, voc = tmp_path / "yolo", tmp_path / "voc"
    (voc / "ImageSets" / "Main").mkdir(parents=True)
    for name in ("Annotations", "JPEGImages"):
        (voc / name).mkdir()
    for half in ("train", "val"):
        content = json.loads((coco / f"{half}.json").read_text())
        for kind in ("images", "labels"):
            (yolo / kind / half).mkdir(parents=True)
        names = []
        for image in content["images"]:
            name, here = f"{half}{Path(image['file_name']).stem}", coco / half / image["file_name"]
            mine = [each for each in content["annotations"] if each["image_id"] == image["id"]]
            (yolo / "images" / half / f"{name}.png").write_bytes(here.read_bytes())
            (voc / "JPEGImages" / f"{name}.png").write_bytes(here.read_bytes())
            lines, objects = [], []
            for each in mine:
                x, y, w, h = each["bbox"]
                red = each["category_id"] == 7
                lines.append(f"{0 if red else 1} {(x + w / 2) / 60} {(y + h / 2) / 48} {w / 60} {h / 48}")
                edges = zip(("xmin", "ymin", "xmax", "ymax"), (x + 1, y + 1, x + w, y + h), strict=True)
                box = "".join(f"<{edge}>{value}</{edge}>" for edge, value in edges)
                # Sorted by name, the classes of VOC are in the order of the others' numbers.
                objects.append(f"<object><name>{'a' if red else 'b'}</name><bndbox>{box}</bndbox></object>")
            if lines:
                (yolo / "labels" / half / f"{name}.txt").write_text("\n".join(lines))
            size = "<size><width>60</width><height>48</height></size>"
            text = f"<annotation><filename>{name}.png</filename>{size}{''.join(objects)}</annotation>"
            (voc / "Annotations" / f"{name}.xml").write_text(text)
            names.append(name)
        (voc / "ImageSets" / "Main" / f"{half}.txt").write_text("\n".join(names))
    (yolo / "data.yaml").write_text("names: [red, blue]\ntrain: images/train\nval: images/val\n")
    assert task_named_by(str(yolo)) == task_named_by(str(voc)) == "detect"
    assert corners(yolo) == corners(voc) == corners(coco)
    (voc / "Annotations" / "val0.xml").write_text("<annotation>")
    with pytest.raises(DataError, match="val0.xml: not an annotation of Pascal VOC"):
        open_objects(str(voc))
    (yolo / "labels" / "val" / "val1.txt").write_text("0 30 20 10 10")
    with pytest.raises(DataError, match="val1.txt: line 1: .* is not in fractions of the image"):
        open_objects(str(yolo))
