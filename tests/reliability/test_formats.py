"""Every file format that is read, spoiled in every way: a result or an error of this package, soon, and never a crash.

Truncations at each byte, flipped bits, bytes put in and taken out. The counts are printed with `pytest -s`.
"""

from __future__ import annotations

import gzip
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from safetensors.torch import save_file

import condconv
from condconv.data import open_source
from condconv.data.idx import read_idx
from condconv.data.inputs import open_inputs
from condconv.data.manifest import Manifest, Shard, read_manifest
from condconv.errors import CondConvError
from condconv.models import load_weights
from condconv.models.saving import CONFIG, WEIGHTS
from condconv.recipes import _read as read_recipe
from condconv.runs.folder import RunFolder
from condconv.runs.trained import stored_source
from condconv.studies.study import read_rows, read_study
from condconv.training.checkpoint import read_checkpoint
from tests.data.writers import idx_bytes, jpeg, shard_samples, write_tar
from tests.reliability.counts import note
from tests.studies.test_study import write_study

LIMIT_S = 10.0


class Format(NamedTuple):
    """A whole file, and what reads it."""

    write: Callable[[Path], Path]
    """Into an empty folder; → the file to spoil."""
    read: Callable[[Path], object]


def _write(name: str, content: bytes | Callable[[], bytes]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content())
        return path

    return write


def _image(kind: str) -> Format:
    def read(path: Path) -> object:
        return open_inputs([str(path)])[0].load(0)

    return Format(_write(f"image.{kind.lower()}", jpeg(1, kind=kind)), read)


def _tar(folder: Path) -> Path:
    write_tar(folder / "train.tar", shard_samples(3))
    write_tar(folder / "val.tar", shard_samples(3, first=5))
    return folder / "train.tar"


def _read_shards(path: Path) -> object:
    source = open_source(str(path.parent))
    return [source.train.load(index) for index in range(len(source.train))]


def _classes(folder: Path) -> Path:
    _tar(folder)
    return _write("classes.txt", "Katze\nHund\nÄffin\n".encode())(folder)


def _manifest() -> bytes:
    return Manifest((Shard("a.tar", 3, 10240, "0" * 64),), (Shard("b.tar"),), "x" * 64, ("c",)).to_json().encode()


def _read_manifest(path: Path) -> object:
    return read_manifest(path.read_text("utf-8", "replace"), str(path))


def _checkpoint(folder: Path) -> Path:
    about = {"format": 1, "identity": {"seed": 0}}
    torch.save({"condconv": about, "state_dict": {"w": torch.ones(3)}}, folder / "c.ckpt")
    return folder / "c.ckpt"


LAYER = condconv.CondConv2d(3, 4, 3, num_experts=2)


def _weights(folder: Path) -> Path:
    state = {name: tensor.contiguous() for name, tensor in LAYER.state_dict().items()}
    classes = {"classes": '["a", "b"]', "input_shape": "[3, 8, 8]", "mean": "[0.5]", "std": "[0.2]"}
    save_file(state, folder / "conditional.safetensors", {"format": "pt", **classes})
    return folder / "conditional.safetensors"


def _read_weights(path: Path) -> object:
    source = stored_source(path.parent, "conditional", None)
    return source, load_weights(LAYER, path)


def _saved(folder: Path) -> Path:
    config = {"format": "condconv", "format_version": 1, "name": "mobilenetv1_025", "conversion": None,
              "arguments": {"num_classes": 2, "output_stride": 8, "width_multiplier": 0.25}}  # fmt: skip
    (folder / WEIGHTS).write_bytes(b"")
    (folder / CONFIG).write_text(json.dumps(config))
    return folder / CONFIG


def _run(folder: Path) -> Path:
    settings = {"data": "digits", "epochs": 3, "lr": 0.1, "share": "block", "name": "x"}
    return _write("config.yaml", yaml.safe_dump(settings).encode())(folder)


def _idx(compress: bool) -> bytes:
    data = idx_bytes(torch.arange(48).reshape(3, 4, 4))
    return gzip.compress(data) if compress else data


