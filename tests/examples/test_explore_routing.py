"""The page that explores routing: its numbers, and, where gradio is installed, the page itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import condconv
from tests.examples.test_model_examples import example
from tests.runs.writing import write_run

PICTURE = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    run, _ = write_run(tmp_path_factory.mktemp("runs"), "digits")
    return condconv.from_pretrained(run)


def test_its_numbers_are_those_of_the_network(model: torch.nn.Module) -> None:
    demo = example("explore_routing")
    image = demo.prepared(model, PICTURE)
    assert image.shape == (1, 1, 8, 8)
    probabilities, coefficients = demo.explore(model, PICTURE)
    with torch.no_grad(), condconv.record_routing(model) as routing:
        expected = model(image)[0].softmax(dim=0)
    assert list(probabilities) == [str(digit) for digit in range(10)]
    assert list(probabilities.values()) == pytest.approx(expected.tolist())
    assert coefficients.keys() == routing.parts().keys()
    assert all(torch.equal(coefficients[name], values[0]) for name, values in routing.parts().items())
    assert len(demo.drawn(coefficients).axes) == len(coefficients)
    others = [demo.explore(model, PICTURE, kernels)[0] for kernels in list(demo.KERNELS)[1:]]
    assert all(list(other.values()) != list(probabilities.values()) for other in others)


@pytest.mark.filterwarnings("ignore")
def test_the_page_answers(model: torch.nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    page = example("explore_routing").page(model)
    answer, picture = page.fn(PICTURE, "its own")
    assert max(answer.values()) <= 1 and picture.axes
    assert page.fn(None, "its own") == (None, None)
