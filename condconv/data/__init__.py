"""Data: named sets, image folders, tar shards and IDX files, with exact epochs and per-sample randomness."""

from condconv.data.mixup import MixedSample, MixupView
from condconv.data.opening import open_source, sources
from condconv.data.sampling import EpochSampler, SampleKey, sample_seed
from condconv.data.source import ImageSet, Source, Subset, TensorImages, default_workers
from condconv.data.views import IGNORED, ImageView, Sample

__all__ = [
    "IGNORED",
    "EpochSampler",
    "ImageSet",
    "ImageView",
    "MixedSample",
    "MixupView",
    "Sample",
    "SampleKey",
    "Source",
    "Subset",
    "TensorImages",
    "default_workers",
    "open_source",
    "sample_seed",
    "sources",
]
