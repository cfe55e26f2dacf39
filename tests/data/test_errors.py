from __future__ import annotations

import io

import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from condconv.data.decoding import decode_image
from condconv.errors import DataError


class _Broken(Dataset[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        try:
            raise OSError("no such disk")
        except OSError as error:
            raise DataError("a.jpg: cannot be read") from error


def test_an_error_of_a_loader_process_has_no_traceback_in_its_message() -> None:
    with pytest.raises(DataError) as caught:
        next(iter(DataLoader(_Broken(), num_workers=1)))
    assert str(caught.value) == "a.jpg: cannot be read"


def test_a_format_that_starts_a_program_is_not_decoded() -> None:
    packed = io.BytesIO()
    Image.new("RGB", (4, 4)).save(packed, "EPS")
    with pytest.raises(DataError, match=r"cat\.jpg: cannot be decoded as an image \(cannot identify"):
        decode_image(packed.getvalue(), "cat.jpg", 3)
