"""Exporting: a network as the file of a runtime, which is run and compared before it is handed out."""

from condconv.exporting.about import About
from condconv.exporting.blocked import onnx_session
from condconv.exporting.running import ExportedNetwork
from condconv.exporting.verb import Beside, Exported, export

__all__ = ["About", "Beside", "Exported", "ExportedNetwork", "export", "onnx_session"]
