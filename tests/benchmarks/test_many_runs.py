"""Many runs side by side: pictures and steps are those of `condconv train`; rows are whole, and not made twice."""

from __future__ import annotations

import csv
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks.accuracy import many_runs
from benchmarks.accuracy.captured import CapturedNetwork
from benchmarks.accuracy.comparison import Outcome
from benchmarks.accuracy.many_runs import COLUMNS, ManyRuns, Task, built, config_of, priced, tasks_of
from benchmarks.accuracy.merge import merge
from benchmarks.accuracy.pictures import Pictures
from condconv.data import EpochSampler, ImageView, SampleKey, Source, open_source
from condconv.execution import use_strategy
from condconv.runs.config import TrainConfig
from condconv.studies.study import Study, read_study
from condconv.tasks import task_of
from condconv.training.module import TrainingModule

CPU = torch.device("cpu")
ARMS: dict[str, dict[str, Any]] = {
    "static": {"variant": "none"},
    "condconv4": {"variant": "condconv", "num_experts": 4, "share": "block"},
    "dynamic4": {"variant": "dynamic_convolution", "num_experts": 4, "temperature_epochs": 1, "router_lr_factor": 2},
    "widened": {"widened_to": "condconv4"},
    "upcycled": {"variant": "condconv", "num_experts": 4, "share": "block", "start_from": "static"},
}


@pytest.fixture(scope="module")
def source() -> Source:
    return open_source("digits").limited(64, 40)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    common = {
        "model": "cifar_resnet8", "output_stride": 1, "width": 0.5, "targets": "layer", "epochs": 2, "batch_size": 16,
        "conditions": "plain,inverted", "warmup_epochs": 0.5, "lr": 0.1, "label_smoothing": 0.0, "weight_decay": 5e-4,
        "limit_train": 32, "limit_val": 20,
    }  # fmt: skip
    content = {"title": "t", "data": "digits", "seeds": [0, 1], "common": common, "arms": ARMS, "routing_checks": True}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return read_study(path)


def test_pictures_are_those_of_the_loader_where_nothing_is_drawn_at_random(source: Source) -> None:
    config = TrainConfig(data="digits", batch_size=16, random_crop=False)
    source = replace(source.under("plain,inverted,turned,blurred:2"), flip=False)
    pictures = Pictures(source, config, CPU)
    images, labels = pictures.epoch(3, 1)
    sampler = EpochSampler(64, shuffle=True, seed=3, multiple_of=16)
    sampler.set_epoch(1)
    view = ImageView(source, train=True, seed=3, random_crop=False)
    samples = [view[key] for key in sampler]
    torch.testing.assert_close(images.flatten(0, 1), torch.stack([sample.image for sample in samples]))
    assert labels.flatten().tolist() == [sample.label for sample in samples]
    kept = ImageView(source, train=False)
    torch.testing.assert_close(pictures.val_images.flatten(0, 1)[7], kept[SampleKey(0, 7)].image)
    plain = Pictures(source.under("plain"), config, CPU)
    torch.testing.assert_close(pictures.all_under("plain"), plain.val_images)


def test_shifts_and_mirror_images_are_drawn_for_each_picture(source: Source) -> None:
    config = TrainConfig(data="digits", batch_size=64)
    pictures = Pictures(replace(source, flip=True), config, CPU)
    first, other = pictures.epoch(0, 0)[0], pictures.epoch(0, 1)[0]
    again = Pictures(pictures.source, config, CPU).epoch(0, 0)[0]
    assert torch.equal(first, again) and not torch.equal(first, other)
    sampler = EpochSampler(64, shuffle=True, seed=0, multiple_of=64)
    found = set()
    for image, key in zip(first[0], sampler, strict=True):
        stored = (source.train.load(key.place).float() / 255 - pictures.mean) / pictures.std
        padded = torch.nn.functional.pad(stored, (1,) * 4, value=float(-pictures.mean / pictures.std))
        views = {
            (top, left, flip): (crop.flip(2) if flip else crop)
            for top in range(3) for left in range(3) for flip in (False, True)
            for crop in [padded[:, top : top + 8, left : left + 8]]
        }  # fmt: skip
        found |= {how for how, view in views.items() if torch.allclose(view, image, atol=1e-5)}
    assert len(found) == 18  # each shift, mirrored and not


@pytest.mark.parametrize("arm", ["static", "condconv4", "dynamic4"])
def test_steps_are_those_of_the_training_module(source: Source, study: Study, arm: str) -> None:
    config, source = config_of(study, arm, seed=1), source.limited(32, 20)
    pictures = Pictures(source.under(config.conditions), config, CPU)
    epoch = pictures.epoch(1, 0)
    network = CapturedNetwork(
        built(replace(config, seed=0), source), config, epoch, (pictures.val_images, pictures.val_labels)
    )
    module = TrainingModule(built(config, source), task_of(config), source, steps_per_epoch=2, global_batch=16)
    scheduled: Any = module.configure_optimizers()
    optimizer, schedule = scheduled["optimizer"], scheduled["lr_scheduler"]["scheduler"]
    module.network.train()
    network.begin(built(config, source))
    for number in range(config.epochs):
        images, labels = pictures.epoch(1, number)
        network.load((images, labels))
        network.train_epoch()
        total = 0.0
        for batch, target in zip(images, labels, strict=True):
            optimizer.zero_grad()
            with use_strategy("reference"):
                loss = module.task.loss(module.network(batch), (batch, target, None, None))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.network.parameters(), config.grad_clip)
            optimizer.step()
            schedule.step()
            if module.temperature is not None:
                module.temperature.step()
            total += float(loss) / 2
        assert network.outcome()[0] == pytest.approx(total, rel=2e-3)
    expected = module.network.state_dict()
    for name, value in network.network.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=5e-3, rtol=5e-2, msg=f"{{}} of {name}".format)
    with torch.no_grad():
        logits = module.network.eval()(pictures.val_images.flatten(0, 1))
    right = (logits.argmax(dim=1) == pictures.val_labels.flatten()).float().mean()
    assert network.outcome()[2] == pytest.approx(float(right), abs=0.05)


