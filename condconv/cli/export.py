"""`condconv export`: a network as the file of a runtime, run and compared before it is handed out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from condconv.cli.models_argument import add_model, input_size, load_model
from condconv.cli.parser import Parser
from condconv.errors import argument_error


def make_parser() -> Parser:
    """The flags of `condconv export`."""
    parser = Parser(
        prog="condconv export",
        description="Write a network as the file of a runtime, run that, compare both, and time it beside its static "
        "twin. A file that computes something else is not kept.",
    )
    add_model(parser)
    parser.add_argument("--out", type=str, required=True, metavar="FILE", help=".onnx, .xml, .pte or .pt2")
    parser.add_argument(
        "--format", type=str, default=None, help="onnx, openvino, executorch or pt2 (default: by the file's name)"
    )
    parser.add_argument("--batch", type=str, default=None, metavar="N", help="images of a call: a number or dynamic")
    parser.add_argument("--pretrained", action="store_true", default=False, help="published weights, for a name")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Load, export, and say what came of it."""
    settings = make_parser().parse_args(list(arguments))
    batch = parse_batch(settings.batch)

    # Imported here: --help and wrong options answer without loading timm.
    import torch

    from condconv.exporting import export
    from condconv.exporting.formats import FORMATS, check_format

    format = check_format("export", settings.format, Path(settings.out).expanduser())
    if batch is None:
        batch = 1 if FORMATS[format].one_image else "dynamic"
    network = load_model(settings.model, settings.network, pretrained=settings.pretrained)
    size = input_size(settings.input_size, network)
    example = torch.randn(5, *size, generator=torch.Generator().manual_seed(0))
    print(export(network, settings.out, format=format, batch=batch, example=example, twin=True))
    return 0


def parse_batch(text: str | None) -> Any:
    """A number of images, "dynamic", or None for what the format has; `ArgumentError` for anything else."""
    if text is None or text == "dynamic":
        return text
    if not re.fullmatch("[0-9]{1,9}", text):
        raise argument_error(
            "export", "--batch", text, "must be a whole number of at most nine digits, or dynamic", "pass --batch 1"
        )
    return int(text)
