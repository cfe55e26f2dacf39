"""How much of what comes from outside is taken: a limit for every size, count and time, each with a setting.

The setting is an environment variable, `CONDCONV_` and the limit's name in capitals, as in
CONDCONV_MAX_IMAGE_PIXELS=400000000.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from condconv.errors import argument_error


class Limit(NamedTuple):
    """A whole number, and what it bounds, with its unit."""

    default: int
    bounds: str


LIMITS = {
    "max_image_bytes": Limit(2**28, "an image file, bytes"),
    "max_image_pixels": Limit(10**8, "a decoded image, pixels"),
    "max_idx_bytes": Limit(2**33, "the images of an IDX file, unpacked, bytes"),
    "max_text_bytes": Limit(2**24, "a file of settings, class names or results that is read as text, bytes"),
    "max_yaml_nodes": Limit(100_000, "a YAML file with its aliases written out, nodes"),
    "max_index_bytes": Limit(2**28, "the list of a set's shards (shards.json), bytes"),
    "max_shards": Limit(1_000_000, "shards of a set"),
    "max_classes": Limit(1_000_000, "classes of a set"),
    "max_annotation_bytes": Limit(2**30, "a file of annotations (COCO's JSON, a table of labels), bytes"),
    "max_objects": Limit(10_000, "objects in one image"),
    "max_shard_bytes": Limit(2**37, "a remote shard, bytes; one whose size is stated may have that size"),
    "fetch_timeout_s": Limit(60, "silence of a server, seconds"),
    "fetch_min_bytes_per_s": Limit(1000, "average speed of a server after `fetch_timeout_s`, at least, bytes/s"),
}


def limit(name: str) -> int:
    """The limit of that name: its setting, or its default. Raises `ArgumentError` for a setting that is no number."""
    variable = f"CONDCONV_{name.upper()}"
    given = os.environ.get(variable)
    if given is None:
        return LIMITS[name].default
    if not (given.isascii() and given.isdigit()) or len(given) > 18 or int(given) < 1:
        raise argument_error("environment", variable, given, "must be a whole number from 1", "or leave it unset")
    return int(given)
