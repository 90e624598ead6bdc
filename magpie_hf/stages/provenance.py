"""Columns with the provenance of a text: sampling, model and revision, template, seed, version of the stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ..engines.base import Generation
from ..sampling import SamplingParams
from ..stage import Context, Stage


_NUMBERS = dict.fromkeys("temperature top_p repetition_penalty".split(), "float64") | dict.fromkeys(
    "top_k max_tokens seed seeds grid_point sample_index stage_version".split(), "int64"
)
"""Types of the fields that are numbers; all others are texts."""
_SAMPLING = frozenset(field.name for field in dataclasses.fields(SamplingParams)) - {"seed"}


@dataclasses.dataclass(frozen=True)
class Provenance:
    """A struct column with the provenance of a text of the stage.

    `names`: its fields in their order, separated by spaces. Fields named as in `SamplingParams` are filled from the
    sampling, `…_generator`, `revision`, `template_hash` and `stage_version` from the run, `served_model` and
    `served_revision` from what the server reported; `seeds` is a list; all others are arguments of `values`.
    """

    names: str

    def feature(self) -> dict[str, object]:
        """Return the column's `datasets` feature."""
        from datasets import Value

        kinds = {name: Value(_NUMBERS.get(name.removeprefix("response_"), "string")) for name in self.names.split()}
        return {name: [kind] if name == "seeds" else kind for name, kind in kinds.items()}

    def values(
        self, stage: Stage, context: Context, sampling: SamplingParams, record: Mapping[str, object], **own: object
    ) -> dict[str, object]:
        """Return a row's values; `own`: the fields that are not filled from the sampling or the run.

        Sampling parameters that were not sent are null: the server's own values, which are unknown, applied.
        """
        served = record.get("served")
        known = {
            "revision": context.revision,
            "template_hash": context.template.hash,
            "stage_version": stage.version,
            "served_model": served.get("model") if isinstance(served, Mapping) else None,
            "served_revision": served.get("revision") if isinstance(served, Mapping) else None,
            **own,
        }
        omitted = record.get("omitted", ())
        unknown = set(omitted if isinstance(omitted, Sequence) else ())
        return {
            name: None if name in unknown else self._value(name, context, sampling, known)
            for name in self.names.split()
        }

    @staticmethod
    def _value(name: str, context: Context, sampling: SamplingParams, known: Mapping[str, object]) -> object:
        if name.endswith("_generator"):
            return context.model
        return getattr(sampling, name) if name in _SAMPLING else known[name]


def served(generation: Generation) -> dict[str, object]:
    """Return what a server reported of itself and which parameters it was not sent: the part of a record that is kept."""
    kept: dict[str, object] = {}
    if generation.served is not None:
        kept["served"] = {name: value for name, value in generation.served._asdict().items() if value is not None}
    if generation.omitted:
        kept["omitted"] = list(generation.omitted)
    return kept
