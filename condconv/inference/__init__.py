"""Inference: networks in the form in which they are run."""

from condconv.inference.form import InferenceForm, optimize_for_inference

__all__ = ["InferenceForm", "optimize_for_inference"]
