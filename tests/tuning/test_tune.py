"""Tuning pins what was measured, where it was measured, and leaves everything else as it was."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import condconv
from condconv.execution import Question, strategies
from condconv.layers import ConditionalLayer
from condconv.timing import Timing
from condconv.tuning import pin_records, tune
from condconv.tuning import tune as function

Fastest = Callable[[str], None]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        condconv.CondConv2d(3, 8, 3, padding=1, num_experts=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5),
        condconv.CondConv2d(8, 8, 3, padding=1, num_experts=2), nn.BatchNorm2d(8), nn.ReLU(),
        condconv.CondConv2d(8, 8, 3, padding=1, num_experts=2), nn.Flatten(),
        condconv.CondLinear(8 * 36, 5, num_experts=3),
    )  # fmt: skip


@pytest.fixture
def fastest(monkeypatch: pytest.MonkeyPatch) -> Fastest:
    """Each contender runs once; afterwards one of them is found to be the fastest, whatever the clock says."""

    def choose(name: str) -> None:
        def measure(calls: dict[str, Callable[[], object]], *_: object, **__: object) -> dict[str, Timing]:
            for call in calls.values():
                call()
            order = sorted(calls, key=lambda other: other != name)
            return {other: Timing(((place + 1.0,),)) for place, other in enumerate(order)}

        monkeypatch.setattr("condconv.tuning.measuring.measure", measure)

    choose("batched_gemm")
    return choose


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured is measured, but not for long."""
    monkeypatch.setattr("condconv.tuning.measuring.BURST_S", 0.0)
    monkeypatch.setattr("condconv.tuning.measuring.TURNS", 2)


def layers(model: nn.Module) -> list[ConditionalLayer]:
    return [module for module in model.modules() if isinstance(module, ConditionalLayer)]


def ran(model: nn.Module, x: Tensor) -> list[str | None]:
    model(x)
    return [condconv.last_strategy(layer) for layer in layers(model)]


def test_it_measures_and_prints_a_table(short: None) -> None:
    model, x = network().eval(), torch.randn(2, 3, 6, 6)
    found = tune(model, x)
    assert [row.layer for row in found.rows] == ["0", "4", "7", "9"]
    for row, layer in zip(found.rows, layers(model), strict=True):
        assert layer.pins == {row.question: row.strategy}
        assert row.ms == min(row.times_ms.values()) > 0 and "reference" not in row.times_ms
        assert row.next_best is not None and row.ratio(row.next_best) >= 1
        assert row.planned in row.times_ms
    lines = str(found).splitlines()
    assert lines[0].startswith("tuned for inference (forward) on ") and len(lines) >= 6
    assert lines[2].split()[:3] == ["0", "2x3x6x6", found.rows[0].strategy]
    with torch.no_grad():
        assert ran(model, x) == [row.strategy for row in found.rows]


def test_equal_layers_are_measured_once(fastest: Fastest) -> None:
    told: list[tuple[int, int]] = []
    found = tune(network(), torch.randn(2, 3, 6, 6), progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)] and len(found.rows) == 4


def test_a_pin_answers_its_own_question_alone(fastest: Fastest) -> None:
    model, x = network().eval(), torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        planned, planned_3 = ran(model, x), ran(model, x[:1].repeat(3, 1, 1, 1))
        fastest("grouped")
        tune(model, x)
        assert ran(model, x) == ["grouped"] * 4 != planned
        assert ran(model, x[:1].repeat(3, 1, 1, 1)) == planned_3
        with condconv.use_strategy("auto"):
            assert ran(model, x) == planned
        with condconv.use_strategy("batched_gemm"):
            assert ran(model, x) == ["batched_gemm"] * 4
        last_before = x.to(memory_format=torch.channels_last)
        model(last_before)
        assert condconv.last_strategy(layers(model)[0]) == planned_in(network().eval(), last_before)
        threads = torch.get_num_threads()
        torch.set_num_threads(threads + 1)
        try:
            assert ran(model, x) == ran(network().eval(), x)
        finally:
            torch.set_num_threads(threads)
    assert ran(model.double(), x.double()) == ran(network().eval().double(), x.double())