FORMATS = {
    "jpeg": _image("JPEG"), "png": _image("PNG"), "gif": _image("GIF"), "bmp": _image("BMP"), "webp": _image("WEBP"),
    "tiff": _image("TIFF"), "ppm": _image("PPM"),
    "tar": Format(_tar, _read_shards),
    "classes.txt": Format(_classes, _read_shards),
    "shards.json": Format(_write("s.json", _manifest), _read_manifest),
    "idx": Format(_write("images", lambda: _idx(False)), lambda path: read_idx(path, 3)),
    "idx.gz": Format(_write("images.gz", lambda: _idx(True)), lambda path: read_idx(path, 3)),
    "checkpoint": Format(_checkpoint, read_checkpoint),
    "safetensors": Format(_weights, _read_weights),
    "config.json": Format(_saved, lambda path: condconv.from_pretrained(path.parent)),
    "run config": Format(_run, lambda path: RunFolder(path.parent).read_config()),
    "study": Format(lambda folder: write_study(folder), read_study),
    "study table": Format(
        _write("t.csv", b"study,arm,seed\na,b,1\n"), lambda path: read_rows(path, ("study", "arm", "seed"))
    ),
    "recipe": Format(_write("r.yaml", b"source: x\nepochs: 3\nlr: 0.1\ndata: digits\n"), read_recipe),
}  # fmt: skip
SLOW = {"config.json"}
"""Each file that is whole is a network built."""


def spoiled(whole: bytes, flips: int) -> Iterator[bytes]:
    """Truncations, at each byte of a small file, and random changes, always the same."""
    step = max(1, len(whole) // 150)
    for length in range(0, len(whole), step):
        yield whole[:length]
    random_numbers = random.Random(0)
    for _ in range(flips):
        changed = bytearray(whole)
        for _ in range(random_numbers.choice((1, 1, 3))):
            place = random_numbers.randrange(len(changed))
            kind = random_numbers.randrange(4)
            if kind == 0:
                changed[place] ^= 1 << random_numbers.randrange(8)
            elif kind == 1:
                changed[place] = random_numbers.choice((0, 0xFF, 0x7F, 0x80, ord("9"), ord("-"), ord("["), ord("\n")))
            elif kind == 2:
                changed[place:place] = bytes([random_numbers.randrange(256)]) * random_numbers.choice((1, 8, 512))
            elif len(changed) > 1:
                del changed[place : place + random_numbers.choice((1, 4))]
        yield bytes(changed)
    yield from (b"\0" * 2048, b"\xff" * 2048, b"[" * 100_000, b"{" * 5000, b"9" * 5000, b"\n", b"\xef\xbb\xbf" + whole)


def attack(name: str, folder: Path, flips: int, every: int = 1) -> tuple[int, list[str]]:
    """How many files were read, and what was wrong."""
    path = FORMATS[name].write(folder)
    if name not in ("config.json", "study table"):  # without weights; of another version
        FORMATS[name].read(path)
    problems, count = [], 0
    for content in list(spoiled(path.read_bytes(), flips))[::every]:
        path.write_bytes(content)
        count += 1
        began = time.monotonic()
        try:
            FORMATS[name].read(path)
        except CondConvError as error:
            if not str(error).strip():
                problems.append(f"{content[:60]!r}: an error without words")
        except Exception as error:
            problems.append(f"{content[:200]!r}: {type(error).__name__}: {error}")
        if time.monotonic() - began > LIMIT_S:
            problems.append(f"{content[:60]!r}: {time.monotonic() - began:.0f} s")
    return count, problems


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_spoiled_files(name: str, tmp_path: Path) -> None:
    count, problems = attack(name, tmp_path, 60 if name in SLOW else 250)
    note("files", name, count, len(problems))
    assert not problems, "\n".join(problems[:10])


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in SLOW])
def test_some_spoiled_files(name: str, tmp_path: Path) -> None:
    _, problems = attack(name, tmp_path, 30, every=5)
    assert not problems, "\n".join(problems[:10])


