"""Detection: boxes with a class each, as many as an image has."""

from pathlib import Path

from condconv.tasks.score import Score

SCORE = Score("map", None, "mAP", "%", 100.0, "map_pct", "mAP")


def recognises(folder: Path) -> bool:
    """Whether a folder has annotations of objects."""
    signs = ("train.json", "data.yaml", "data.yml", "ImageSets/Main/train.txt")
    coco = any((folder / "annotations").glob("instances_train*.json"))
    return coco or any((folder / sign).is_file() for sign in signs)
