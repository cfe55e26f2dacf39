"""Restoration: from a picture that is noisy, blurred or packed too hard, nobody says how much, to the picture."""

from condconv.tasks.score import Score

SCORE = Score("val_psnr", "train_psnr", "PSNR", "dB", 1.0, "psnr_db", "PSNR")
