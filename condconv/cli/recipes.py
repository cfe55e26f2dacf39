"""`condconv recipes`: what there is to train with one command."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from condconv.cli.parser import Parser
from condconv.errors import UnknownNameError
from condconv.recipes import Recipe, list_recipes, load_recipe
from condconv.registry import unknown_name_message


def make_parser() -> Parser:
    """The arguments of `condconv recipes`."""
    parser = Parser(prog="condconv recipes", description="List the recipes: condconv train --recipe NAME --data FOLDER")
    parser.add_argument("pattern", type=str, nargs="?", default="*", help="shell pattern on names, as in '*resnet*'")
    parser.add_argument("--markdown", action="store_true", default=False, help="as the table of docs/training.md")
    parser.add_argument("--debug", action="store_true", default=False, help="show tracebacks")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Print one line for each recipe: those that were run first, each half by name."""
    settings = make_parser().parse_args(list(arguments))
    names = fnmatch.filter(list_recipes(), settings.pattern)
    if not names:
        raise UnknownNameError(unknown_name_message("recipe", settings.pattern, list_recipes()))
    recipes = sorted((load_recipe(name) for name in names), key=lambda recipe: recipe.outcome.startswith(NOT_RUN))
    lines = [list(COLUMNS), *map(cells, recipes)]
    if settings.markdown:
        lines.insert(1, ["---"] * len(COLUMNS))
        print("\n".join(f"| {' | '.join(line)} |" for line in lines))
        return 0
    # Imported here, so that --help answers at once.
    from condconv.counting.table import render

    print(render(lines, left=len(COLUMNS)))
    return 0


NOT_RUN = "not run here"
"""How the outcome of a recipe begins that stands behind those that were run."""

COLUMNS = ("recipe", "network", "data", "outcome", "source")


def cells(recipe: Recipe) -> list[str]:
    """What the table says about a recipe."""
    return [recipe.name, recipe.network, recipe.dataset, recipe.outcome, recipe.source]
