from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from condconv.cli.main import main
from condconv.cli.progress import Progress
from condconv.data import EpochSampler, Source, open_source
from condconv.errors import ArgumentError, CheckpointError
from condconv.training.annealing import annealing
from condconv.training.building import NetworkBuilder
from condconv.training.config import TrainConfig
from condconv.training.interruption import Interrupted, StopRequest
from condconv.training.optimization import learning_rate_factor, make_optimizer
from condconv.training.side_by_side import (
    NOT_TOGETHER,
    Images,
    SideBySide,
    epochs_done,
    load_images,
    require_side_by_side,
    shape_of,
)
from condconv.training.study import read_rows, read_study
from tests.training.test_study import write_study

CONFIG = TrainConfig(
    data="digits", model="mobilenetv1_shallow", width=0.0625, output_stride=4, limit_train=80, limit_val=40, epochs=2,
    batch_size=16, random_crop=False, temperature_epochs=1, num_experts=3,
)  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"variant": "none", "num_experts": None},
    "condconv": {"variant": "condconv"},
    "dynamic_convolution": {"variant": "dynamic_convolution"},
}


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
]


@pytest.fixture(scope="module")
def source() -> Source:
    return open_source("digits").limited(CONFIG.limit_train, CONFIG.limit_val)


@pytest.fixture(scope="module")
def halves(source: Source) -> tuple[Images, Images]:
    return doubled(source, train=True), doubled(source, train=False)


def doubled(source: Source, train: bool, random_crop: bool = False) -> Images:
    loaded = load_images(source, train=train, random_crop=random_crop, device=torch.device("cpu"))
    return loaded._replace(images=loaded.images.double())


def runs(variant: str) -> list[TrainConfig]:
    """Three runs that differ in all that may differ."""
    config = replace(CONFIG, **VARIANTS[variant])
    return [
        config,
        replace(config, seed=7, lr=0.02, router_lr_factor=5.0, weight_decay=0.01, temperature_start=9.0, grad_clip=0.0),
        replace(config, seed=8, schedule="step", decay_epochs=0.5, warmup_epochs=0.0, grad_clip=0.1, decay_biases=True),
    ]


def network(config: TrainConfig, source: Source) -> nn.Module:
    return NetworkBuilder(config, source).build().double()


def together(
    configs: list[TrainConfig], source: Source, halves: tuple[Images, Images], flip: bool = False
) -> SideBySide:
    return SideBySide(configs, [network(config, source) for config in configs], *halves, flip=flip)


def fit(
    stack: SideBySide, folder: Path, stop: StopRequest | None = None, progress: Progress = lambda done, total: None
) -> None:
    folder.mkdir(exist_ok=True)
    states = [folder / f"{index}.safetensors" for index in range(len(stack.configs))]
    stack.fit(states, stop or StopRequest(), progress)


def alone(config: TrainConfig, source: Source, train: Images, epochs: int) -> tuple[nn.Module, float]:
    """What a plain loop trains, and its loss in the last epoch."""
    model = network(config, source).train()
    optimizer = make_optimizer(model, config, 1.0)
    peaks = [group["lr"] * config.lr for group in optimizer.param_groups]
    steps = len(train.labels) // config.batch_size
    schedule = annealing(model, config, steps)
    sampler = EpochSampler(len(train.labels), shuffle=True, seed=config.seed, multiple_of=config.batch_size)
    total = 0.0
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        total = 0.0
        for step, places in enumerate(torch.tensor([key.place for key in sampler]).split(config.batch_size)):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * learning_rate_factor(config, epoch * steps + step, steps)
            logits = model(train.images[places])
            loss = F.cross_entropy(logits, train.labels[places], label_smoothing=config.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or float("inf"))
            optimizer.step()
            if schedule is not None:
                schedule.step()
            total += loss.item()
    return model, total / steps


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_run_is_trained_as_by_itself(
    variant: str, device: str, source: Source, halves: tuple[Images, Images], tmp_path: Path
) -> None:
    configs = [replace(config, epochs=1) for config in runs(variant)]
    moved = [half._replace(images=half.images.to(device), labels=half.labels.to(device)) for half in halves]
    stack = together(configs, source, (moved[0], moved[1]))
    fit(stack, tmp_path)
    for config, trained, (row,) in zip(configs, stack.networks, stack.rows, strict=True):
        expected, loss = alone(config, source, halves[0], epochs=1)
        torch.testing.assert_close(dict(trained.state_dict()), dict(expected.state_dict()), rtol=1e-6, atol=1e-8)
        assert row["train_loss"] == pytest.approx(loss, rel=1e-6)
        expected.eval()
        logits = expected(halves[1].images)
        assert row["val_loss"] == pytest.approx(F.cross_entropy(logits, halves[1].labels).item(), rel=1e-6)
        assert row["val_accuracy"] == (logits.argmax(dim=1) == halves[1].labels).double().mean().item()