def planned_in(model: nn.Module, x: Tensor) -> str | None:
    model(x)
    return condconv.last_strategy(layers(model)[0])


def test_pins_for_training_and_for_inference_live_side_by_side(fastest: Fastest) -> None:
    model, x = network(), torch.randn(2, 3, 6, 6)
    fastest("grouped")
    tune(model, x, training=True)
    fastest("batched_gemm")
    tune(model, x)
    assert ran(model, x) == ["grouped"] * 4
    with torch.no_grad():
        assert ran(model, x) == ["batched_gemm"] * 4
    fastest("mixture_of_experts")
    tune(model, x)
    assert [len(layer.pins) for layer in layers(model)] == [2] * 4


def test_autocast_is_a_question_of_its_own(fastest: Fastest) -> None:
    model, x = network().eval(), torch.randn(2, 3, 6, 6)
    planned = ran(model, x)
    fastest("grouped")
    with torch.autocast("cpu", torch.bfloat16):
        tune(model, x, training=True)
        assert ran(model, x) == ["grouped"] * 4
    assert ran(model, x) == planned


def test_the_model_is_as_it_was_but_for_the_pins(short: None) -> None:
    model, x = network(), torch.randn(2, 3, 6, 6)
    model[4].eval()
    model(x).sum().backward()
    before = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters() if p.grad is not None]
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    tune(model, x, training=True)
    tune(model, x)
    assert all(torch.equal(before[0][name], value) for name, value in model.state_dict().items())
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.equal(one, two) for one, two in zip(before[1], gradients, strict=True))
    assert [module.training for module in model.modules()] == modes and torch.equal(torch.get_rng_state(), state)
    assert not x.requires_grad and not any(module._forward_pre_hooks for module in model.modules())


def test_interrupted_it_keeps_what_is_done(fastest: Fastest) -> None:
    model = network()

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(model, torch.randn(2, 3, 6, 6), progress=interrupt)
    assert [len(layer.pins) for layer in layers(model)] == [1, 1, 1, 0] and model.training


def test_what_it_cannot_do_is_said(fastest: Fastest) -> None:
    with pytest.raises(condconv.ArgumentError, match="tune: model=Sequential has no conditional layer"):
        tune(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.randn(1, 3, 6, 6))
    with pytest.raises(condconv.ShapeError, match="has 4 channels; in_channels=3"):
        tune(network(), torch.randn(1, 4, 6, 6))
    with pytest.raises(condconv.ArgumentError, match="nothing in the model requires a gradient"):
        tune(network().requires_grad_(False), torch.randn(1, 3, 6, 6), training=True)


def test_a_strategy_of_ones_own_stays(fastest: Fastest) -> None:
    model, x = network().eval(), torch.randn(2, 3, 6, 6)
    layers(model)[1].strategy = "reference"
    found = tune(model, x)
    assert [row.layer for row in found.rows] == ["0", "7", "9"] and "'reference'" in found.left["4"]
    assert "not tuned: 4: its own strategy is 'reference'" in str(found)
    with torch.no_grad():
        assert ran(model, x) == ["batched_gemm", "reference", "batched_gemm", "batched_gemm"]


def test_a_layer_that_did_not_run_is_said(fastest: Fastest) -> None:
    model = network()
    model.spare = condconv.CondConv2d(3, 3, 1)
    model.forward = lambda x: nn.Sequential(*list(model)[:-1])(x)
    assert tune(model, torch.randn(2, 3, 6, 6)).left == {"spare": "it did not run on the example"}


