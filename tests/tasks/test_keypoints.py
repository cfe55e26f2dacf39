"""Keypoints: joints that follow their image, heatmaps there and back, COCO's numbers, and the command line."""

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
from torch import Tensor

from condconv.cli.main import main
from condconv.data import SampleKey
from condconv.errors import ArgumentError, DataError, ShapeError
from condconv.models import create_model
from condconv.models.pose import POSES
from condconv.runs.config import TrainConfig
from condconv.tasks import task_named_by, task_of
from condconv.tasks.keypoints import geometry
from condconv.tasks.keypoints.heatmaps import decode, encode, unmirrored
from condconv.tasks.keypoints.instances import Instance
from condconv.tasks.keypoints.joints import mirror_of, sigmas_of
from condconv.tasks.keypoints.opening import open_keypoints
from condconv.tasks.keypoints.scores import (
    annotations_of,
    average_precision,
    distinct,
    errors,
    pck,
    results_of,
    similarity,
)
from tests.cli.runner import metrics, quick

NAMES = ("top", "left_foot", "right_foot")
COCO_NAMES = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
COLOURS = ((250, 60, 60), (60, 250, 60), (60, 60, 250))


def write_joints(folder: Path, count: int = 6, size: tuple[int, int] = (120, 100)) -> Path:
    """Dark images with two triangles each, whose corners are dots of red, green and blue: the joints to be found."""
    random = np.random.default_rng(0)
    (folder / "annotations").mkdir(parents=True)
    for half in ("train", "val"):
        (folder / half).mkdir()
        content: dict[str, Any] = {"images": [], "annotations": []}
        content["categories"] = [{"id": 4, "name": "cup"}, {"id": 1, "name": "triangle", "keypoints": list(NAMES)}]
        for number in range(count):
            pixels = np.full((size[1], size[0], 3), 30, dtype=np.uint8)
            for left in (5, 65):
                joints: list[int] = []
                for row, colour in enumerate(COLOURS):
                    x, y = left + int(random.integers(3, 45)), 30 * row + int(random.integers(6, 30))
                    pixels[y - 2 : y + 3, x - 2 : x + 3] = colour
                    joints += [x, y, 2]
                if number == 1:
                    joints[3:6] = [0, 0, 0]
                content["annotations"].append(
                    {"id": len(content["annotations"]), "image_id": number, "category_id": 1, "keypoints": joints,
                     "num_keypoints": 3, "bbox": [left, 0, 50, 100], "area": 5000, "iscrowd": 0}
                )  # fmt: skip
            Image.fromarray(pixels).save(folder / half / f"{number}.png")
            name = f"{number}.png"
            content["images"].append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
        (folder / "annotations" / f"toy_keypoints_{half}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def triangles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_joints(tmp_path_factory.mktemp("data") / "triangles")


def test_an_image_is_there_once_for_each_instance(triangles: Path) -> None:
    assert task_named_by(str(triangles)) == "keypoints"
    source = open_keypoints(str(triangles))
    assert source.classes == NAMES and len(source.train) == 12
    first, second = source.val.target(0), source.val.target(1)
    assert first.image == second.image == 0 and source.val.where(0) == source.val.where(1)
    assert source.val.target(2).joints[1].tolist() == [0, 0, 0]


WRONG = {
    "keypoints are not 9 finite numbers": {"keypoints": [1, 2, 2]},
    "a visibility is none of 0": {"keypoints": [1, 2, 2, 1, 2, 2, 1, 2, 7]},
    "is not x, y, width, height with an area": {"bbox": [1, 2, 0, 4]},
    "of image 99, which is not listed": {"image_id": 99},
}


@pytest.mark.parametrize("expected", WRONG)
def test_a_wrong_annotation_is_named_or_left_out(
    expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_joints(tmp_path / "triangles", count=2)
    path = folder / "annotations" / "toy_keypoints_val.json"
    content = json.loads(path.read_text())
    content["annotations"][1] |= WRONG[expected]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"1 entries of the annotations are wrong: .*annotation 1: .*{expected}"):
        open_keypoints(str(folder))
    source = open_keypoints(str(folder), skip_bad=True)
    assert len(source.val) == 3 and len(source.skipped) == 1
    assert main(["data", "check", str(folder)]) == 2
    printed = capsys.readouterr().out
    assert expected in printed and "val: 3 instances in 2 images; 7 labelled joints of 3 names; 1 problems" in printed
    content["categories"] = content["categories"][:1]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="0 categories have names of joints"):
        open_keypoints(str(folder))


