"""Where data that was fetched is kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder of the environment variable CONDCONV_CACHE, else `~/.cache/condconv`."""
    given = os.environ.get("CONDCONV_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "condconv"
