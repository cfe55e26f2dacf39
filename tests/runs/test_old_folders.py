"""What was written before modules and classes had their present names is read as it was: two runs of the same settings,
one of them stopped after its first epoch, and a converted network as `save_pretrained` leaves it.
"""

from __future__ import annotations

import csv
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import condconv
from condconv.data import open_source
from condconv.runs.config import TrainConfig
from condconv.runs.metrics import columns
from condconv.runs.trained import load_trained, trained_networks
from condconv.tasks import task_of
from tests.cli.runner import metrics, quick

OLD = Path(__file__).with_name("before_renaming.tar.xz")


@pytest.fixture()
def old(tmp_path: Path) -> Path:
    with tarfile.open(OLD) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_a_finished_run_is_evaluated_with_its_weights(old: Path) -> None:
    run = old / "finished-1"
    assert trained_networks(run) == ["conditional"]
    network, source = load_trained(run, "conditional", open_source("digits"))
    stored = load_file(run / "conditional.safetensors")
    assert network.state_dict().keys() == stored.keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in network.state_dict().items())
    assert network(torch.zeros(1, source.channels, *source.image_size)).shape == (1, 10)


def test_an_unfinished_run_goes_on_to_where_the_finished_one_came(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from condconv.cli.main import main

    quick(monkeypatch)
    assert main(["train", "--resume", str(old / "unfinished-1")]) == 0
    resumed, finished = metrics(old / "unfinished-1"), metrics(old / "finished-1")
    assert [row["epoch"] for row in resumed] == ["1", "2"]
    for ours, theirs in zip(resumed, finished, strict=True):
        assert float(ours["train_loss"]) == pytest.approx(float(theirs["train_loss"]), rel=1e-3)
    mine, other = (load_file(old / name / "conditional.safetensors") for name in ("unfinished-1", "finished-1"))
    for name, tensor in mine.items():
        assert torch.allclose(tensor, other[name], rtol=1e-2, atol=1e-3), name


def test_a_saved_folder_gives_the_converted_network(old: Path) -> None:
    network = condconv.from_pretrained(old / "converted")
    stored = load_file(old / "converted" / "model.safetensors")
    assert network.state_dict().keys() == stored.keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in network.state_dict().items())


def test_the_columns_of_an_old_run_are_those_of_a_new_one(old: Path) -> None:
    with (old / "finished-1" / "metrics.csv").open() as file:
        assert tuple(next(csv.reader(file))) == columns(task_of(TrainConfig(data="digits")))
