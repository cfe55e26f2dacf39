"""Tries an installed condconv where there is no checkout: python smoke_test.py [--native].

It needs torch alone. With `--native` the compiled operator has to be there.
"""

from __future__ import annotations

import sys
from importlib import metadata, resources

import torch
from torch import nn

import condconv
from condconv import operators

DATA = ("py.typed", "__init__.pyi", "execution/fitted.csv", "recipes/small_images.yaml", "analysis/assets/report.html")


def main(native: bool) -> None:
    """Convert a network, look at its routing, train a step; whatever is wrong raises."""
    if native and not operators.built():
        raise SystemExit(f"the operator is missing: {operators.load_error()}")
    if metadata.version("condconv") != condconv.__version__:
        raise SystemExit(f"the package says {condconv.__version__}, its metadata {metadata.version('condconv')}")
    for data in DATA:
        if not (resources.files("condconv") / data).is_file():
            raise SystemExit(f"{data} is missing")
    torch.manual_seed(0)
    images = torch.randn(4, 3, 16, 16)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3)).eval()
    before = net(images)
    net = condconv.convert(net, "condconv", num_experts=4)
    with condconv.record_routing(net) as routing:
        after = net(images)
    if not torch.allclose(before, after, atol=1e-5) or not routing:
        raise SystemExit("the converted network computes something else than the original one")
    after.square().mean().backward()
    print(f"condconv {condconv.__version__} of {condconv.__path__[0]}: operator {operators.instruction_set()}")


if __name__ == "__main__":
    main("--native" in sys.argv[1:])
