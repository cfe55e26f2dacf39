from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condconv.data.tar import tar_members
from condconv.errors import DataError


def write(path: Path, names: list[str], sizes: list[int], form: int) -> None:
    with tarfile.open(path, "w", format=form) as archive:
        for name, size in zip(names, sizes, strict=False):
            member = tarfile.TarInfo(name)
            member.size = size
            archive.addfile(member, io.BytesIO(b"x" * size))


def expected(path: Path) -> list[tuple[str, int, int]]:
    with tarfile.open(path) as archive:
        return [(member.name, member.offset_data, member.size) for member in archive if member.isfile()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tar")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.from_regex(r"([a-zé]{1,120}/)?[a-zé]{1,130}\.(jpg|cls)", fullmatch=True), max_size=5),
    st.lists(st.integers(0, 1500), min_size=5, max_size=5),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_members_are_those_of_tarfile(folder: Path, names: list[str], sizes: list[int], form: int) -> None:
    path = folder / "x.tar"
    try:
        write(path, names, sizes, form)
    except ValueError:  # a name that ustar has no room for
        return
    assert list(map(tuple, tar_members(path))) == expected(path)


def test_folders_and_links_are_no_files(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (("d", tarfile.DIRTYPE), ("l", tarfile.SYMTYPE), ("f", tarfile.REGTYPE)):
            member = tarfile.TarInfo(name)
            member.type = kind
            archive.addfile(member)
    assert [member.name for member in tar_members(path)] == ["f"]


def test_a_damaged_header_is_noticed_and_what_is_before_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write(path, ["a.jpg", "b.jpg", "c.jpg"], [700, 10, 10], tarfile.USTAR_FORMAT)
    content = bytearray(path.read_bytes())
    content[content.index(b"b.jpg")] ^= 1
    path.write_bytes(content)
    found = tar_members(path)
    assert next(found).name == "a.jpg"
    with pytest.raises(DataError, match=r"no tar header at byte 1536 after member 'a\.jpg'"):
        next(found)


def test_text_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_text("hello " * 200)
    with pytest.raises(DataError, match="no tar header at byte 0 after member 'none'"):
        list(tar_members(path))
