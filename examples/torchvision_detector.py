"""Convert a detector of torchvision to CondConv without changing what it finds, then fine-tune it.

    pip install condconv[models]
    python examples/torchvision_detector.py [--weights ssdlite320_mobilenet_v3_large_coco-a79551df.pth]

The weights are torchvision's own file; without it the detector begins with random ones, which shows that it runs, and
no more. The images are made: a bright square on noise, which is what there is to find.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

import condconv
from condconv.detection import route_over_images


def made_images(count: int, size: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images (3, size, size) on [0, 1], and the box and class of the square in each."""
    images, targets = [], []
    for index in range(count):
        side, left = size // 3, (7 * index) % (size // 2)
        image = 0.3 * torch.rand(3, size, size)
        image[:, left : left + side, left : left + side] += 0.6
        images.append(image)
        box = torch.tensor([[left, left, left + side, left + side]], dtype=torch.float32)
        targets.append({"boxes": box, "labels": torch.tensor([1])})
    return images, targets


def main(weights: str | None = None, steps: int = 10, batch: int = 8, size: int = 320) -> list[float]:
    """Convert and fine-tune; returns the losses."""
    torch.manual_seed(0)
    images, targets = made_images(batch, size)
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=91)
    if weights is not None:
        model.load_state_dict(torch.load(weights, weights_only=True))
    condconv.convert(model, "condconv", targets=r"^backbone\.features\.1\.", num_experts=4, init="upcycle")
    route_over_images(model)  # padding of a batch is none of a router's business
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for step in range(steps):
        loss = sum(model.train()(images, targets).values())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        losses.append(loss.item())
        print(f"step {step + 1}: loss {loss.item():.4f}")
    with torch.no_grad():
        found = model.eval()(images)
    print(f"{sum(len(each['scores']) for each in found)} detections in {batch} images")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights")
    parser.add_argument("--steps", type=int, default=10)
    main(**vars(parser.parse_args()))
