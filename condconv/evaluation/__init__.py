"""Trained networks at work: evaluation on labelled images, prediction on any."""
