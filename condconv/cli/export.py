"""`condconv export`: a network as the file of a runtime, run and compared before it is handed out."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from condconv.cli.models_argument import add_model, input_size, load_model
from condconv.cli.network_argument import DATA_HELP
from condconv.cli.parser import Parser
from condconv.errors import argument_error

_CALIBRATION_IMAGES = 256


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
    parser.add_argument(
        "--int8", type=str, default=None, metavar="DATA",
        help=f"quantise (onnx, openvino): by training images of {DATA_HELP}; its validation images say what it costs",
    )  # fmt: skip
    parser.add_argument("--pretrained", action="store_true", default=False, help="published weights, for a name")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Load, export, and say what came of it."""
    settings = make_parser().parse_args(list(arguments))
    batch = parse_batch(settings.batch)

    # Imported here: --help and wrong options answer without loading timm.
    import torch

    from condconv.exporting import export
    from condconv.exporting.formats import FORMATS, check_format, check_int8

    format = check_format("export", settings.format, Path(settings.out).expanduser())
    if batch is None:
        batch = 1 if FORMATS[format].one_image else "dynamic"
    if settings.int8 is not None:
        check_int8("export", format, None if batch == "dynamic" else batch)
        return _int8(settings, format, batch)
    network = load_model(settings.model, settings.network, pretrained=settings.pretrained)
    size = input_size(settings.input_size, network)
    example = torch.randn(5, *size, generator=torch.Generator().manual_seed(0))
    print(export(network, settings.out, format=format, batch=batch, example=example, twin=True))
    return 0


def _int8(settings: Any, format: str, batch: Any) -> int:
    """Export, quantise, and say what that costs in accuracy, or in the score of the run's task."""
    import torch

    from condconv.cli.network_argument import load_for_data, task_for
    from condconv.evaluation.evaluate import evaluate, evaluation_loader
    from condconv.exporting import ExportedNetwork, export

    task = task_for(settings.model, settings.int8)
    source = task.open(settings.int8).limited(_CALIBRATION_IMAGES, None)
    network, source, _ = load_for_data(settings.model, settings.network, source, settings.pretrained)
    if settings.input_size is not None:
        _, *size = input_size(settings.input_size, network)
        source = source.resized(size[0])
    # As they are evaluated, not as they are augmented in training.
    seen = task.view(dataclasses.replace(source, val=source.train), train=False)
    images = torch.cat([batch[0] for batch in evaluation_loader(seen, task, 32, 0)])
    print(export(network, settings.out, format=format, batch=batch, example=images[:5], twin=True, int8=images))
    made = ExportedNetwork(Path(settings.out).expanduser())
    how = {"batch_size": 32, "workers": 0, "device": torch.device("cpu")}
    before, after = (evaluate(of, source, task, **how).found for of in (network, made))  # type: ignore[arg-type]
    print(f"f32: {task.headline(before)}")
    print(f"int8: {task.headline(after)}")
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
