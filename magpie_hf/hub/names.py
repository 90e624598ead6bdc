"""Names of configs and splits."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import ArgumentError, quoted


_CONFIG = re.compile(r"[\w.-]{1,80}")
_SPLIT = re.compile(r"\w+(?:\.\w+)*")
_RESERVED = ("data", ".", "..")
RUN_FILES = tuple("stages data dataset parquet run.json run.json.bak pins.json lock report.html README.md".split())
"""Names of files and folders in a run directory; a subset cannot use these names."""
REJECTED = "rejected"
"""Name of the config with the rejected samples of a run."""


def check_names(config_name: str, splits: Sequence[str] = ("train",)) -> None:
    """Raise ArgumentError for an invalid name of a config or split."""
    if not _CONFIG.fullmatch(config_name) or config_name in _RESERVED or config_name.startswith("."):
        raise ArgumentError(
            f"Invalid config name {quoted(config_name)}.",
            hint='Use letters, digits, ".", "_" and "-", e.g., "raw"; "data" is the folder of the default config.',
            key="config_name",
        )
    for split in splits:
        if not _SPLIT.fullmatch(split):
            raise ArgumentError(
                f"Invalid split name {quoted(split)}.", hint='Use letters, digits and "_", e.g., "train".', key="split"
            )


def check_subset(config: str) -> None:
    """Raise ArgumentError for an invalid name of a subset."""
    check_names(config)
    if config in RUN_FILES or config == "default":
        raise ArgumentError(
            f"Invalid name of a subset: {config!r}.", hint='Use, e.g., "raw" or "filtered".', key="config"
        )