def test_nothing_in_a_step_asks_for_a_value(source: Source, study: Study) -> None:
    """A CUDA graph cannot be captured where the host reads a number."""
    from torch.utils._python_dispatch import TorchDispatchMode

    called = set()

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    for arm in ("condconv4", "dynamic4"):
        config = config_of(study, arm)
        pictures = Pictures(source.limited(32, 20).under(config.conditions), config, CPU)
        epoch = pictures.epoch(0, 0)
        network = CapturedNetwork(built(config, source), config, epoch, (pictures.val_images, pictures.val_labels))
        network._train()
        network.load(epoch)
        with Names():
            network._train()
            network.batch.zero_()
            network._validate()
    assert "convolution" in called
    assert not called & {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "unique"}


def test_rows_are_whole_and_merged_they_are_not_made_again(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many_runs, "HERE", tmp_path)
    words = ["many_runs", "study:0", "--out", str(tmp_path / "out"), "--streams", "3", "--commit", "abc"]
    monkeypatch.setattr("sys.argv", words)
    many_runs.main()
    printed = capsys.readouterr().out
    assert "5 runs" in printed and "given up" not in printed
    tables = {name: (tmp_path / "out" / f"{name}.csv").read_text() for name in ("runs", "epochs", "by_condition")}
    rows, epochs, conditions = (list(csv.DictReader(text.splitlines())) for text in tables.values())
    assert len(rows) == 5 and len(epochs) == 10 and all(tuple(row) == COLUMNS for row in rows)
    assert {row["mean_pct"] for row in rows if row["variant"] == "none"} == {""}
    assert all(row["argmax_pct"] for row in rows if row["variant"] != "none")
    seen = {(row["condition"], row["seen"]) for row in conditions}
    assert {("plain", "1"), ("inverted", "1"), ("blurred", "0")} <= seen

    merge(tmp_path / "out", ["study"], tmp_path)
    outcome = Outcome(study, study.finished())
    assert outcome.twin("condconv4") == "static" and outcome.widened("condconv4") == "widened"
    assert outcome.difference("condconv4", "static") is not None
    assert len(outcome.beside("epochs")) == 10 and len(outcome.under("blurred", "condconv4", "static")) == 1
    merged = study.results.read_text()
    merge(tmp_path / "out", ["study"], tmp_path)
    assert study.results.read_text() == merged

    assert {task.arm for task in tasks_of(["study:0"])} == set(ARMS)  # the weights of one are another's start
    content = yaml.safe_load(study.path.read_text())
    del content["arms"]["upcycled"]
    study.path.write_text(yaml.safe_dump(content))
    assert tasks_of(["study:0"]) == [] and {task.seeds for task in tasks_of(["study"])} == {(1,)}


def test_a_run_of_two_studies_is_trained_once(source: Source, study: Study, tmp_path: Path) -> None:
    simple = replace(study, arms={"static": ARMS["static"]}, routing_checks=False)
    other = replace(simple, path=tmp_path / "other.yaml", arms={"plain": ARMS["static"]})
    tasks = [Task(simple, "static", (0,)), Task(other, "plain", (0, 1))]
    price = priced(simple, "static", source.limited(1, 1))
    prices = {("study", "static"): price, ("other", "plain"): price}
    many = ManyRuns(tasks, {"digits": source}, prices, tmp_path / "out", CPU, "abc", time.monotonic() + 300)
    for _ in range(2):  # nothing is left to do for the second one
        many.run()
        assert [(row["study"], row["arm"], row["seed"]) for row in many.runs.rows] == [
            ("study", "static", "0"), ("other", "plain", "1"), ("other", "plain", "0"),
        ]  # fmt: skip
    assert many.runs.rows[0]["top1_pct"] == many.runs.rows[2]["top1_pct"]
    assert len(many.epochs.rows) == 4
    for name in ("study", "other"):
        path = tmp_path / f"{name}.yaml"
        arms = {"static" if name == "study" else "plain": ARMS["static"]}
        path.write_text(yaml.safe_dump({**yaml.safe_load(study.path.read_text()), "arms": arms}))
    merge(tmp_path / "out", ["other"], tmp_path)
    (row,) = [
        row for row in Outcome(other, other.finished()).beside("epochs") if (row["seed"], row["epoch"]) == ("0", "1")
    ]
    assert row["study"] == "other" and row["train_loss"] == many.epochs.rows[0]["train_loss"]


def test_it_stops_when_the_time_is_over(source: Source, study: Study, tmp_path: Path) -> None:
    tasks = [Task(study, "static", (0, 1))]
    prices = {(study.name, "static"): priced(study, "static", source.limited(1, 1))}
    many = ManyRuns(tasks, {"digits": source}, prices, tmp_path / "out", CPU, "abc", time.monotonic() - 1)
    many.run()
    assert not many.runs.rows
