"""A paper that nobody here has heard of: one file in a folder, found by its entry point, and everything works."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.processes import run_code

PAPER = '''
"""Two kernels, a gain for each example, and a gate with a slope that is annealed: W(x) = gain(x) Σᵢ αᵢ(x) Wᵢ."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from condconv.banks import Bank
from condconv.coefficients import MIXING, Slice, Slices
from condconv.errors import ConversionError
from condconv.layers import ConditionalConv2d, Design
from condconv.lowered import Mixture
from condconv.routers import AnnealedGate, Router
from condconv.variants import Variant, variants


class GainBank(Bank):
    def __init__(self, site, num_experts, device=None, dtype=None):
        super().__init__()
        self.kernel_shape = site.kernel_shape
        self.slices = Slices((Slice("gain", (1.0,)), Slice(MIXING, (1.0, *[0.0] * (num_experts - 1)))))
        self.kernels = nn.Parameter(torch.empty((num_experts, *site.kernel_shape), device=device, dtype=dtype))
        shifts = torch.zeros(num_experts, site.out_channels, device=device, dtype=dtype) if site.bias else None
        self.shifts = None if shifts is None else nn.Parameter(shifts)
        self.draw(nn.init.normal_)

    def forward(self, coefficients):
        return Mixture(coefficients[:, :1] * coefficients[:, 1:], self.kernels, self.shifts)

    @torch.no_grad()
    def start_from(self, weight, bias, coefficients):
        total = float(coefficients[0] * coefficients[1:].sum()) if not coefficients.is_meta else 1.0
        self.kernels.copy_(weight / total)
        if self.shifts is not None:
            self.shifts.copy_(bias / total)

    def macs(self, input_size, output_size):
        return self.kernels.numel()

    @torch.no_grad()
    def draw(self, weight, bias=None):
        weight(self.kernels)
        if bias is not None and self.shifts is not None:
            bias(self.shifts)

    @torch.no_grad()
    def multiply(self, factor):
        self.kernels.mul_(factor)


class SlopeGate(AnnealedGate):
    renormalises = True
    start, end, called, buffer = 4.0, 1.0, "slope", "slope"

    def forward(self, logits):
        if self.training and not torch.compiler.is_compiling() and torch.is_grad_enabled():
            self.watch.notice(self)
        return torch.cat([1 + torch.tanh(logits[:, :1]), torch.softmax(logits[:, 1:] / self.slope, dim=1)], dim=1)


def router(site, slices):
    return Router(site.in_channels, slices, hidden_channels=None, gate=SlopeGate(4.0))


DESIGN = Design(bank=GainBank, router=router, num_experts=2)


class GainConv2d(ConditionalConv2d):
    """The paper's layer."""

    design = DESIGN


variants.register("gain", Variant(
    name="gain", title="A paper", url="https://example.org", equation="W(x) = g(x) Σᵢ αᵢ(x) Wᵢ", design=DESIGN,
    layers=(GainConv2d,), share=None, placement="all_but_first",
))
'''

SCRIPT = '''
import copy, json, sys
from pathlib import Path
import torch
from torch import nn
import condconv
from condconv.conversion.apply import conditional_layers
from condconv.counting import count
from condconv.routers import annealed_gates

folder, found = Path(sys.argv[1]), {}
x = torch.randn(4, 3, 16, 16)
net = condconv.create_model("cifar_resnet8", num_classes=4, width_multiplier=0.25).eval()
with torch.no_grad():
    net(x)
expected, before = net(x).detach(), copy.deepcopy(net.state_dict())
planned = condconv.plan(copy.deepcopy(net), "gain", targets="layer", input_size=(3, 16, 16))
condconv.convert(net, "gain", targets="layer", input_size=(3, 16, 16))
found["upcycled"] = float((net(x) - expected).abs().max())
counted = count(net, (3, 16, 16))
found["counted"] = (counted.params, counted.macs) == (planned.params_after, planned.macs_after)
executed = count(net, (3, 16, 16), "executed")
found["executed"] = executed.macs > 0
with condconv.record_routing(net, "gain") as routing:
    net(x)
found["gains"] = [list(one.shape) for one in routing.values()][0]
static = condconv.collapse(net, [x])
found["collapsed"] = float((static(x) - expected).abs().max())
condconv.save_pretrained(net, folder / "saved")
found["loaded"] = float((condconv.from_pretrained(folder / "saved")(x) - net(x)).abs().max())
try:
    condconv.optimize_for_inference(net)
except condconv.ConversionError as error:
    found["inference"] = str(error)
training = copy.deepcopy(net).train()
schedule = condconv.RoutingSchedule(training, steps=3)
start, kernels = schedule.value, next(iter(conditional_layers(training)))[1].bank.kernels.detach().clone()
optimizer = torch.optim.SGD(training.parameters(), lr=0.1)
for _ in range(3):
    optimizer.zero_grad()
    training(x).square().mean().backward()
    optimizer.step()
    schedule.step()
found["annealed"] = [start, schedule.value, float(annealed_gates(training)[0].slope)]
found["learned"] = not torch.equal(kernels, next(iter(conditional_layers(training)))[1].bank.kernels)
restored = condconv.revert(net).state_dict()
found["reverted"] = all(torch.equal(restored[name], value) for name, value in before.items())
found["public"] = condconv.GainConv2d.__name__
print(json.dumps(found))
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the paper's file, and the entry point that a package beside it would have."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "gain_paper.py").write_text(PAPER, encoding="utf-8")
    info = folder / "gain_paper-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gain-paper\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[condconv.variants]\ngain = gain_paper\n")
    return folder


def run(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_code(f"import sys\nsys.path.insert(0, {str(folder)!r})\n{code}", *arguments, cwd=folder)


def test_everything_works_from_one_file(folder: Path) -> None:
    done = run(folder, SCRIPT, str(folder))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert max(found["upcycled"], found["collapsed"], found["loaded"]) < 1e-5
    assert found["counted"] and found["executed"] and found["learned"] and found["reverted"]
    assert found["gains"] == [4, 1] and found["public"] == "GainConv2d"
    assert found["annealed"] == [4.0, 1.0, 1.0]
    assert "layer1.0.conv1: GainBank has no inference form; collapse the network" in found["inference"]


def test_the_command_line_knows_it(folder: Path) -> None:
    main = "from condconv.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = run(folder, main, "convert", "cifar_resnet8", "--variant", "gain", "--targets", "layer")
    assert done.returncode == 0, done.stderr
    assert "conversion to 'gain'" in done.stdout


def test_one_that_cannot_be_imported_is_named_and_the_others_work(folder: Path, tmp_path: Path) -> None:
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[condconv.variants]\nlost = no_such_module\n")
    done = run(tmp_path, "import condconv; print(condconv.CondConv2d(4, 4, 1).num_experts)")
    assert done.returncode == 0 and done.stdout == "8\n"
    assert done.stderr.count("entry point 'lost'") == 1 and "no_such_module" in done.stderr
