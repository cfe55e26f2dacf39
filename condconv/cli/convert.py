"""`condconv convert`: what a conversion does to a network, and the converted network in a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from condconv.cli.models_argument import add_model, input_size, load_model
from condconv.cli.parser import Parser
from condconv.errors import ArgumentError, argument_error
from condconv.variants import Share, block_variants, variants


def make_parser() -> Parser:
    """The flags of `condconv convert`."""
    parser = Parser(prog="condconv convert", description="Plan a conversion, print it and, with --out, carry it out.")
    add_model(parser)
    names = [*variants.names(), *block_variants.names()]
    parser.add_argument("--variant", type=str, default="condconv", help=" or ".join(names))
    parser.add_argument(
        "--targets", type=str, nargs="+", default=None, metavar="TARGET",
        help="kinds, 'last N blocks', 'last N stages' or regular expressions on layer names",
    )  # fmt: skip
    parser.add_argument("--num-experts", type=int, default=None, help="the variant's default where left out")
    parser.add_argument(
        "--share", type=str, nargs="+", default=None, metavar="SHARE",
        help="block, none, network, a number of blocks, or NAME=REGEX …; the variant's default where left out",
    )  # fmt: skip
    parser.add_argument(
        "--options", type=str, nargs="+", default=[], metavar="NAME=VALUE",
        help="what is special to the variant's paper, as in budget=1/2 norm=layer",
    )  # fmt: skip
    parser.add_argument("--init", type=str, default="upcycle", help="upcycle or fresh")
    parser.add_argument(
        "--max-overhead", type=float, default=None, metavar="SHARE",
        help="leave out layers whose mixing costs more than this share of their convolution, as in 0.05",
    )  # fmt: skip
    parser.add_argument(
        "--pretrained", action="store_true", default=False, help="start from published weights (download)"
    )
    parser.add_argument("--out", type=str, default=None, metavar="FOLDER", help="save the converted network here")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Plan, print, and convert where asked to."""
    settings = make_parser().parse_args(list(arguments))
    special: dict[str, Any] = {"share": parse_share(settings.share)} if settings.share is not None else {}
    if settings.variant not in block_variants:
        special |= variants[settings.variant].design.parse_options("convert", settings.options)
    elif settings.options:
        rule = f"is for variants of layers, and {settings.variant} has no options"
        raise argument_error("convert", "options", " ".join(settings.options), rule, "leave it out")
    from condconv.conversion import plan

    model = load_model(settings.model, settings.network, pretrained=settings.pretrained)
    made = plan(
        model,
        settings.variant,
        targets=settings.targets,
        num_experts=settings.num_experts,
        init=settings.init,
        input_size=input_size(settings.input_size, model),
        max_overhead=settings.max_overhead,
        **special,
    )
    print(made)
    if settings.out is not None:
        from condconv.models import save_pretrained

        save_pretrained(made.apply(), settings.out)
        print(f"saved: {settings.out}")
    return 0


def parse_share(words: Sequence[str]) -> Share:
    """Return the `share` argument of a conversion from the words on the command line.

    Raises:
        ArgumentError: words that are no way to share.
    """
    if len(words) == 1 and words[0] in ("block", "network", "none"):
        return None if words[0] == "none" else "block" if words[0] == "block" else "network"
    if len(words) == 1 and re.fullmatch("[0-9]{1,9}", words[0]):
        return int(words[0])
    pairs = [word.partition("=") for word in words]
    if not all(separator and name and pattern for name, separator, pattern in pairs):
        ways = "block, none, network, a number of blocks or NAME=REGEX"
        raise ArgumentError(f"--share={' '.join(words)!r} is no way to share; pass {ways}")
    return {name: pattern for name, _, pattern in pairs}
