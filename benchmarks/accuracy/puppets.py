"""Makes a set of joints in which routing can matter: puppets, each image drawn in one of several styles.

A puppet faces the viewer: its left is on the right of the picture, and nothing else tells left from right. Annotations
are COCO's JSON, `annotations/puppet_keypoints_train.json` and `…_val.json`.

    python -m benchmarks.accuracy.puppets puppets
    python -m benchmarks.accuracy.puppets plain --styles filled  # one style alone: nothing to route by
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from benchmarks.accuracy.made_sets import BACKGROUND, Made, Points, draw, finished, make_parser, write_set
from benchmarks.accuracy.styles import corners
from condconv.tasks.keypoints.coco import hull

JOINTS = (
    "head", "neck", "hip", "left_elbow", "left_hand", "left_knee", "left_foot", "right_elbow", "right_hand",
    "right_knee", "right_foot",
)  # fmt: skip
BONES = (
    ("neck", "hip"), ("neck", "left_elbow"), ("left_elbow", "left_hand"), ("neck", "right_elbow"),
    ("right_elbow", "right_hand"), ("hip", "left_knee"), ("left_knee", "left_foot"), ("hip", "right_knee"),
    ("right_knee", "right_foot"),
)  # fmt: skip
_HEAD, _THICKNESS = 0.25, 0.16
"""The head's radius and a bone's thickness, in trunks."""


def pose(random: np.random.Generator, size: int) -> tuple[dict[str, tuple[float, float]], float]:
    """The joints of a puppet, and the length of its trunk."""
    trunk = float(random.uniform(0.14, 0.19)) * size
    lean = float(random.uniform(-0.4, 0.4))

    def reached(start: tuple[float, float], angle: float, length: float) -> tuple[float, float]:
        """So many trunks on from a joint; angle 0 is down, positive ones are to the right."""
        return (
            start[0] + length * trunk * math.sin(angle + lean), start[1] + length * trunk * math.cos(angle + lean)
        )  # fmt: skip

    x, y = (float(value) * size for value in random.uniform(0.45, 0.55, 2))
    joints = {"hip": (x, y)}
    joints["neck"] = reached(joints["hip"], math.pi, 1.0)
    joints["head"] = reached(joints["neck"], math.pi, 0.45)
    for side, sign in (("left", 1), ("right", -1)):
        upper_arm, lower_arm, upper_leg, lower_leg = (
            sign * float(random.uniform(low, high)) for low, high in ((0.4, 2.2), (0.2, 2.8), (0.1, 0.8), (0.0, 0.5))
        )
        joints[f"{side}_elbow"] = reached(joints["neck"], upper_arm, 0.6)
        joints[f"{side}_hand"] = reached(joints[f"{side}_elbow"], lower_arm, 0.55)
        joints[f"{side}_knee"] = reached(joints["hip"], upper_leg, 0.75)
        joints[f"{side}_foot"] = reached(joints[f"{side}_knee"], lower_leg, 0.75)
    return joints, trunk


def bone(start: tuple[float, float], end: tuple[float, float], thickness: float) -> Points:
    """The outline of a bone."""
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    across = (-math.sin(angle) * thickness / 2, math.cos(angle) * thickness / 2)
    return [
        (point[0] + sign * across[0], point[1] + sign * across[1])
        for point, sign in ((start, 1), (end, 1), (end, -1), (start, -1))
    ]


def make_image(random: np.random.Generator, size: int, styles: Sequence[str]) -> Made:
    """One puppet with its joints."""
    style = styles[int(random.integers(len(styles)))]
    image = Image.new("L", (size, size), BACKGROUND)
    joints, trunk = pose(random, size)
    grey = int(random.integers(140, 220))
    for start, end in BONES:
        draw(image, bone(joints[start], joints[end], _THICKNESS * trunk), style, grey)
    draw(image, corners("disc", *joints["head"], _HEAD * trunk, 0.0), style, grey)
    points = [joints[name] for name in JOINTS]
    box = hull(points)
    entry = {
        "category_id": 1, "keypoints": [value for x, y in points for value in (x, y, 2)], "num_keypoints": len(JOINTS),
        "bbox": box, "area": box[2] * box[3],
    }  # fmt: skip
    return Made(finished(image, style, random), style, [entry])


def main(arguments: list[str] | None = None) -> None:
    """Parse, and make the set."""
    given = make_parser(__doc__).parse_args(arguments)
    categories = [{"id": 1, "name": "puppet", "keypoints": list(JOINTS)}]
    counts = {"train": given.train, "val": given.val}
    write_set(
        given.out, "annotations/puppet_keypoints_{}.json", categories, counts, given.seed,
        lambda random: make_image(random, given.size, given.styles),
    )  # fmt: skip
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
