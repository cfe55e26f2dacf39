"""Explore in a browser which kernels a trained network mixes for a picture of yours.

    pip install 'condconv[all,demo]'
    python examples/explore_routing.py runs/digits-mobilenetv1_025-condconv-1

Upload a picture: beside the answer it shows the coefficients of every conditional layer, and what the answer would be
with other kernels than the picture's own. It listens on this machine alone.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

import condconv
from condconv.models import noted_images

KERNELS = {"its own": None, "the mean of all": "mean", "the strongest alone": "argmax"}


def prepared(model: nn.Module, picture: np.ndarray) -> Tensor:
    """The picture (H, W, 3), uint8, as the network was trained on: (1, C, H, W)."""
    about = noted_images(model)
    if about is None:
        raise ValueError("the network does not know its images; pass a run folder of condconv train")
    channels, height, width = about["input_size"]
    image = Image.fromarray(picture).convert("L" if channels == 1 else "RGB").resize((width, height))
    values = torch.from_numpy(np.array(image)).reshape(height, width, channels).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(about[name])[:, None, None] for name in ("mean", "std"))
    return ((values - mean) / std)[None]


@torch.inference_mode()
def explore(
    model: nn.Module, picture: np.ndarray, kernels: str = "its own"
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the probability of each class, and the coefficients (n,) of each layer, under their names."""
    image = prepared(model, picture)
    with condconv.record_routing(model) as routing:
        logits = model(image)
    coefficients = {name: values[0] for name, values in routing.parts().items()}
    how = KERNELS[kernels]
    if how is not None:
        with condconv.override_routing(model, how):
            logits = model(image)
    about = noted_images(model)
    assert about is not None
    return dict(zip(about["label_names"], logits[0].softmax(dim=0).tolist(), strict=True)), coefficients


def drawn(coefficients: dict[str, Tensor]) -> Figure:
    """The coefficients as a picture: a row of bars for each layer."""
    figure = Figure(figsize=(6, 0.5 + 0.7 * len(coefficients)), layout="constrained")
    panels = figure.subplots(len(coefficients), 1, squeeze=False)[:, 0]
    for axes, (name, values) in zip(panels, coefficients.items(), strict=True):
        axes.bar(range(len(values)), values.tolist(), color="#0072B2")
        axes.set_ylim(0, max(1.0, float(values.max())))
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=7)
        axes.set_xticks([])
    return figure


def page(model: nn.Module) -> Any:
    """The page: a picture and a choice of kernels in, an answer and the coefficients out."""
    import gradio

    def answer(picture: np.ndarray | None, kernels: str) -> tuple[dict[str, float] | None, Figure | None]:
        if picture is None:
            return None, None
        probabilities, coefficients = explore(model, picture, kernels)
        return probabilities, drawn(coefficients)

    return gradio.Interface(
        answer,
        [gradio.Image(label="picture"), gradio.Radio(list(KERNELS), value="its own", label="kernels")],
        [gradio.Label(num_top_classes=5, label="answer"), gradio.Plot(label="coefficients of each layer")],
        title="Which kernels for this picture?",
        flagging_mode="never",
        live=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Explore the routing of a trained network in a browser.")
    parser.add_argument("network", help="a run folder, a folder of save_pretrained, or a hub id owner/name")
    page(condconv.from_pretrained(parser.parse_args().network)).launch()
