"""The planner's fit: shapes near one another are alike, and there is an answer on every processor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

from benchmarks.speed import planner_fit
from condconv.cli import doctor
from condconv.execution import AUTO, choose, fitted, planner, strategies
from condconv.execution.fitted import Shape, ranking
from condconv.geometry import ConvGeometry
from condconv.lowered import Mixture

Write = Callable[..., None]
SIZES = ",".join(fitted.SIZES)
HEAD = f"instructions,work,kind,layout,{SIZES},grouped_pull,native_pull"
SMALL = "dense,channels_last,1,16,8,8,1,9,1,8"
LARGE = "dense,channels_last,64,4096,256,256,1,9,1,8"
KINDS = {"pointwise": (1, 1), "dense": (3, 1), "depthwise": (3, 32), "grouped": (3, 2)}
PROCESSORS = {
    "Intel(R) Xeon(R) Processor": "amx",
    "Intel(R) Core(TM) i7": "avx512",
    "AMD EPYC": "avx2",
    "AMD Ryzen 9": "avx512",
    "Maker of something else": "avx2",
    "aarch64": "none",
}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Puts another fit in the place of the committed one."""

    def put(*lines: str) -> None:
        path = tmp_path / "fitted.csv"
        path.write_text("\n".join((HEAD, *lines)) + "\n")
        monkeypatch.setattr(fitted, "TABLE", path)
        forget()

    yield put
    monkeypatch.undo()
    forget()


def forget() -> None:
    fitted._table.cache_clear()
    fitted.ranking.cache_clear()
    planner._plans.clear()


@pytest.fixture(params=PROCESSORS.items(), ids=lambda item: f"{item[0]}-{item[1]}")
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A process that says it runs on another processor, and holds the native operator to its instructions."""
    name, instructions = request.param
    monkeypatch.setattr("condconv.cpu_info.processor", lambda: name)
    monkeypatch.setattr("condconv.execution.native.instruction_set", lambda: instructions)
    if instructions == "none":
        monkeypatch.setattr("condconv.operators._LOAD_ERROR", "no such instructions")
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    forget()
    yield name
    monkeypatch.undo()
    forget()


def shape(batch: int, positions: int, channels: int, training: bool = False) -> Shape:
    return Shape("dense", True, training, batch, positions, channels, channels, 1, 9, 1, 8)


def test_what_is_read_is_summed_as_it_was_fitted(write: Write) -> None:
    write(f"avx2,forward,{SMALL},-1,1", f"avx2,forward,{LARGE},0.5,-2")
    (field,) = fitted._table().values()
    place = fitted.place_of([2, 100, 32, 64, 1, 9, 1, 4])
    near = planner_fit.covariance(*(torch.tensor(p, dtype=torch.float64) for p in ([place], field.places)))
    expected = (near @ torch.tensor([[-1, 1], [0.5, -2]], dtype=torch.float64))[0]
    assert list(field.slowness(place).values()) == pytest.approx(expected.tolist())


def test_a_forward_pass_and_a_training_step_are_different_questions(write: Write) -> None:
    write(f"avx2,forward,{SMALL},-1,1", f"avx2,training,{SMALL},1,-1")
    assert ranking(shape(1, 16, 8), "avx2") == ("grouped", "native")
    assert ranking(shape(1, 16, 8, training=True), "avx2") == ("native", "grouped")


def test_another_instruction_set_serves_where_none_was_fitted(write: Write) -> None:
    write(f"avx2,forward,{SMALL},-1,1", f"avx512,forward,{SMALL},1,-1")
    assert ranking(shape(1, 16, 8), "avx2") == ("grouped", "native")
    assert ranking(shape(1, 16, 8), "avx512") == ("native", "grouped")
    write(f"avx2,forward,{SMALL},-1,1")
    assert ranking(shape(1, 16, 8), "avx512") == ranking(shape(1, 16, 8), "neon") == ("grouped", "native")


def test_a_kind_that_was_not_measured_has_no_ranking(write: Write) -> None:
    write(f"avx2,forward,{SMALL},-1,1")
    assert ranking(shape(1, 16, 8)._replace(kind="pointwise"), "avx2") == ()


def test_shapes_may_be_asked_for_while_torch_is_traced(write: Write) -> None:
    write(f"avx2,forward,{SMALL},-1,1")
    with FakeTensorMode():
        assert ranking(shape(1, 16, 8), "avx2") == ("grouped", "native")
    assert ranking(shape(1, 16, 8), "avx2") == ("grouped", "native")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_every_question_has_an_answer_on_every_processor(
    processor: str, kind: str, channels_last: bool, training: bool
) -> None:
    asked = Shape(kind, channels_last, training, 4, 196, 96, 96, 1, 9, 1, 8)
    names = ranking(asked, fitted.instructions_here())
    assert names and set(names) <= set(strategies)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_chosen_can_run_on_every_processor(processor: str, kind: str, training: bool) -> None:
    kernel, groups = KINDS[kind]
    x = torch.randn(2, 32, 8, 8).to(memory_format=torch.channels_last)
    experts = torch.randn(4, 32, 32 // groups, kernel, kernel, requires_grad=training)
    mixture = Mixture(torch.rand(2, 4), experts, None)
    geometry = ConvGeometry((1, 1), (kernel // 2,) * 2, (1, 1), groups)
    chosen = choose(x, mixture, geometry, AUTO, "layer")
    assert strategies[chosen].supports(mixture, geometry) is None
    expected = strategies["reference"](x, mixture, geometry)
    torch.testing.assert_close(strategies[chosen](x, mixture, geometry), expected, rtol=1e-3, atol=1e-3)


def test_the_doctor_says_whose_times_decide(processor: str) -> None:
    said = dict(doctor.findings(None))["planner"]
    assert ("another instruction set" in said) == (fitted.instructions_here() not in fitted.INSTRUCTIONS)
