"""Keypoints: the joints of one person, animal or thing at a time, in a box that is given."""

from pathlib import Path

from condconv.tasks.score import Score

SCORE = Score("ap", None, "AP", "%", 100.0, "ap_pct", "AP")


def recognises(folder: Path) -> bool:
    """Whether a folder has annotations of joints, by the names of their files."""
    return any((folder / "annotations").glob("*keypoints_train*.json")) or any(folder.glob("CollectedData*.csv"))
