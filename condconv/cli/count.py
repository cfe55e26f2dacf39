"""`condconv count`: multiply-adds and parameters of a network, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

from condconv.cli.models_argument import add_model, input_size, load_model
from condconv.cli.parser import Parser
from condconv.counting import count
from condconv.counting.count import conventions


def make_parser() -> Parser:
    """The flags of `condconv count`."""
    parser = Parser(prog="condconv count", description="Count multiply-adds and parameters, layer by layer.")
    add_model(parser)
    names = conventions.names()
    parser.add_argument("--convention", type=str, default="paper", help=f"{' or '.join(names)} (default: paper)")
    parser.add_argument("--num-experts", type=int, default=None, help="experts of each conditional layer")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", default=False, help="print CSV")
    form.add_argument("--json", action="store_true", default=False, help="print JSON")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Count and print."""
    settings = make_parser().parse_args(list(arguments))
    conventions[settings.convention]
    model = load_model(settings.model, settings.network, num_experts=settings.num_experts)
    result = count(model, input_size(settings.input_size, model), settings.convention)
    if settings.csv:
        print(result.to_csv(), end="")
    else:
        print(result.to_json() if settings.json else result)
    return 0