def test_joints_follow_their_image(triangles: Path) -> None:
    task = task_of(TrainConfig(data=str(triangles), task="keypoints", input_size=128))
    source = task.prepared(task.open(str(triangles)))
    assert source.image_size == (128, 96)
    turned, mirrors = set(), False
    for train in (True, False):
        view = task.view(source, train=train)
        for place in range(12):
            sample = view[SampleKey(3, place)]
            assert torch.equal(sample.image, view[SampleKey(3, place)].image)
            seen = {
                joint: int(sample.image[:, round(y), round(x)].argmax())
                for joint, (x, y, visible) in enumerate(sample.joints.tolist())
                if visible and 2 <= x < 94 and 2 <= y < 126
            }
            mirrored = {joint: (0, 2, 1)[joint] for joint in seen}  # a left foot in the mirror is a right one
            assert seen == {joint: joint for joint in seen} or (train and seen == mirrored)
            mirrors |= seen == mirrored
            turned.add(float(sample.to_image[0, 1]))
            stored = geometry.apply(sample.to_image, sample.joints[:, :2])
            if not train:
                torch.testing.assert_close(stored, source.val.target(place).joints[:, :2], atol=1e-3, rtol=0)
    assert len(turned) > 4 and mirrors


@pytest.mark.parametrize(("scale", "degrees"), [(1.0, 0.0), (0.7, 33.0), (1.3, -80.0)])
def test_the_map_has_an_inverse_and_keeps_the_centre(scale: float, degrees: float) -> None:
    box = torch.tensor([10.0, 20.0, 30.0, 80.0])
    matrix = geometry.input_to_image(box, (256, 192), scale, degrees)
    torch.testing.assert_close(geometry.apply(matrix, torch.tensor([96.0, 128.0])), torch.tensor([25.0, 60.0]))
    points = 100 * torch.rand(7, 2)
    torch.testing.assert_close(geometry.apply(geometry.inverse(matrix), geometry.apply(matrix, points)), points)
    # A tall box, a quarter larger, fills the height.
    across = geometry.apply(matrix, torch.tensor([[96.0, 0.0], [96.0, 256.0]])).diff(dim=0).norm()
    torch.testing.assert_close(across, torch.tensor(80 * 1.25 * scale))


def test_heatmaps_there_and_back() -> None:
    generator = torch.Generator().manual_seed(0)
    joints = torch.cat([torch.rand(40, 5, 2, generator=generator) * torch.tensor([180.0, 240.0]) + 6,
                        torch.full((40, 5, 1), 2.0)], dim=2)  # fmt: skip
    heatmaps, counts = encode(joints, (256, 192))
    assert heatmaps.shape == (40, 5, 64, 48) and bool(counts.all()) and float(heatmaps.max()) == 1.0
    # The Gaussian is about the rounded pixel, as in the papers, so that half a pixel of the map is lost.
    found = decode(heatmaps)
    assert float((found[..., :2] - joints[..., :2]).abs().max()) <= 2.0 + 1e-3
    assert torch.equal(found[..., 2], torch.ones(40, 5))
    off = torch.tensor([[[-30.0, 10.0, 2.0], [60.0, 60.0, 0.0], [-20.0, 10.0, 1.0]]])
    assert encode(off, (256, 192))[1].tolist() == [[False, False, True]]


def test_the_peak_moves_a_quarter_towards_its_higher_neighbour() -> None:
    heatmap = torch.zeros(1, 1, 8, 8)
    heatmap[0, 0, 3, 4] = 1.0
    heatmap[0, 0, 3, 5] = 0.5
    heatmap[0, 0, 2, 4] = 0.2
    assert decode(heatmap).tolist() == [[[4 * 4.25, 4 * 2.75, 1.0]]]


