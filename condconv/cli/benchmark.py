"""`condconv benchmark`: time and memory of a network beside its static twin and timm's implementation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condconv.cli.models_argument import add_model, input_size, load_model
from condconv.cli.parser import Parser
from condconv.errors import ArgumentError, argument_error
from condconv.progress import progress_bar
from condconv.registry import unknown_name_message

if TYPE_CHECKING:
    from condconv.benchmarking.rows import Benchmark, TimingCell, TimingRow

MODES = ("eager", "inference", "compiled")
CSV, PICTURE = "benchmark.csv", "benchmark.svg"


def make_parser() -> Parser:
    """The flags of `condconv benchmark`."""
    parser = Parser(
        prog="condconv benchmark",
        description="Measure time and memory of a network beside its static twin and timm's implementation.",
    )
    add_model(parser)
    parser.add_argument("--num-experts", type=int, default=None, help="of a network's name: experts of each layer")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], metavar="N", help="images of a step; several")
    parser.add_argument("--threads", type=int, nargs="+", default=None, metavar="N", help="of torch; several")
    parser.add_argument(
        "--modes", type=str, nargs="+", default=None, metavar="MODE",
        help=f"{', '.join(MODES)} (default: eager and inference, with --training eager)",
    )  # fmt: skip
    parser.add_argument(
        "--runtimes", type=str, nargs="+", default=[], metavar="FORMAT",
        help="also exported, in its runtime: onnx, openvino, executorch, pt2",
    )  # fmt: skip
    parser.add_argument("--training", action="store_true", default=False, help="steps of training, not inference")
    parser.add_argument("--tune", action="store_true", default=False, help="measure the tuned network as well")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--out", type=str, default=None, metavar="FOLDER", help=f"write {CSV} and {PICTURE} there")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Measure cell by cell; what is done is written at once, so that Ctrl-C leaves it."""
    settings = make_parser().parse_args(list(arguments))
    check(settings)
    modes = settings.modes or (["eager"] if settings.training else ["eager", "inference"])

    # Imported here: --help and wrong options answer without loading timm and matplotlib.
    import torch

    from condconv.benchmarking.rows import Benchmark, timing_cells
    from condconv.benchmarking.timings import as_table
    from condconv.devices import resolve_device
    from condconv.files import whole_folder

    device = resolve_device(settings.device)
    check_runtimes(settings.runtimes, device.type)
    model = load_model(settings.model, settings.network, num_experts=settings.num_experts)
    size, title = input_size(settings.input_size, model), Path(settings.model).expanduser().name
    benchmark = Benchmark(title, model, size, settings.training, settings.tune, device)
    cells = timing_cells([*modes, *settings.runtimes], settings.batch, settings.threads or [torch.get_num_threads()])
    folder = None
    if settings.out is not None:
        with whole_folder(settings.out) as made:
            pass
        folder = made.path
    rows: list[TimingRow] = []
    try:
        measure(benchmark, cells, rows, folder)
    except KeyboardInterrupt:
        cells_done = len({(row["mode"], row["batch"], row["threads"]) for row in rows})
        print(f"stopped after {cells_done} of {len(cells)} cells")
        return 130
    finally:
        if rows:
            print(as_table(rows))
            if folder is not None:
                print(f"benchmark: {folder}")
    return 0


def measure(benchmark: Benchmark, cells: Sequence[TimingCell], rows: list[TimingRow], folder: Path | None) -> None:
    """Add the rows of each cell, and write all that are there after each."""
    from condconv.benchmarking.timings import as_csv, as_picture
    from condconv.files import write_bytes, write_text

    with progress_bar("cells") as progress:
        for done, cell in enumerate(cells):
            progress(done, len(cells))
            rows += benchmark.rows(cell)
            if folder is not None:
                write_text(folder / CSV, as_csv(rows))
                write_bytes(folder / PICTURE, as_picture(rows))


def check(settings: Any) -> None:
    """Raise `ArgumentError` for numbers and modes that cannot be."""
    for name in ("batch", "threads"):
        for value in getattr(settings, name) or ():
            if value < 1:
                raise argument_error("benchmark", f"--{name}", value, "must be at least 1", f"pass --{name} 1 or more")
    for mode in settings.modes or ():
        if mode not in MODES:
            raise ArgumentError(f"--modes: {unknown_name_message('mode', mode, MODES)}")
    if settings.training and "inference" in (settings.modes or ()):
        raise argument_error("benchmark", "--modes", "inference", "cannot be trained", "leave it or --training out")
    if settings.training and 1 in settings.batch:
        rule = "has no batch statistics, which --training needs"
        raise argument_error("benchmark", "--batch", 1, rule, "pass --batch 2 or more")
    if settings.training and settings.runtimes:
        rule = "is for inference"
        raise argument_error("benchmark", "--runtimes", settings.runtimes[0], rule, "leave it or --training out")
    if settings.tune and set(settings.modes or ()) == {"compiled"}:
        raise argument_error("benchmark", "--tune", True, "does nothing in compiled code", "add --modes eager")


def check_runtimes(formats: Sequence[str], device: str) -> None:
    """Raise `ArgumentError` for unknown formats, another device than the CPU, and runtimes that are not installed."""
    from condconv.exporting.formats import FORMATS, require_packages

    for format in formats:
        if format not in FORMATS:
            raise ArgumentError(f"--runtimes: {unknown_name_message('format', format, FORMATS)}")
        if device != "cpu":
            rule = "is run on the CPU, and nothing there is beside it"
            raise argument_error("benchmark", "--runtimes", format, rule, "pass --device cpu")
        require_packages("benchmark", format)
