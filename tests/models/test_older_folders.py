"""Folders that version 0.1.0 saved, when all coefficients were (B, n), load and compute the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import condconv

SAVED = Path(__file__).with_name("saved_by_0_1")


@pytest.mark.parametrize("folder", sorted(SAVED.iterdir()), ids=lambda folder: folder.name)
def test_an_older_folder_loads_and_computes_what_it_did(folder: Path) -> None:
    model = condconv.from_pretrained(folder)
    x = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(x), load_file(folder / "expected.safetensors")["y"], atol=1e-5, rtol=1e-5)