def test_a_run_does_not_depend_on_the_others(source: Source, halves: tuple[Images, Images], tmp_path: Path) -> None:
    first, *others = runs("condconv")
    wild = together([first, replace(others[0], lr=1e200, grad_clip=0.0)], source, halves)
    calm = together([first, *others], source, halves)
    fit(wild, tmp_path / "wild")
    fit(calm, tmp_path / "calm")
    assert not all(tensor.isfinite().all() for tensor in wild.networks[1].state_dict().values())
    one, other = (dict(stack.networks[0].state_dict()) for stack in (wild, calm))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("variant", ["condconv", "dynamic_convolution"])
def test_interrupted_and_gone_on_with_is_as_uninterrupted(
    variant: str, source: Source, halves: tuple[Images, Images], tmp_path: Path
) -> None:
    configs = runs(variant)
    whole = together(configs, source, halves, flip=True)
    fit(whole, tmp_path / "whole")

    stop = StopRequest()

    def stop_after_one(done: int, total: int) -> None:
        stop.signum = 2 * (done == 0)

    with pytest.raises(Interrupted):
        fit(together(configs, source, halves, flip=True), tmp_path / "part", stop, stop_after_one)
    assert [epochs_done(path) for path in sorted((tmp_path / "part").iterdir())] == [1, 1, 1]
    later = together(configs, source, halves, flip=True)
    fit(later, tmp_path / "part")
    for one, other in zip(whole.networks, later.networks, strict=True):
        torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), rtol=0, atol=0)
    timeless = [[{**row, "seconds": 0} for row in rows] for rows in (*whole.rows, *later.rows)]
    assert timeless[:3] == timeless[3:]


def test_the_table_of_a_run_is_that_of_condconv_train(tmp_path: Path) -> None:
    arms = {"dynamic": {"variant": "dynamic_convolution", "num_experts": 3}}
    common = {**COMMON, "limit_train": 48, "batch_size": 16, "temperature_epochs": 2, "label_smoothing": 0.2}
    common["schedule"] = "exponential"
    study = read_study(write_study(tmp_path, arms=arms, common=common, claims=[], seeds=[3]))
    tables = []
    for words in ((), ("--side-by-side", "2")):
        out = tmp_path / f"runs{len(words)}"
        assert main(["sweep", str(study.path), *words, "--out", str(out), "--threads", "1"]) == 0
        study.results.unlink()
        tables.append(list(csv.DictReader(next(out.glob("*/metrics.csv")).read_text().splitlines())))
    for train, side_by_side in zip(*tables, strict=True):
        for name in (
            "epoch",
            "train_loss",
            "train_accuracy",
            "val_loss",
            "learning_rate",
            "temperature",
            "gradient_norm",
        ):
            assert float(side_by_side[name]) == pytest.approx(float(train[name]), rel=0.02, abs=1e-6), name


def test_crops_and_mirrored_images(source: Source) -> None:
    train = doubled(source, train=True, random_crop=True)
    stored = doubled(source, train=True).images
    assert train.padding == 1
    indices = torch.tensor([[3, 4, 5]])
    corners = torch.tensor([[[1, 1], [0, 2], [1, 1]]])
    middle, moved, mirrored = train.take(indices, corners, torch.tensor([[False, False, True]]))[0]
    assert torch.equal(middle, stored[3])
    assert torch.equal(moved[:, 1:, :-1], stored[4, :, :-1, 1:])
    assert torch.equal(mirrored, stored[5].flip(-1))


def test_each_run_and_epoch_has_its_own_crops_and_mirrored_images(
    source: Source, halves: tuple[Images, Images]
) -> None:
    cropped = together(runs("none"), source, (doubled(source, train=True, random_crop=True), halves[1]), flip=True)
    (_, corners, mirrored), (_, *later) = cropped.choices(0), cropped.choices(1)
    assert set(corners.unique().tolist()) == {0, 1, 2}
    assert 0.35 < mirrored.double().mean() < 0.65
    for choice, after in ((corners, later[0]), (mirrored, later[1])):
        assert not torch.equal(choice, after)
        assert not torch.equal(choice[:, 0], choice[:, 1])
    _, corners, mirrored = together(runs("none"), source, halves, flip=False).choices(0)
    assert not corners.any()
    assert not mirrored.any()


