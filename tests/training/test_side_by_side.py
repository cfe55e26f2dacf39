from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from condconv.cli.main import main
from condconv.data import EpochSampler, Source, open_source
from condconv.errors import ArgumentError
from condconv.training.annealing import annealing
from condconv.training.building import NetworkBuilder
from condconv.training.config import TrainConfig
from condconv.training.interruption import Interrupted, StopRequest
from condconv.training.optimization import learning_rate_factor, make_optimizer
from condconv.training.side_by_side import Images, SideBySide, load_images, require_side_by_side, shape_of
from condconv.training.study import read_rows, read_study
from tests.training.test_study import write_study

CONFIG = TrainConfig(
    data="digits", model="mobilenetv1_shallow", width=0.0625, output_stride=4, limit_train=80, limit_val=40, epochs=2,
    batch_size=16, random_crop=False, temperature_epochs=1, num_experts=3,
)  # fmt: skip
VARIANTS = {
    "none": {"variant": "none", "num_experts": None},
    "condconv": {"variant": "condconv"},
    "dynamic_convolution": {"variant": "dynamic_convolution"},
}


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
    return NetworkBuilder(config, source).own().double()


def together(
    configs: list[TrainConfig], source: Source, halves: tuple[Images, Images], flip: bool = False
) -> SideBySide:
    return SideBySide(configs, [network(config, source) for config in configs], *halves, flip=flip)


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


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_run_is_trained_as_by_itself(
    variant: str, source: Source, halves: tuple[Images, Images], tmp_path: Path
) -> None:
    configs = [replace(config, epochs=1) for config in runs(variant)]
    stack = together(configs, source, halves)
    rows = stack.fit(tmp_path / "kept.safetensors", StopRequest(), lambda done, total: None)
    for config, trained, (row,) in zip(configs, stack.networks, rows, strict=True):
        expected, loss = alone(config, source, halves[0], epochs=1)
        torch.testing.assert_close(dict(trained.state_dict()), dict(expected.state_dict()), rtol=1e-6, atol=1e-8)
        assert row["train_loss"] == pytest.approx(loss, rel=1e-6)
        expected.eval()
        logits = expected(halves[1].images)
        assert row["val_loss"] == pytest.approx(F.cross_entropy(logits, halves[1].labels).item(), rel=1e-6)
        assert row["val_accuracy"] == (logits.argmax(dim=1) == halves[1].labels).double().mean().item()


def test_a_run_does_not_depend_on_the_others(source: Source, halves: tuple[Images, Images], tmp_path: Path) -> None:
    first, *others = runs("condconv")

    def fit(configs: list[TrainConfig]) -> dict[str, Tensor]:
        stack = together(configs, source, halves)
        stack.fit(tmp_path / f"{len(configs)}.safetensors", StopRequest(), lambda done, total: None)
        return dict(stack.networks[0].state_dict())

    wild = replace(others[0], lr=1e6, grad_clip=0.0)
    torch.testing.assert_close(fit([first, wild]), fit([first, *others]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("variant", ["condconv", "dynamic_convolution"])
def test_interrupted_and_gone_on_with_is_as_uninterrupted(
    variant: str, source: Source, halves: tuple[Images, Images], tmp_path: Path
) -> None:
    configs = runs(variant)
    whole = together(configs, source, halves, flip=True)
    whole.fit(tmp_path / "whole.safetensors", StopRequest(), lambda done, total: None)

    stop = StopRequest()

    def stop_after_one(done: int, total: int) -> None:
        stop.signum = 2 * (done == 0)

    kept = tmp_path / "kept.safetensors"
    with pytest.raises(Interrupted):
        together(configs, source, halves, flip=True).fit(kept, stop, stop_after_one)
    later = together(configs, source, halves, flip=True)
    later.fit(kept, StopRequest(), lambda done, total: None)
    for one, other in zip(whole.networks, later.networks, strict=True):
        torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), rtol=0, atol=0)
    strip = [[{**row, "seconds": 0} for row in rows] for rows in (*whole.rows, *later.rows)]
    assert strip[:3] == strip[3:]


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


def test_each_epoch_has_its_own_crops_and_mirrored_images(source: Source, halves: tuple[Images, Images]) -> None:
    cropped = doubled(source, train=True, random_crop=True), halves[1]
    (_, corners, mirrored), (_, later, _) = (
        together(runs("none"), source, cropped, flip=True)._order(e) for e in (0, 1)
    )
    assert set(corners.unique().tolist()) == {0, 1, 2}
    assert not torch.equal(corners, later)
    assert 0.35 < mirrored.double().mean() < 0.65
    _, corners, mirrored = together(runs("none"), source, halves, flip=False)._order(0)
    assert not corners.any()
    assert not mirrored.any()


@pytest.mark.parametrize(
    ("name", "value"),
    [("mixup", 0.2), ("dropout", 0.1), ("ema", 0.9), ("optimizer", "adamw"), ("accumulate", 2)],
)
def test_what_cannot_be_done_at_once_is_refused_by_name(name: str, value: object, source: Source) -> None:
    require_side_by_side(CONFIG, source)
    with pytest.raises(ArgumentError, match=f"{name}.*--side-by-side"):
        require_side_by_side(replace(CONFIG, **{name: value}), source)


def test_crops_are_refused_where_they_would_be_resized(source: Source) -> None:
    require_side_by_side(replace(CONFIG, random_crop=True), source)
    with pytest.raises(ArgumentError, match="random_crop=True.*--side-by-side"):
        require_side_by_side(replace(CONFIG, random_crop=True), replace(source, native=False))


def test_only_runs_of_one_shape_belong_together() -> None:
    first, second, _ = runs("condconv")
    assert shape_of(first) == shape_of(second)
    for other in ({"num_experts": 4}, {"width": 0.1}, {"batch_size": 8}, {"epochs": 3}, {"variant": "none"}):
        assert shape_of(replace(first, **other)) != shape_of(first)


def test_a_study_is_trained_stack_by_stack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = {
        "model": "mobilenetv1_shallow", "width": 0.0625, "output_stride": 4, "limit_train": 64, "limit_val": 40,
        "epochs": 1, "batch_size": 32, "random_crop": False,
    }  # fmt: skip
    arms = {
        "upcycled": {"variant": "condconv", "num_experts": 2, "start_from": "static"},
        "wide": {"widened_to": "upcycled"},
        "static": {"variant": "none"},
        "fast": {"variant": "none", "lr": 0.2},
    }
    path = write_study(tmp_path, arms=arms, common=common, claims=[], seeds=[0, 1])
    command = ["sweep", str(path), "--side-by-side", "3", "--out", str(tmp_path / "runs")]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line.startswith("side by side")] == [
        "side by side: 2 runs of wide",
        "side by side: 3 runs of static, fast",
        "side by side: 1 run of fast",
        "side by side: 2 runs of upcycled",
    ]
    study = read_study(path)
    assert len(read_rows(study.results)) == len(study.finished()) == 8
    assert not list((tmp_path / "runs").glob("side-by-side-*"))
    metrics = next((tmp_path / "runs").glob("*condconv2*/metrics.csv"))
    (row,) = csv.DictReader(metrics.read_text(encoding="utf-8").splitlines())
    assert row["network"] == "conditional"
    assert main(command) == 0
    assert "8 of 8 runs are done" in capsys.readouterr().out
