"""Settings for publishing: the `push` section of a recipe, and the arguments of `push_to_hub`."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ArgumentError, did_you_mean


EVERY_S = 300.0
"""Seconds between uploads of finished rows: 12 commits per hour, far below the limit of the Hub (about 100)."""
LEAST_EVERY_S = 0.05
_GATED = ("auto", "manual")


@dataclass(frozen=True)
class PushSettings:
    """Where and how rows are published.

    - `repo`: namespace/name, or a name in the user's own namespace.
    - `config`: the config of the final rows.
    - `private`, `gated` (auto, manual or false), `revision` (a branch), `create_pr`: as on the Hub.
    - `license`: a Hub license id, if the license of the model is not known.
    - `state`: whether finished rows are uploaded to `.magpie/` during the run, so that `resume_from_hub` can resume it.
    - `every_s`: seconds between these uploads.
    - `retry_timeout_s`: seconds to retry while the Hub cannot be reached (default: 600).
    """

    repo: str
    config: str = "default"
    private: bool | None = None
    gated: str | bool | None = None
    revision: str | None = None
    create_pr: bool = False
    license: str | None = None
    state: bool = True
    every_s: float = EVERY_S
    retry_timeout_s: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.gated, str) and self.gated not in _GATED:
            raise ArgumentError(f"Invalid value gated = {self.gated!r}.", hint=did_you_mean(self.gated, _GATED))
        if self.gated is True:
            raise ArgumentError("Invalid value gated = True.", hint='Give "auto" or "manual".', key="gated")
        if not self.every_s >= LEAST_EVERY_S:
            raise ArgumentError(
                f"Invalid value every_s = {self.every_s}.", hint="Give a number of seconds, e.g., 300."
            )
