"""Reading TensorFlow's checkpoint format, on checkpoints written by an independent writer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from condconv.errors import CheckpointError
from condconv.models.tensor_bundle import read_tensors
from tests.models.bundle_writer import write_bundle


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    named = {f"net/blocks_{i}/conv2d_{j}/kernel": torch.randn(3, 3, 2, i + 1) for i in range(40) for j in range(3)}
    named |= {
        "global_step": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "half": torch.randn(5).half(),
        "brain": torch.randn(5).bfloat16(),
        "double": torch.randn(2, 2).double(),
        "whole": torch.arange(4, dtype=torch.int32),
    }
    return named


def test_reads_what_was_written(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    write_bundle(tmp_path / "model.ckpt", tensors)
    read = read_tensors(tmp_path / "model.ckpt")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_missing_files_are_named(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"model\.ckpt\.index: no such file"):
        read_tensors(tmp_path / "model.ckpt")
    write_bundle(tmp_path / "model.ckpt", tensors)
    (tmp_path / "model.ckpt.data-00000-of-00001").unlink()
    with pytest.raises(CheckpointError, match=r"data-00000-of-00001: no such file"):
        read_tensors(tmp_path / "model.ckpt")


def test_truncated_data_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    write_bundle(tmp_path / "model.ckpt", tensors)
    data = tmp_path / "model.ckpt.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="truncated"):
        read_tensors(tmp_path / "model.ckpt")


@pytest.mark.parametrize("damage", ["truncate", "flip", "text", "empty"])
def test_damaged_index_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], damage: str) -> None:
    write_bundle(tmp_path / "model.ckpt", tensors)
    index = tmp_path / "model.ckpt.index"
    content = bytearray(index.read_bytes())
    if damage == "truncate":
        content = content[: len(content) // 2]
    elif damage == "flip":
        content[100] ^= 1
    else:
        content = bytearray(b"a text file, and no checkpoint at all; long enough for a footer ................")
        content = bytearray() if damage == "empty" else content
    index.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"model\.ckpt\.index: not a TensorFlow checkpoint index, or damaged"):
        read_tensors(tmp_path / "model.ckpt")
