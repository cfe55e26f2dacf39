"""Compression: a network with fewer kernels and fewer bits, as far as a score allows."""

from condconv.compression.steps import Compressed, Step
from condconv.compression.verb import compress

__all__ = ["Compressed", "Step", "compress"]
