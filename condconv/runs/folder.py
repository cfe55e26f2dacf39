"""The folder of one run: `<out>/<name>-N/`, made once, never overwritten."""

from __future__ import annotations

import csv
import errno
import io
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from condconv.errors import ArgumentError, CheckpointError
from condconv.files import Lock, flush_folder, is_temporary, remove_temporaries, temporary_folder, write_text
from condconv.reading import parse_yaml, read_text
from condconv.runs.config import TrainConfig, without_retired
from condconv.runs.metrics import EpochRow

LOCK = ".lock"
BEST = "-best"
"""Behind a network's name: with the weights of its best epoch, not of its last one."""


class RunFolder:
    """Paths inside a run folder, and the lock that keeps two processes from training into it at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: Lock | None = None

    @classmethod
    def create(cls, config: TrainConfig) -> RunFolder:
        """Make the first free `<out>/<name>-N/`, with its settings in it from the first moment on, and hold it.

        Raises `ArgumentError` where the folder cannot be written.
        """
        out = Path(config.out).expanduser()
        try:
            out.mkdir(parents=True, exist_ok=True)
            with temporary_folder(out / config.run_name) as temporary:
                (temporary / "checkpoints").mkdir()
                write_text(temporary / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
                folder = cls(temporary)
                folder.lock()
                for number in itertools.count(1):
                    path = out / f"{config.run_name}-{number}"
                    if folder.move_to(path):
                        return folder
        except OSError as error:
            raise ArgumentError(
                f"--out {config.out}: the run folder cannot be made ({error.strerror}); pass a folder you can write to"
            ) from error
        raise AssertionError("there are more numbers than folders")

    def move_to(self, path: Path) -> bool:
        """Rename the folder; False where something else has that name. An empty folder is replaced."""
        try:
            self.path.rename(path)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                return False
            raise
        flush_folder(path.parent)
        self.path = path
        if self._lock is not None:
            self._lock.path = path / LOCK
        return True

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        """A run folder to go on with, cleared of half-written files. `CheckpointError` where it is none."""
        folder = cls(path)
        if not folder.config.exists():
            raise CheckpointError(f"{path}: not a run folder (no config.yaml in it)")
        folder.lock()
        remove_temporaries(path)
        remove_temporaries(path / "checkpoints")
        return folder

    def lock(self) -> None:
        """Hold the folder until `close`, or until the process ends. `BusyError` where another process holds it."""
        try:
            self._lock = Lock(self.path / LOCK, str(self.path))
        except OSError as error:
            raise CheckpointError(f"{self.path}: the run folder cannot be written ({error.strerror})") from error

    def close(self) -> None:
        """Let go of the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def discard_unstarted(self) -> None:
        """Remove the folder where nothing came of the run: no epoch, and no checkpoint to go on from."""
        if not any((self.path / "checkpoints").iterdir()) and not (self.path / "metrics.csv").exists():
            shutil.rmtree(self.path)

    @property
    def config(self) -> Path:
        """The resolved settings."""
        return self.path / "config.yaml"

    @property
    def summary(self) -> Path:
        """The last file to be written: where it stands, the run is finished."""
        return self.path / "summary.md"

    def checkpoint(self, network: str) -> Path:
        """The training state of one network."""
        return self.path / "checkpoints" / f"{network}.ckpt"

    def weights(self, network: str) -> Path:
        """The trained weights of one network."""
        return self.path / f"{network}.safetensors"

    def read_config(self) -> TrainConfig:
        """The settings the run was started with. `CheckpointError` where they cannot be read."""
        try:
            return TrainConfig(**without_retired(parse_yaml(read_text(self.config))))
        except (OSError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{self.config}: not the settings of a run of this version ({error})") from error

    def write_table(self, name: str, columns: Sequence[str], rows: Sequence[EpochRow]) -> None:
        """A CSV file with these rows, replaced as a whole."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path / name, buffer.getvalue())


def is_run(path: str | Path) -> bool:
    """Whether it is a folder of `condconv train`."""
    return RunFolder(Path(path).expanduser()).config.is_file()


def find_run(run: str, out: str) -> Path:
    """The folder `--resume RUN` means: a path, a name inside `out`, or, where RUN is empty, the newest unfinished run.

    Raises `CheckpointError` where there is none.
    """
    base = Path(out).expanduser()
    if run:
        for path in (Path(run).expanduser(), base / run):
            if path.is_dir():
                return path
        raise CheckpointError(f"--resume {run}: no such run folder, neither as a path nor in {base}")
    runs = [path.parent for path in base.glob("*/config.yaml") if not is_temporary(path.parent.name)]
    unfinished = [path for path in runs if not RunFolder(path).summary.exists()]
    if not unfinished:
        raise CheckpointError(f"--resume: no unfinished run in {base}; name one with --resume RUN, or start a new one")
    return max(unfinished, key=lambda path: (path / "config.yaml").stat().st_mtime)