OTHERS: dict[str, Any] = {
    "auto_augment": "rand", "mixup": 0.2, "skip_bad_images": True, "dropout": 0.1, "drop_path": 0.1,
    "expert_dropout": 0.1, "ema": 0.9, "accumulate": 2, "optimizer": "adamw", "precision": "bf16", "compile": True,
    "activation_checkpointing": True, "input_size": 16,
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_TOGETHER)
def test_what_cannot_be_done_at_once_is_refused_by_name(name: str, source: Source) -> None:
    require_side_by_side(CONFIG, source)
    with pytest.raises(ArgumentError, match=f"{name}.*--side-by-side"):
        require_side_by_side(replace(CONFIG, **{name: OTHERS[name]}), source)


def test_crops_are_refused_where_they_would_be_resized(source: Source) -> None:
    require_side_by_side(replace(CONFIG, random_crop=True), source)
    with pytest.raises(ArgumentError, match="random_crop=True.*--side-by-side"):
        require_side_by_side(replace(CONFIG, random_crop=True), replace(source, native=False))


def test_only_runs_of_one_shape_belong_together() -> None:
    first, second, _ = runs("condconv")
    assert shape_of(first) == shape_of(second)
    for other in ({"num_experts": 4}, {"width": 0.1}, {"batch_size": 8}, {"epochs": 3}, {"variant": "none"}):
        assert shape_of(replace(first, **other)) != shape_of(first)


@pytest.mark.parametrize("damage", ["truncated", "another network's"])
def test_a_damaged_state_is_named(damage: str, source: Source, halves: tuple[Images, Images], tmp_path: Path) -> None:
    stop = StopRequest()

    def stop_after_one(done: int, total: int) -> None:
        stop.signum = 2

    configs = runs("none")
    with pytest.raises(Interrupted):
        fit(together(configs, source, halves), tmp_path, stop, stop_after_one)
    state = tmp_path / "1.safetensors"
    if damage == "truncated":
        state.write_bytes(state.read_bytes()[:-100])
    else:
        configs = [replace(config, width=0.1) for config in configs]
    named = state if damage == "truncated" else tmp_path / "0.safetensors"
    with pytest.raises(CheckpointError, match=f"{named}.*remove it"):
        fit(together(configs, source, halves), tmp_path)


COMMON = {
    "model": "mobilenetv1_shallow", "width": 0.0625, "output_stride": 4, "limit_train": 64, "limit_val": 40,
    "epochs": 1, "batch_size": 32, "random_crop": False,
}  # fmt: skip
WILD = {"variant": "none", "lr": 3e38, "grad_clip": 0.0}


def test_a_run_that_diverges_fails_by_itself_and_so_does_what_starts_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = {
        "calm": {"variant": "none"},
        "wild": WILD,
        "after_wild": {"variant": "none", "start_from": "wild"},
        "after_calm": {"variant": "none", "start_from": "calm"},
    }
    path = write_study(tmp_path, arms=arms, common=COMMON, claims=[], seeds=[0])
    assert main(["sweep", str(path), "--side-by-side", "4", "--out", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().out
    assert "wild seed 0: failed: error: the training loss is not finite" in said
    assert {arm for arm, _ in read_study(path).finished()} == {"calm", "after_calm"}


def test_a_study_that_needs_single_runs_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = {"static": {"variant": "none"}, "late": {"variant": "none", "start_from": "static", "mixup": 0.2}}
    path = write_study(tmp_path, arms=arms, common=COMMON, claims=[], seeds=[0])
    assert main(["sweep", str(path), "--side-by-side", "4", "--out", str(tmp_path / "runs")]) == 2
    assert "mixup=0.2 cannot be done for many networks at once" in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*"))


def test_a_study_is_trained_stack_by_stack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arms = {
        "upcycled": {"variant": "condconv", "num_experts": 2, "start_from": "static"},
        "wide": {"widened_to": "upcycled"},
        "static": {"variant": "none"},
        "fast": {"variant": "none", "lr": 0.2},
    }
    path = write_study(tmp_path, arms=arms, common=COMMON, claims=[], seeds=[0, 1])
    out = tmp_path / "runs"
    command = ["sweep", str(path), "--side-by-side", "3", "--out", str(out)]
    assert main([*command, "--arms", "upcycled", "--seeds", "1"]) == 0
    assert capsys.readouterr().out.count("side by side: 1 run of static\n") == 1
    assert main(command) == 0
    stacks = [line for line in capsys.readouterr().out.splitlines() if line.startswith("side by side")]
    assert stacks == [
        "side by side: 3 runs of static, fast",
        "side by side: 2 runs of wide",
        "side by side: 1 run of upcycled",
    ]
    study = read_study(path)
    assert len(read_rows(study.results)) == len(study.finished()) == 8
    assert not list(out.glob("*.state.safetensors"))
    (row,) = csv.DictReader(next(out.glob("*condconv2*/metrics.csv")).read_text(encoding="utf-8").splitlines())
    assert row["network"] == "conditional"
    assert main(command) == 0
    assert "8 of 8 runs are done" in capsys.readouterr().out
