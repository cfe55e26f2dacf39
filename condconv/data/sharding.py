"""From an image folder to WebDataset tar shards, several at a time; finished shards are kept when it is interrupted.

Which image stands where follows from the folder's file names alone: the images of each half are put into a fixed random
order, so that every shard has images of all classes, and cut into shards of equal numbers. The same folder gives the
same bytes, with any number of processes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import IO, Any

import torch

from condconv.data.decoding import decode_image, read_bytes
from condconv.data.image_folder import FileImages, open_image_folder
from condconv.data.manifest import CLASSES, HALVES, MANIFEST, Manifest, Shard, manifest_of
from condconv.data.shards import PROGRESS
from condconv.errors import ArgumentError, DataError
from condconv.files import Lock, is_temporary, remove_temporaries, remove_whole, temporary_folder, whole_file
from condconv.signals import ignore_interrupts

_PLAN = "plan.json"
_LOCK = ".lock"


@dataclass(frozen=True)
class Job:
    """One shard to write: its files, their classes, and the number of its first sample."""

    half: str
    number: int
    files: tuple[Path, ...]
    labels: tuple[int, ...]
    first: int
    skip_bad: bool

    @property
    def name(self) -> str:
        """The shard's file name."""
        return f"{self.half}-{self.number:06d}.tar"


@dataclass(frozen=True)
class Written:
    """A finished shard, and the images that were left out of it."""

    shard: Shard
    skipped: tuple[str, ...]


