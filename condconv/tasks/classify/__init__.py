"""Classification: one class for each image."""

from condconv.tasks.score import Score

SCORE = Score("val_accuracy", "train_accuracy", "accuracy", "%", 100.0, "top1_pct", "top-1")
