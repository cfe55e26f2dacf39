"""`condconv models`: which networks there are."""

from __future__ import annotations

from collections.abc import Sequence

from condconv.cli.parser import Parser
from condconv.errors import UnknownNameError
from condconv.registry import unknown_name_message


def make_parser() -> Parser:
    """The arguments of `condconv models`."""
    parser = Parser(
        prog="condconv models",
        description="List the papers' networks and their static backbones. Other timm networks have their names.",
    )
    parser.add_argument("pattern", type=str, nargs="?", default="*", help="shell pattern on names, as in '*mobilenet*'")
    parser.add_argument("--pretrained", action="store_true", default=False, help="only those with published weights")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Print one line for each network."""
    settings = make_parser().parse_args(list(arguments))

    # Imported here: --help and wrong options answer without loading timm.
    from condconv.counting.table import render
    from condconv.models import list_models
    from condconv.models.specs import SPECS

    names = list_models(settings.pattern, pretrained=settings.pretrained)
    if not names:
        kind = "network with published weights" if settings.pretrained else "network"
        known = list_models(pretrained=settings.pretrained)
        raise UnknownNameError(unknown_name_message(kind, settings.pattern, known))
    with_weights = set(list_models(pretrained=True))
    lines = [["network", "variant", "experts", "weights", "conditional layers"]]
    for name in names:
        weights = "published" if name in with_weights else ""
        if name in SPECS:
            spec = SPECS[name]
            lines.append([name, spec.variant, str(spec.num_experts), weights, spec.placement])
        else:
            lines.append([name, "static", "", weights, ""])
    print(render(lines, left=5))
    return 0