def write_shards(
    folder: Path,
    out: Path,
    *,
    shard_size: int,
    workers: int,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Write the shards of `folder/train/<class>/…` and `folder/val/<class>/…` into `out`, and return what was written.

    Args:
        folder: the image folder.
        out: made where it is not there; shards of it that are finished are kept.
        shard_size: images in a shard.
        workers: processes; 0 for this one alone.
        skip_bad: leave out images that cannot be decoded, instead of stopping.
        progress: is told how many images are written, and of how many.

    Raises:
        DataError: the folder is no image folder, an image cannot be decoded, or a process ended.
        ArgumentError: `out` holds other files, or cannot be written.
        BusyError: another process writes into `out`.
    """
    source = open_image_folder(folder)
    halves = {half: images for half, images in zip(HALVES, (source.train, source.val), strict=True)}
    jobs = [job for half, images in halves.items() for job in _jobs(half, images, shard_size, skip_bad)]
    digest = _digest(folder, jobs, source.classes)
    with _held(out):
        finished = manifest_of(out)
        if finished is not None and finished.digest == digest:
            _clear(out)  # what a call left that was killed in its last steps
            return finished
        done = _begin(out, digest, source.classes)
        return _write_missing(out, digest, jobs, done, workers, progress)


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """Make the folder and hold it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = Lock(out / _LOCK, f"--out {out}")
    except OSError as error:
        raise ArgumentError(f"--out {out}: cannot be written ({error.strerror or error})") from error
    with lock:
        yield


def _write_missing(
    out: Path,
    digest: str,
    jobs: Sequence[Job],
    done: dict[str, Written],
    workers: int,
    progress: Callable[[int, int], None],
) -> Manifest:
    total = sum(len(job.files) for job in jobs)
    images_done = sum(len(job.files) for job in jobs if job.name in done)
    progress(images_done, total)
    with _writers(workers, [job for job in jobs if job.name not in done], out) as results:
        for job, written in results:
            done[job.name] = written
            images_done += len(job.files)
            progress(images_done, total)
    return _finish(out, digest, jobs, done)


def _jobs(half: str, images: Any, shard_size: int, skip_bad: bool) -> Iterator[Job]:
    assert isinstance(images, FileImages)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
    for number, first in enumerate(range(0, len(order), shard_size)):
        chosen = order[first : first + shard_size]
        files, labels = tuple(images.files[i] for i in chosen), tuple(int(images.labels[i]) for i in chosen)
        yield Job(half, number, files, labels, first, skip_bad)


def _digest(folder: Path, jobs: Sequence[Job], classes: Sequence[str]) -> str:
    """What the shards are made of: names, sizes and classes of all images, and how they are cut into shards."""
    digest = hashlib.sha256(json.dumps(list(classes)).encode())
    for job in jobs:
        digest.update(f"{job.name} {job.skip_bad}\n".encode())
        for file, label in zip(job.files, job.labels, strict=True):
            digest.update(f"{file.relative_to(folder).as_posix()} {file.stat().st_size} {label}\n".encode())
    return digest.hexdigest()


def _begin(out: Path, digest: str, classes: Sequence[str]) -> dict[str, Written]:
    """Make the folder, or find what an interrupted call with the same images has finished in it."""
    progress = out / PROGRESS
    plan = progress / _PLAN
    try:
        if plan.exists():
            if plan.read_text(encoding="utf-8") != digest:
                raise ArgumentError(
                    f"--out {out}: was begun with other images, another --shard-size or another --skip-bad-images; "
                    "repeat that call, or pass another folder"
                )
        elif any(path.name != _LOCK and not is_temporary(path.name) for path in out.iterdir()):
            raise ArgumentError(f"--out {out}: holds files that are not of these shards; pass an empty or a new folder")
        if not plan.exists():
            with temporary_folder(progress) as begun:
                _replace(begun / _PLAN, digest)
                begun.rename(progress)
        with whole_file(out / CLASSES) as temporary:
            temporary.write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
        return dict(_finished(out))
    except OSError as error:
        raise ArgumentError(f"--out {out}: cannot be written ({error.strerror or error})") from error


def _finished(out: Path) -> Iterator[tuple[str, Written]]:
    for note in sorted((out / PROGRESS).glob("*.tar.json")):
        try:
            content = json.loads(note.read_text(encoding="utf-8"))
            shard, skipped = Shard(**content["shard"]), tuple(content["skipped"])
        except (ValueError, TypeError, KeyError):
            continue  # damaged: the shard is written again
        path = out / shard.name
        if path.exists() and path.stat().st_size == shard.bytes:
            yield shard.name, Written(shard, skipped)


def _finish(out: Path, digest: str, jobs: Sequence[Job], done: dict[str, Written]) -> Manifest:
    shards = {half: tuple(done[job.name].shard for job in jobs if job.half == half) for half in HALVES}
    skipped = tuple(name for job in jobs for name in done[job.name].skipped)
    manifest = Manifest(**shards, digest=digest, skipped=skipped)
    _replace(out / MANIFEST, manifest.to_json())
    _clear(out)
    return manifest


def _clear(out: Path) -> None:
    """Remove what is only there while shards are written."""
    try:
        remove_whole(out / PROGRESS)
        remove_temporaries(out)
    except OSError as error:
        raise ArgumentError(f"--out {out}: cannot be written ({error.strerror or error})") from error


@contextmanager
def _writers(workers: int, jobs: Sequence[Job], out: Path) -> Iterator[Iterator[tuple[Job, Written]]]:
    """The shards as they are finished, in this process or in several."""
    if workers == 0:
        yield ((job, write_shard(job, out)) for job in jobs)
        return
    # Spawned: the parent has threads of torch, with which a forked process can hang.
    pool = ProcessPoolExecutor(min(workers, max(1, len(jobs))), get_context("spawn"), _serve_the_parent)
    try:
        waiting = {pool.submit(write_shard, job, out): job for job in jobs}
        yield ((waiting[future], future.result()) for future in as_completed(waiting))
    except BrokenProcessPool as error:
        raise DataError(f"{out}: a process that wrote shards was ended; go on with the same command") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _serve_the_parent() -> None:
    """Ctrl-C is for the main process, which lets the others finish the shard they are at; its end is theirs too."""
    ignore_interrupts()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def write_shard(job: Job, out: Path) -> Written:
    """Write one shard and a note that it is finished; the tar file appears under its name when it is whole.

    Raises:
        DataError: an image cannot be read or decoded, or the shard cannot be written.
    """
    path = out / job.name
    samples, skipped = 0, []
    try:
        with whole_file(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive:
            for place, (file, label) in enumerate(zip(job.files, job.labels, strict=True), job.first):
                try:
                    content = read_bytes(file)
                    decode_image(content, str(file), channels=3)
                except DataError:
                    if not job.skip_bad:
                        raise
                    skipped.append(str(file))
                    continue
                key = f"{job.half}-{place:09d}"
                _add(archive, f"{key}{file.suffix.lower()}", content)
                _add(archive, f"{key}.cls", str(label).encode())
                samples += 1
        with path.open("rb") as written:
            shard = Shard(job.name, samples, path.stat().st_size, _sha256(written))
        _replace(out / PROGRESS / f"{job.name}.json", json.dumps({"shard": asdict(shard), "skipped": skipped}))
    except OSError as error:
        raise DataError(
            f"{path}: could not be written ({error.strerror or error}); make room, then go on with the same command"
        ) from error
    return Written(shard, tuple(skipped))


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    # No time and no owner, so that the same images give the same bytes.
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _replace(path: Path, text: str) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
