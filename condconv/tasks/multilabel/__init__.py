"""Multi-label classification: any number of classes for each image."""

from condconv.tasks.score import Score

SCORE = Score("val_map", None, "mAP", "%", 100.0, "map_pct", "mAP")
