"""How near joints are to where they should be: COCO's average precision by object keypoint similarity, and PCK.

    OKS = mean over labelled joints of exp(−d² / (2 area (2 σ)²))

d: distance in pixels, σ: the joint's deviation (`joints.sigmas_of`).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condconv.tasks.keypoints.instances import Instance
from condconv.tasks.keypoints.joints import sigmas_of

STATISTICS = ("ap", "ap_50", "ap_75", "ap_medium", "ap_large")
PCK_SHARE = 0.1
"""A joint is right within this share of the box's longer side."""
_SAME = 0.9
_SURE = 0.2


def similarity(found: Tensor, truth: Tensor, area: float, sigmas: Sequence[float]) -> float:
    """OKS of joints (K, 2 or more) with joints (K, 3), those that are labelled; 0 where none is."""
    labelled = truth[:, 2] > 0
    if not bool(labelled.any()):
        return 0.0
    squared = (found[:, :2] - truth[:, :2]).square().sum(dim=1)
    spread = 2 * area * (2 * torch.tensor(sigmas)).square()
    return float(torch.exp(-squared / spread)[labelled].mean())


def instance_score(joints: Tensor) -> float:
    """How sure joints (K, 3) are: the mean height of the peaks above 0.2, 0 where none is."""
    sure = joints[:, 2][joints[:, 2] > _SURE]
    return float(sure.mean()) if len(sure) else 0.0


def distinct(instances: Sequence[Instance], found: Sequence[Tensor], names: Sequence[str]) -> list[int]:
    """Which of the found (K, 3) are kept: of two in one image that are nearly the same (OKS 0.9) the surer one."""
    sigmas = sigmas_of(names)
    kept: list[int] = []
    for place in sorted(range(len(found)), key=lambda place: instance_score(found[place]), reverse=True):
        seen = torch.cat([found[place][:, :2], torch.ones(len(names), 1)], dim=1)
        rivals = (other for other in kept if instances[other].image == instances[place].image)
        if all(similarity(found[other], seen, instances[place].area, sigmas) <= _SAME for other in rivals):
            kept.append(place)
    return sorted(kept)


def average_precision(
    instances: Sequence[Instance], found: Sequence[Tensor], names: Sequence[str]
) -> dict[str, float]:
    """COCO's numbers on [0, 1] of joints (K, 3) found for each instance, in the image's pixels; -1 where there is no
    object of a size, and for no instance at all.
    """
    from faster_coco_eval import COCO, COCOeval_faster  # slow to import, and annotations alone need it

    if not instances:
        return dict.fromkeys(STATISTICS, -1.0)
    truth = COCO(annotations_of(instances, names))
    results = results_of(instances, found, names)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval_faster(
            truth, truth.loadRes(results), iouType="keypoints", kpt_oks_sigmas=sigmas_of(names),
            print_function=lambda *_: None,
        )  # fmt: skip
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(STATISTICS, (float(value) for value in evaluation.stats[:5]), strict=True))


def annotations_of(instances: Sequence[Instance], names: Sequence[str]) -> dict[str, Any]:
    """Instances as COCO's JSON has them."""
    annotations = [
        {
            "id": number, "image_id": each.image, "category_id": 1, "bbox": each.box.tolist(), "area": each.area,
            "iscrowd": 0, "num_keypoints": int((each.joints[:, 2] > 0).sum()),
            "keypoints": each.joints.flatten().tolist(),
        }
        for number, each in enumerate(instances, 1)
    ]  # fmt: skip
    images = [{"id": image} for image in sorted({each.image for each in instances})]
    categories = [{"id": 1, "name": "object", "keypoints": list(names)}]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def results_of(instances: Sequence[Instance], found: Sequence[Tensor], names: Sequence[str]) -> list[dict[str, Any]]:
    """Joints as COCO's results have them, without those of one instance found twice."""
    return [
        {
            "image_id": instances[place].image, "category_id": 1, "score": instance_score(found[place]),
            "keypoints": found[place].flatten().tolist(),
        }
        for place in distinct(instances, found, names)
    ]  # fmt: skip


def errors(instances: Sequence[Instance], found: Sequence[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Distances in pixels, and as a share of the box's longer side: (N, K) each, NaN for joints without a label."""
    truth = torch.stack([each.joints for each in instances])
    distance = (torch.stack(list(found))[..., :2] - truth[..., :2]).square().sum(dim=-1).sqrt()
    distance = torch.where(truth[..., 2] > 0, distance, torch.nan)
    longer = torch.stack([each.box[2:].max() for each in instances])[:, None]
    return distance.numpy(), (distance / longer).numpy()


def pck(relative: np.ndarray) -> float:
    """The share of labelled joints that are right, of `errors`; NaN where there are none."""
    known = relative[~np.isnan(relative)]
    return float((known <= PCK_SHARE).mean()) if known.size else float("nan")
