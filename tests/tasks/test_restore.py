"""Restoration: what was done to a picture, how close one is to another, and the whole way on the command line."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from condconv.cli.main import main
from condconv.counting import count
from condconv.data import IGNORED, SampleKey
from condconv.data.sampling import PADDING
from condconv.errors import ArgumentError, DataError, ShapeError
from condconv.models import create_model
from condconv.runs.config import TrainConfig
from condconv.tasks import task_of
from condconv.tasks.restore.degradations import LEVELS, kinds, parse_degradations
from condconv.tasks.restore.evaluator import RestorationEvaluator
from condconv.tasks.restore.pictures import open_pictures
from condconv.tasks.restore.quality import MOST_DB, psnr, ssim
from tests.cli.runner import metrics, quick


def write_pictures(folder: Path, count: int = 20, side: int = 20) -> Path:
    """Smooth colour pictures, so that there is something to restore."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        random = np.random.default_rng(number)
        small = Image.fromarray(random.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        small.resize((side, side + 4), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.png")
    return folder


def test_degradations_are_a_function_of_the_seed_and_stay_in_their_range() -> None:
    degradations = parse_degradations("noise:10-50, blur, jpeg:20-60")
    names = degradations.groups()
    assert len(names) == 3 * LEVELS and names[0] == "noise 10–18" and names[-1] == "jpeg 52–60"
    picture = torch.randint(0, 256, (3, 24, 24), dtype=torch.uint8)
    groups = set()
    for seed in range(60):
        first, again = degradations(picture, seed), degradations(picture, seed)
        assert torch.equal(first.picture, again.picture) and first.group == again.group
        assert first.picture.dtype == torch.uint8 and first.picture.shape == picture.shape
        low, high = (float(edge) for edge in names[first.group].split()[1].split("–"))
        assert low <= first.strength <= high
        groups.add(first.group // LEVELS)
    assert groups == {0, 1, 2}


def test_noise_has_the_deviation_that_it_says() -> None:
    grey = torch.full((1, 200, 200), 128, dtype=torch.uint8)
    noisy = kinds["noise"].apply(grey, 20.0, torch.Generator().manual_seed(0)).float()
    assert abs(float(noisy.std()) - 20) < 0.5 and abs(float(noisy.mean()) - 128) < 0.5
    for name in kinds.names():  # no strength at all leaves a flat picture as it is
        least = kinds[name].widest[1] if name == "jpeg" else 0.0
        assert torch.equal(kinds[name].apply(grey, least, torch.Generator()), grey)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nois", "did you mean 'noise'"),
        ("noise,noise:1-2", "has a name twice"),
        ("noise:5-2", "the smaller one first; write noise:0-75 or noise"),
        ("jpeg:0-50", "two numbers from 1 to 100"),
        ("blur:many", "gives 'blur' the range 'many'"),
    ],
)
def test_degradations_that_are_none(text: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        parse_degradations(text)


def test_quality_is_what_its_definitions_say() -> None:
    clean = torch.rand(2, 3, 20, 20)
    other = (clean + 0.2 * torch.randn_like(clean)).clamp(0, 1)
    expected = [-10 * math.log10(float((a - b).square().mean())) for a, b in zip(other, clean, strict=True)]
    assert psnr(other, clean).tolist() == pytest.approx(expected, rel=1e-5)
    assert psnr(clean, clean).tolist() == [MOST_DB] * 2
    assert ssim(clean, clean).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    # In the middle of a picture of one colour beside another one only the luminance term is left.
    a, b = torch.full((1, 1, 40, 40), 0.3), torch.full((1, 1, 40, 40), 0.5)
    luminance = (2 * 0.3 * 0.5 + 0.01**2) / (0.3**2 + 0.5**2 + 0.01**2)
    assert float(ssim(a, b)) == pytest.approx(luminance, abs=1e-4)


def test_a_tenth_is_held_out_and_always_the_same(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "a" / "deep", 20).parent
    one, other = open_pictures(str(folder)), open_pictures(str(folder))
    names = [{half.where(i) for i in range(len(half))} for half in (one.train, one.val)]
    assert len(one.val) == 2 and len(one.train) == 18 and not names[0] & names[1]
    assert [other.val.where(i) for i in range(2)] == [one.val.where(i) for i in range(2)]
    assert one.image_size == (24, 20) and one.native and one.classes == ()
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="no image files in it"):
        open_pictures(str(tmp_path / "b"))
    write_pictures(tmp_path / "b", 1)
    with pytest.raises(DataError, match="at least two are needed"):
        open_pictures(str(tmp_path / "b"))
    for half in ("train", "val"):
        write_pictures(tmp_path / "c" / half / "any", 3)
    assert len(open_pictures(str(tmp_path / "c")).val) == 3


def test_a_sample_is_a_crop_and_follows_from_its_key(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", 12, side=40)
    task = task_of(TrainConfig(data=str(folder), task="restore", input_size=16, seed=3))
    source = task.prepared(task.open(str(folder)))
    view = task.view(source, train=True)
    image, clean, place, decoded, group, strength = view[SampleKey(2, 5)]
    assert torch.equal(image, view[SampleKey(2, 5)].image) and not torch.equal(clean, view[SampleKey(3, 5)].clean)
    assert image.shape == clean.shape == (3, 16, 16) and (place, decoded) == (5, True)
    whole = source.train.load(5).float() / 255
    windows = torch.cat([each.unfold(1, 16, 1).unfold(2, 16, 1).flatten(1, 2) for each in (whole, whole.flip(2))], 1)
    assert (windows == clean[:, None]).all(dim=(0, 2, 3)).any()
    val = task.view(source, train=False)
    assert torch.equal(val[SampleKey(0, 0)].image, val[SampleKey(7, 0)].image)
    blank = val[SampleKey(0, PADDING)]
    assert blank.group == IGNORED and not blank.image.any()


def test_pictures_that_are_too_small_are_named_or_skipped(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", 6, side=40)
    write_pictures(tmp_path / "p" / "small", 1, side=20)
    task = task_of(TrainConfig(data=str(folder), task="restore", input_size=32))
    source = task.prepared(task.open(str(folder)))
    small = [i for i in range(len(source.train)) if "small" in source.train.where(i)]
    half = True
    if not small:
        small, half = [i for i in range(len(source.val)) if "small" in source.val.where(i)], False
    with pytest.raises(DataError, match="24 x 20 pixels, and crops of 32 x 32 are wanted of it; pass a smaller"):
        task.view(source, train=half)[SampleKey(0, small[0])]
    assert not task.view(source, train=half, skip_bad=True)[SampleKey(0, small[0])].decoded
    with pytest.raises(DataError, match="restoration needs at least 16 x 16"):
        task_of(TrainConfig(data="digits", task="restore")).prepared(task.open("digits"))


def test_the_network_without_weights_leaves_the_picture_as_it_is() -> None:
    network = create_model("restorer")
    x = torch.rand(2, 3, 9, 11)
    with torch.no_grad():
        network.body[-1].weight.zero_()
    assert torch.equal(network(x), x)
    with pytest.raises(ShapeError, match=r"must be \(B, 3, H, W\)"):
        network(x[:, :1])
    with pytest.raises(ArgumentError, match="is no argument of the restorer"):
        create_model("restorer", num_classes=3)
    kernels = 9 * (3 * 16 + 3 * 16 * 16 + 16 * 3)
    assert count(network, (3, 32, 32)).macs == kernels * 32 * 32
    # Squeeze-and-excitation costs pooling, and two small matrices, in each hidden layer.
    assert 1 < count(create_model("restorer_se"), (3, 32, 32)).macs / (kernels * 32 * 32) < 1.02
    widths = (1, 1.01, 1.03, 1.045, 1.0625)
    costs = [count(create_model("restorer", width_multiplier=width), (3, 32, 32)).macs for width in widths]
    assert costs == sorted(set(costs)) and all(b / a < 1.04 for a, b in zip(costs, costs[1:], strict=False))


def test_an_assessment_counts_each_picture_once_in_its_group() -> None:
    groups = ("noise 0–1", "noise 1–2")
    clean = torch.rand(4, 3, 16, 16)
    degraded = (clean + 0.1).clamp(0, 1)
    places, strengths = torch.arange(4), torch.tensor([0.5, 1.5, 1.6, 0.0])
    decoded, of = torch.tensor([True, True, True, False]), torch.tensor([0, 1, 1, IGNORED])
    evaluator = RestorationEvaluator(groups)
    evaluator.add(clean, (degraded, clean, places, decoded, of, strengths))
    found = evaluator.found()
    assert [each.place for each in found.pictures] == [0, 1, 2] and found.score == MOST_DB
    assert found.of_group(1) == 2 and found.mean("psnr_before", 0) == pytest.approx(float(psnr(degraded, clean)[0]))
    assert [example.quality.group for example in found.examples] == [0, 1]


ARGUMENTS = (
    "train", "--task", "restore", "--epochs", "2", "--batch-size", "4", "--num-experts", "2", "--input-size", "16",
    "--workers", "0", "--device", "cpu", "--degradations", "noise,jpeg", "--ema", "0.9", "--name", "run",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an uninterrupted run with its twins, with a report; its data is beside it."""
    out = tmp_path_factory.mktemp("whole")
    write_pictures(out / "pictures", 18)
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        assert main([*ARGUMENTS, "--data", str(out / "pictures"), "--out", str(out), "--twin"]) == 0
    return out / "run-1"


def test_a_run_has_three_networks_and_says_what_strength_does(whole: Path) -> None:
    rows = metrics(whole)
    assert [row["network"] for row in rows[::2]] == ["conditional", "static", "widened"]
    assert {"train_psnr", "val_psnr", "val_ssim", "val_loss"} <= rows[0].keys() and "val_accuracy" not in rows[0]
    summary = (whole / "summary.md").read_text()
    assert any(f"| {group} | 1 |" in summary for group in parse_degradations("noise,jpeg").groups())
    assert "What routing did: on 1 validation images the PSNR is" in summary
    for name in ("before_after.png", "psnr_by_strength.png", "learning_curves.png", "routing.png"):
        assert (whole / name).exists()
    assert (whole / "report" / "report.html").exists()


def test_evaluation_and_prediction(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("--workers", "0", "--device", "cpu")
    pictures = write_pictures(tmp_path / "other", 4, side=30)
    assert main(["eval", str(whole), "--data", str(pictures), "--out", str(tmp_path / "e"), *common]) == 0
    assert "PSNR" in capsys.readouterr().out
    with (tmp_path / "e" / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1 and rows[0]["degradation"] in ("noise", "jpeg") and float(rows[0]["psnr"]) > 0
    out = tmp_path / "restored"
    words = ["predict", str(whole), str(pictures), "--out", str(out), *common]
    assert main(words) == 0
    assert sorted(path.name for path in out.glob("0*.png")) == [f"{i:02d}.png" for i in range(4)]
    with Image.open(out / "00.png") as image:
        assert image.size == (30, 34)
    before = {path: path.stat().st_mtime_ns for path in out.glob("0*.png")}
    (out / "01.png").unlink()
    assert main(words) == 0
    again = {path: path.stat().st_mtime_ns for path in out.glob("0*.png")}
    assert [path.name for path in before if again[path] != before[path]] == ["01.png"]
    assert main([*words, "--network", "static"]) == 2
    assert "was begun with another network" in capsys.readouterr().err
    assert main(["predict", str(whole), str(pictures), "--out", str(pictures), *common]) == 2
    assert "no folder of restored pictures" in capsys.readouterr().err
    assert json.loads((out / "network.json").read_text())["weights"]
