"""Run folders as `condconv train` leaves them, but with fresh weights: nothing is trained."""

from __future__ import annotations

from pathlib import Path

import torch

from condconv.data import Source, open_source
from condconv.runs.config import TrainConfig
from condconv.runs.folder import RunFolder
from condconv.runs.networks import plan_networks
from condconv.runs.summary import save_weights
from condconv.tasks import task_of


def write_run(out: Path, data: str = "digits", **settings: object) -> tuple[Path, Source]:
    """A run folder with weights for every network of the settings, and its data set."""
    config = TrainConfig(data=data, out=str(out), width=0.5, num_experts=2, output_stride=4, **settings)
    source = open_source(data)
    folder = RunFolder.create(config)
    for spec in plan_networks(task_of(config), source):
        network = spec.build()
        with torch.no_grad():  # so that it does not say the same of every image
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        save_weights(folder, spec, network, task_of(config), source)
    folder.close()
    return folder.path, source
