"""Write `condconv/__init__.pyi`, in which type checkers find the public names; a test compares it."""

from __future__ import annotations

from pathlib import Path

import condconv

HEAD = '"""The public names, for type checkers; written by `python scripts/stub.py`."""\n\n'


def stub() -> str:
    """The file's text: where each public name comes from, and the packages that are there without an import."""
    lines = []
    for name in condconv.__all__:
        thing = getattr(condconv, name)
        lines.append(f"from {thing.__module__} import {name} as {name}\n")
    lines += [f"from condconv import {name} as {name}\n" for name in condconv._PACKAGES]
    return HEAD + "".join(sorted(lines)) + "\n__version__: str\n"


if __name__ == "__main__":
    Path(condconv.__file__).with_suffix(".pyi").write_text(stub(), encoding="utf-8")
