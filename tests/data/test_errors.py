from __future__ import annotations

import pytest
from torch.utils.data import DataLoader, Dataset

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
