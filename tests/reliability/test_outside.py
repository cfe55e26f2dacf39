"""What comes from outside is checked where it is read, and harmless where it is written."""

from __future__ import annotations

import gzip
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from condconv import from_pretrained
from condconv.cli.main import main
from condconv.data import open_source
from condconv.data.decoding import decode_image
from condconv.data.idx import read_idx
from condconv.data.inputs import open_inputs
from condconv.errors import ArgumentError, CheckpointError, DataError
from condconv.limits import LIMITS, limit
from condconv.models import create_model, save_pretrained
from condconv.reading import parse_yaml, read_file
from condconv.safe_text import cells, visible
from tests.data.writers import jpeg, shard_samples, write_folder_set, write_idx_set, write_tar
from tests.runs.writing import write_run


def test_formulas_are_text_and_numbers_numbers() -> None:
    row = ["=1+1.png", "-3.5", "-dog", "@x", 4, None, "cat", "\tx", "+1e3"]
    assert cells(row) == ["'=1+1.png", "-3.5", "'-dog", "'@x", 4, None, "cat", "'\tx", "+1e3"]


def test_letters_that_turn_others_round_are_written_out() -> None:
    assert visible("cat\u202egpj.exe") == "cat⟨U+202E⟩gpj.exe"
    assert visible("قطة") == "قطة"


@pytest.mark.parametrize("name", LIMITS)
def test_every_limit_has_a_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert limit(name) == LIMITS[name].default
    monkeypatch.setenv(f"CONDCONV_{name.upper()}", "7")
    assert limit(name) == 7
    for wrong in ("0", "-1", "x", "٣", "9" * 30, "1.5"):
        monkeypatch.setenv(f"CONDCONV_{name.upper()}", wrong)
        with pytest.raises(ArgumentError, match="must be a whole number from 1"):
            limit(name)


def test_aliases_are_counted_before_they_are_written_out() -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    with pytest.raises(ValueError, match="more nodes than CONDCONV_MAX_YAML_NODES"):
        parse_yaml(bomb)
    assert parse_yaml("a: &x [1, 2]\nb: *x") == {"a": [1, 2], "b": [1, 2]}
    for wrong in ("&a [*a]", "[" * 5000, "!!python/object/apply:os.system [true]"):
        with pytest.raises(ValueError):
            parse_yaml(wrong)


def test_pipes_and_devices_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "zero.jpg"):
        with pytest.raises(OSError, match="not a regular file"):
            read_file(tmp_path / name, "max_image_bytes")
        with pytest.raises(DataError, match="not a regular file"):
            open_inputs([str(tmp_path / name)])[0].load(0)


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    assert decode_image((tmp_path / "x.png").read_bytes(), "x", 1).tolist() == [[[0, 1, 128, 255]]]
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match="floating-point"):
        decode_image((tmp_path / "x.tif").read_bytes(), "x", 1)


def test_too_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDCONV_MAX_IMAGE_PIXELS", "100")
    with pytest.raises(DataError, match="16 x 16 pixels, more than the limit of 100"):
        decode_image(jpeg(0), "x", 3)


def test_the_limit_of_pillow_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    for pillows in (1, 150):  # an error, and a warning
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows)
        assert decode_image(jpeg(0), "x", 3).shape == (3, 16, 16)


def test_a_pipe_among_the_images_of_a_class(tmp_path: Path) -> None:
    write_folder_set(tmp_path, classes=("cat", "dog"))
    first = next(path for path in sorted((tmp_path / "train" / "cat").iterdir()))
    first.unlink()
    os.mkfifo(first)
    with pytest.raises(DataError, match="not a regular file"):
        open_source(str(tmp_path)).train.load(0)


def test_a_validation_half_without_images(tmp_path: Path) -> None:
    write_idx_set(tmp_path, val=0)
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte.gz: no images in it"):
        open_source(str(tmp_path))


def test_a_saved_network_that_asks_for_a_download(tmp_path: Path) -> None:
    network = create_model("mobilenetv1_025", num_classes=2, width_multiplier=0.25)
    config = json.loads((save_pretrained(network, tmp_path) / "config.json").read_text())
    config["arguments"]["pretrained"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="its arguments ask for a download"):
        from_pretrained(tmp_path)


def test_predictions_hold_no_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder_set(tmp_path / "pets")
    write_run(tmp_path, str(tmp_path / "pets"), name="run")
    monkeypatch.chdir(tmp_path)
    Path("=1+1.png").write_bytes(jpeg(0))
    assert main(["predict", "run-1", "=1+1.png", "--out", "p.csv", "--workers", "0", "--device", "cpu"]) == 0
    assert Path("p.csv").read_text().splitlines()[1].startswith("'=1+1.png,")


def test_a_packed_file_is_unpacked_no_further_than_its_header_says(tmp_path: Path) -> None:
    head = struct.pack(">4I", 0x803, 2, 3, 3)
    (tmp_path / "x").write_bytes(gzip.compress(head + bytes(2**24)))
    with pytest.raises(DataError, match="too long; .* promises 18 bytes of data, found more"):
        read_idx(tmp_path / "x", 3)
    (tmp_path / "x").write_bytes(gzip.compress(struct.pack(">4I", 0x803, 2**31, 2**10, 2**10)))
    with pytest.raises(DataError, match="more than the limit; set CONDCONV_MAX_IDX_BYTES"):
        read_idx(tmp_path / "x", 3)


@pytest.mark.parametrize("label", ["300000000", "٣", "1" * 5000, "-1", ""])
def test_labels_that_are_none(tmp_path: Path, label: str) -> None:
    write_tar(tmp_path / "val.tar", shard_samples(3))
    write_tar(tmp_path / "train.tar", shard_samples(6) | {"s9.jpg": jpeg(9), "s9.cls": label.encode()})
    with pytest.raises(DataError, match="label"):
        open_source(str(tmp_path))
    assert len(open_source(str(tmp_path), skip_bad=True).classes) == 3


def test_class_names_that_cannot_be(tmp_path: Path) -> None:
    write_folder_set(tmp_path / "a", classes=("cat", "dog\udcff"))
    with pytest.raises(DataError, match="is not UTF-8"):
        open_source(str(tmp_path / "a"))
    write_tar(tmp_path / "b" / "train.tar", shard_samples(6))
    write_tar(tmp_path / "b" / "val.tar", shard_samples(3))
    (tmp_path / "b" / "classes.txt").write_text("cat\ndog\ncat\n")
    with pytest.raises(DataError, match="class name 'cat' occurs 2 times"):
        open_source(str(tmp_path / "b"))