def test_a_strategy_that_fails_is_no_contender(fastest: Fastest, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, *_: object) -> Tensor:
        raise RuntimeError("out of memory")

    # One that the planner never chooses for several experts: the network itself has to run.
    monkeypatch.setattr(type(strategies["mixture_of_experts"]), "__call__", fail)
    found = tune(network(), torch.randn(2, 3, 6, 6), training=True)
    assert all("mixture_of_experts" not in row.times_ms for row in found.rows)


def test_noise_is_said(short: None) -> None:
    steady, unsteady = Timing(((1.0,), (1.1,), (0.9,))), Timing(((1.0,), (1.4,), (1.0,)))
    assert steady.unsteady == [] and unsteady.unsteady == [1]
    found = tune(network(), torch.randn(2, 3, 6, 6))
    object.__setattr__(found.rows[0], "noisy", True)
    assert "~" in str(found).splitlines()[2] and "a turn differed by more than 30%" in str(found)


def test_an_inference_form_is_tuned_too(fastest: Fastest) -> None:
    model, x = condconv.optimize_for_inference(network().eval()), torch.randn(2, 3, 6, 6)
    tune(model, x)
    with torch.no_grad():
        assert ran(model, x) == ["batched_gemm"] * 4
    assert next(iter(layers(model)[0].pins)).form == "Packed"


def test_compiled_exported_and_transformed_code_is_planned(fastest: Fastest) -> None:
    model, x = network().eval(), torch.randn(2, 3, 6, 6)
    expected = model(x)
    fastest("mixture_of_experts")
    tune(model, x)
    tune(model, x, training=True)
    seen: list[str] = []
    layer = layers(model)[0]
    with condconv.execution.planner.watch_execution(lambda strategy, *_: seen.append(strategy)):
        torch.func.vmap(lambda image: layer(image), randomness="error")(x)
    assert "mixture_of_experts" not in seen
    with torch.no_grad():
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), expected.detach(), rtol=1e-4, atol=1e-5)


def test_pins_survive_copies_and_pickles(fastest: Fastest, tmp_path: Path) -> None:
    model = network()
    tune(model, torch.randn(2, 3, 6, 6))
    torch.save(model, tmp_path / "model.pt")
    for other in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert pin_records(other) == pin_records(model) != {}
        assert [layer.pins for layer in layers(other)] == [layer.pins for layer in layers(model)]


def test_saved_folders_remember_pins_of_this_machine(fastest: Fastest, tmp_path: Path) -> None:
    model = condconv.create_model("condconv_mobilenetv1_025", num_experts=2)
    condconv.save_pretrained(model, tmp_path / "plain")
    assert "tuned" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    x = torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        tune(model, x)
    tune(model, x, training=True)
    condconv.save_pretrained(model, tmp_path / "net")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = condconv.from_pretrained(tmp_path / "net")
    assert [layer.pins for layer in layers(again)] == [layer.pins for layer in layers(model)]

    path = tmp_path / "net" / "config.json"
    config = json.loads(path.read_text())
    for records in config["tuned"].values():
        for record in records:
            record["machine"] = "Abacus 9000, beads"
    path.write_text(json.dumps(config))
    here = next(iter(layers(model)[0].pins)).machine
    with pytest.warns(UserWarning, match="was tuned on Abacus 9000, beads, and this is ") as caught:
        elsewhere = condconv.from_pretrained(tmp_path / "net")
    assert here in str(caught[0].message) and not any(layer.pins for layer in layers(elsewhere))

    path.write_text(json.dumps({**config, "tuned": {"no.such.layer": []}}))
    with pytest.raises(condconv.CheckpointError, match="what was tuned cannot be read"):
        condconv.from_pretrained(tmp_path / "net")


def test_a_question_has_a_field_for_all_that_decides(fastest: Fastest) -> None:
    tune(model := network(), torch.randn(2, 3, 6, 6))
    (asked,) = layers(model)[0].pins
    assert isinstance(asked, Question) and (asked.input_shape, asked.training) == ((2, 3, 6, 6), False)
    assert function is condconv.tune
