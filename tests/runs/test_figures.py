"""The pictures of a run folder, by their pixels."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from condconv.analysis.figures import mean_by_class
from condconv.runs.figures import learning_curves, routing_heat_map
from condconv.tasks.classify.task import Classification
from tests.analysis.networks import random_analysis


def pixels_of(picture: bytes, colour: object) -> np.ndarray:
    """Which pixels have that colour, bool (H, W)."""
    image = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    return (abs(image - np.array(to_rgb(colour)) * 255) < 2).all(axis=2)


@pytest.mark.parametrize("epochs", [1, 4])
def test_equal_curves_do_not_hide_each_other(epochs: int) -> None:
    rows = [
        {"network": network, "epoch": epoch, "train_loss": 1 / epoch, "val_loss": 2 / epoch, "val_accuracy": 0.5}
        for network in ("conditional", "static", "widened")
        for epoch in range(1, epochs + 1)
    ]
    picture = learning_curves(rows, Classification.score, "loss")
    for colour in ("#0072B2", "#E69F00", "#009E73"):
        found = pixels_of(picture, colour)
        assert found[:, : found.shape[1] // 2].sum() > 20, "on the left are the losses, and no legend"


def test_the_report_and_the_run_have_one_scale_of_coefficients() -> None:
    analysis = random_analysis()
    means = {name: measures.class_mean for name, measures in analysis.measures.items()}
    largest = max(float(mean.max()) for mean in means.values())
    for axes in mean_by_class(analysis, ["early"]).figure.axes:
        assert all(image.get_clim() == (0, pytest.approx(largest)) for image in axes.images)
    picture = routing_heat_map({"early": torch.full((3, 4), 0.2), "late": torch.full((3, 4), 0.4)}, analysis.classes)
    colours = matplotlib.colormaps["cividis"]
    for value in (0.5, 1.0):
        assert pixels_of(picture, colours(value)).mean() > 0.1, "a panel is filled with it"
