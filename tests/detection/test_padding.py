"""An image's detections are the same alone and in a batch with larger images."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import condconv
from condconv.detection import route_over_images
from condconv.errors import ArgumentError

detection = pytest.importorskip("torchvision").models.detection

IMAGE = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(1))
LARGER = 0.2 * torch.rand(3, 128, 160, generator=torch.Generator().manual_seed(2))


def exact_detector() -> nn.Module:
    """A RetinaNet to which padding with zeros makes no difference: no tap looks over an edge, and zeros stay zeros.

    What it varies by with an image's companions is then its routing alone.
    """
    torch.manual_seed(0)
    conditional = condconv.CondConv2d(16, 32, 4, 4, bias=False, num_experts=4)
    first, last = nn.Conv2d(3, 16, 4, 4, bias=False), nn.Conv2d(32, 32, 2, 2, bias=False)
    backbone = nn.Sequential(first, nn.ReLU(), conditional, nn.ReLU(), last, nn.ReLU())
    backbone.out_channels = 32
    anchors = detection.anchor_utils.AnchorGenerator(((24,),), ((1.0,),))
    net = detection.RetinaNet(backbone, 3, min_size=64, max_size=320, anchor_generator=anchors)
    net.transform.resize = lambda image, target: (image, target)  # the larger one stays larger
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            if module.kernel_size == (3, 3):
                middle = module.weight.data[:, :, 1:2, 1:2].clone()
                module.weight.data.zero_()[:, :, 1:2, 1:2] = 3 * middle
    net.head.classification_head.cls_logits.weight.data *= 20  # sure of something
    for parameter in conditional.router.parameters():
        nn.init.normal_(parameter, 0.0, 3.0)
    return net.eval()


def detections(net: nn.Module, images: list[Tensor]) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        first = net(images)[0]
    return first["boxes"], first["scores"]


def test_detections_do_not_depend_on_companions() -> None:
    leaking = exact_detector()
    tight = route_over_images(exact_detector())
    static = exact_detector()
    layer = static.get_submodule("backbone.2")
    static.get_submodule("backbone")[2] = layer.to_static(torch.tensor([0.4, 0.1, 0.9, 0.3]))
    for net in (static, tight):
        boxes, scores = detections(net, [IMAGE])
        assert len(scores) > 3
        for batch in ([IMAGE, LARGER], [IMAGE, LARGER, LARGER[:, :32]]):
            found = detections(net, batch)
            torch.testing.assert_close(found[0], boxes, atol=1e-3, rtol=1e-4)
            torch.testing.assert_close(found[1], scores, atol=1e-5, rtol=1e-4)
    alone, batched = (detections(leaking, images)[1] for images in ([IMAGE], [IMAGE, LARGER]))
    assert len(alone) != len(batched) or float((alone - batched).abs().max()) > 0.01


def coefficients(net: nn.Module, images: list[Tensor]) -> dict[str, Tensor]:
    """Of the first image, by layer of the backbone."""
    with torch.no_grad(), condconv.record_routing(net) as routing:
        net(images)
    return {name: c[0] for name, c in routing.items() if name.startswith("backbone.")}


def furthest(net: nn.Module) -> float:
    alone, batched = coefficients(net, [IMAGE]), coefficients(net, [IMAGE, torch.ones(3, 64, 256)])
    return max(float((alone[name] - batched[name]).abs().max()) for name in alone)


def test_a_converted_detector_routes_over_its_images() -> None:
    torch.manual_seed(0)
    net = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=320
    )
    # A layer of the head sees regions, not images, and is none of the scope's business.
    condconv.convert(net, "condconv", targets=[r"^backbone\.body", "fc7"], num_experts=3, init="fresh")
    net.eval()
    assert furthest(net) > 0.01
    tight = pickle.loads(pickle.dumps(copy.deepcopy(route_over_images(route_over_images(net)))))
    assert furthest(tight) < 1e-4
    with pytest.raises(RuntimeError):
        tight([torch.rand(7, 64, 64)])
    # Nothing holds when the detector has ended, even by an error.
    assert condconv.PooledLinear(2, 3)(torch.randn(5, 2, 4, 4)).shape == (5, 3)


def test_what_does_not_batch_images_is_refused() -> None:
    with pytest.raises(ArgumentError, match="detector='Linear' has no transform that batches images; hold"):
        route_over_images(nn.Linear(1, 1))