def test_mirrored_heatmaps_come_back() -> None:
    mirror = mirror_of(NAMES)
    assert mirror == [0, 2, 1] and mirror_of(("a", "b")) is None
    maps = torch.rand(2, 3, 6, 8)
    twice = unmirrored(unmirrored(maps, torch.tensor(mirror)), torch.tensor(mirror))
    torch.testing.assert_close(twice[..., 1:-1], maps[..., 1:-1])  # moved right, mirrored, moved right
    # A perfect network's answer to the mirrored input agrees with that to the input.
    joints = torch.tensor([[[40.0, 40.0, 2], [60.0, 80.0, 2], [20.0, 80.0, 2]]])
    mirrored = joints[:, mirror].clone()
    mirrored[..., 0] = 95 - mirrored[..., 0]
    back = unmirrored(encode(mirrored, (128, 96))[0], torch.tensor(mirror))
    assert float((decode(back)[..., :2] - joints[..., :2]).abs().max()) <= 4.0


def random_instances(count: int, names: tuple[str, ...]) -> tuple[list[Instance], list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    instances, found = [], []
    for number in range(count):
        joints = torch.cat([200 * torch.rand(len(names), 2, generator=generator),
                            torch.randint(0, 3, (len(names), 1), generator=generator).float()], dim=1)  # fmt: skip
        joints[joints[:, 2] == 0] = 0
        area = float(torch.randint(1000, 20000, (), generator=generator))
        instances.append(Instance(joints, torch.tensor([0.0, 0, 200, 200]), area, number // 2))
        noise = 25 * torch.rand((), generator=generator) * torch.randn(len(names), 2, generator=generator)
        found.append(torch.cat([joints[:, :2] + noise, torch.rand(len(names), 1, generator=generator)], dim=1))
    return instances, found


@pytest.mark.parametrize("names", [COCO_NAMES, NAMES], ids=["coco", "others"])
def test_average_precision_is_that_of_pycocotools(names: tuple[str, ...]) -> None:
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    instances, found = random_instances(40, names)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = annotations_of(instances, names)
        truth.createIndex()
        reference = cocoeval.COCOeval(truth, truth.loadRes(results_of(instances, found, names)), "keypoints")
        reference.params.kpt_oks_sigmas = np.array(sigmas_of(names))
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    mine = average_precision(instances, found, names)
    assert list(mine.values()) == pytest.approx(reference.stats[:5].tolist(), abs=1e-6)
    assert 0.02 < mine["ap"] < 0.98


def test_similarity_and_pck_are_what_the_formulas_say() -> None:
    instances, found = random_instances(6, COCO_NAMES)
    sigmas = sigmas_of(COCO_NAMES)
    assert sigmas[0] == 0.026 and sigmas[11] == sigmas[12] == 0.107 and sigmas_of(NAMES) == [0.05] * 3
    distances, relative = errors(instances, found)
    right, labelled = 0, 0
    for number, (instance, joints) in enumerate(zip(instances, found, strict=True)):
        values = []
        for k, (x, y, visible) in enumerate(instance.joints.tolist()):
            d = ((x - float(joints[k, 0])) ** 2 + (y - float(joints[k, 1])) ** 2) ** 0.5
            if visible:
                values.append(np.exp(-(d**2) / (2 * instance.area * (2 * sigmas[k]) ** 2)))
                labelled, right = labelled + 1, right + (d <= 20.0)
                assert distances[number, k] == pytest.approx(d, rel=1e-5)
            else:
                assert np.isnan(distances[number, k])
        assert similarity(joints, instance.joints, instance.area, sigmas) == pytest.approx(np.mean(values), abs=1e-6)
    assert pck(relative) == pytest.approx(right / labelled)


def test_of_one_instance_found_twice_the_surer_is_kept() -> None:
    instances, found = random_instances(4, NAMES)
    found[1] = found[0].clone()
    found[1][:, 2] = 0.9
    found[0][:, 2] = 0.5
    assert distinct(instances, found, NAMES) == [1, 2, 3]  # 0 and 1 are in one image
    found[2] = found[0].clone()
    assert 2 in distinct(instances, found, NAMES)


@pytest.mark.parametrize("name", POSES)
def test_networks_give_a_quarter_of_the_input(name: str) -> None:
    network = create_model(name, num_classes=5, width_multiplier=0.25).eval()
    with torch.no_grad():
        assert network(torch.rand(2, 3, 64, 32)).shape == (2, 5, 16, 8)
    with pytest.raises(ShapeError, match="H and W multiples of 32"):
        network(torch.rand(1, 3, 60, 32))


def test_other_networks_and_sizes_are_refused(triangles: Path) -> None:
    task = task_of(TrainConfig(data="x", task="keypoints", model="resnet18", input_size=100))
    source = open_keypoints(str(triangles))
    with pytest.raises(ArgumentError, match="model='resnet18' does not locate joints; pass one of pose_mobilenetv2"):
        task.network_arguments(source)
    with pytest.raises(ArgumentError, match="input_size=100 must be a multiple of 32; pass 96"):
        task.prepared(source)
    classify = task_of(TrainConfig(data="x", model="pose_resnet18_a"))
    with pytest.raises(ArgumentError, match="is a pose network, and the task is to classify; pass --task keypoints"):
        classify.network_arguments(source)


def test_a_network_learns_a_batch(triangles: Path) -> None:
    task = task_of(TrainConfig(data=str(triangles), task="keypoints", model="pose_mobilenetv2_050_b", input_size=64))
    source = task.prepared(task.open(str(triangles)))
    view = task.view(source, train=False)
    batch = torch.utils.data.default_collate([view[SampleKey(0, place)] for place in range(6)])
    torch.manual_seed(0)
    network = create_model("pose_mobilenetv2_050_b", **task.network_arguments(source), width_multiplier=0.25).train()
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = []
    for _ in range(25):
        loss = task.loss(task.run(network, batch), batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.fixture(scope="module")
def whole(triangles: Path) -> Path:
    out = triangles.parent
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        arguments = (
            "train", "--data", str(triangles), "--width", "0.25", "--epochs", "2", "--batch-size", "4", "--input-size",
            "64", "--workers", "0", "--device", "cpu", "--name", "run", "--out", str(out), "--no-report",
        )  # fmt: skip
        assert main(list(arguments)) == 0
    return out / "run-1"


def test_a_run_has_the_numbers_of_coco(whole: Path) -> None:
    rows = metrics(whole)
    assert {"val_loss", "ap", "ap_50", "ap_medium", "pck", "pixel_error"} <= rows[0].keys()
    summary = (whole / "summary.md").read_text()
    assert "3 joints" in summary and "| left_foot |" in summary and "PCK@0.1" in summary
    assert (whole / "distances.png").exists() and (whole / "worst.png").exists()


def test_evaluation_and_prediction(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("--workers", "0", "--device", "cpu")
    data = whole.parent / "triangles"
    assert main(["eval", str(whole), "--data", str(data), "--out", str(tmp_path / "e"), *common]) == 0
    assert "AP" in capsys.readouterr().out
    with (tmp_path / "e" / "instances.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 12
    out = tmp_path / "found"
    assert main(["predict", str(whole), str(data / "val"), "--out", str(out), *common]) == 0
    found = json.loads((out / "keypoints.json").read_text())
    assert len(found) == 6 == len(list(out.glob("*.png"))) and len(found[0]["keypoints"]) == 9


def test_the_tables_of_deeplabcut(tmp_path: Path) -> None:
    (tmp_path / "labeled-data").mkdir()
    lines = ["scorer,me,me,me,me", "bodyparts,nose,nose,tail,tail", "coords,x,y,x,y"]
    for number in (4, 0, 3, 1, 2, 5):
        Image.new("L", (40, 30)).save(tmp_path / "labeled-data" / f"img{number}.png")
        tail = "," if number == 1 else "20,25"
        lines.append(f"labeled-data/img{number}.png,{number + 1.5},10,{tail}")
    (tmp_path / "CollectedData.csv").write_text("\n".join(lines) + "\n")
    assert task_named_by(str(tmp_path)) == "keypoints"
    source = open_keypoints(str(tmp_path))
    assert source.classes == ("nose", "tail") and len(source.train) == 4 and len(source.val) == 2
    assert source.train.target(0).joints.tolist() == [[1.5, 10, 2], [20, 25, 2]]
    assert source.train.target(1).joints.tolist() == [[2.5, 10, 2], [0, 0, 0]]
    assert [source.val.target(i).joints[0, 0].item() for i in (0, 1)] == [5.5, 6.5]  # the last frames validate
    (tmp_path / "CollectedData.csv").write_text("\n".join([*lines[:3], "labeled-data/img0.png,1,2,3"]))
    with pytest.raises(DataError, match="img0.png: 3 numbers for 2 joints"):
        open_keypoints(str(tmp_path))

