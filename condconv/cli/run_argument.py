"""A run folder of `condconv train` named on the command line: what was recorded about its networks."""

from __future__ import annotations

import csv
from pathlib import Path

from condconv.analysis import RecordedNetwork
from condconv.analysis.curves import MEASURED
from condconv.errors import CheckpointError
from condconv.runs.folder import RunFolder
from condconv.runs.trained import metadata


def recorded_networks(path: Path) -> list[RecordedNetwork]:
    """Return what a finished run recorded about its networks.

    Raises:
        CheckpointError: not a finished run folder, or its files are damaged.
    """
    folder = RunFolder(path)
    try:
        with (path / "metrics.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        epochs: dict[str, list[dict[str, float]]] = {}
        for row in rows:
            epochs.setdefault(row["network"], []).append({name: float(row[name] or "nan") for name in MEASURED})
        return [
            RecordedNetwork(path.name, network, int(metadata(folder.weights(network))["macs"]), recorded)
            for network, recorded in epochs.items()
        ]
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: not a finished run folder (no {Path(error.filename).name} in it)") from None
    except (OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: what the run recorded is damaged, or of another version ({error})") from error
