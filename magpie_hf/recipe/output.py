"""The recipe key `output`: where the dataset is written, its format, its columns, and its test split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..columns import missing_columns
from ..errors import ArgumentError, MagpieError, quoted
from ..hub.layouts import LAYOUTS, RELEASED, Layout, layout_of
from ..hub.names import REJECTED
from ..stage import Stage
from ..stages.instructions import Instructions
from ..stages.responses import Responses
from ..storage.state import JsonObject
from .parts import choice_of, section_of
from .source import Source, typed_value


OUTPUT_KEYS = ("path", "format", "report", "rejected", "columns", "test_size")
FORMATS = ("parquet", "arrow", "none")


def output_of(raw: JsonObject, name: str, stages: Sequence[Stage], source: Source) -> JsonObject:
    """Validate the section `output` of a recipe; `raw`: all its sections, `name`: its name."""
    given = raw.get("output", {})
    section = {"path": given} if isinstance(given, str) else section_of(given, OUTPUT_KEYS, "output", source)
    choice_of(section.get("format", "parquet"), FORMATS, "output.format", source)
    typed_value(section.get("path"), str | None, "output.path", source)
    typed_value(section.get("report"), bool | None, "output.report", source)
    share = typed_value(section.get("test_size"), float | None, "output.test_size", source)
    if share is not None and not 0 < share < 1:
        raise source.error(
            "output.test_size", f"Invalid value {share:g}.", "Give a share between 0 and 1, e.g., 0.02."
        )
    if typed_value(section.get("rejected"), bool | None, "output.rejected", source):
        _check_rejected(stages, raw.get("push"), source)
    try:
        columns_of(section, name)
    except ArgumentError as error:
        raise source.error("output.columns", error.message, error.hint) from None
    return section


def _check_rejected(stages: Sequence[Stage], push: object, source: Source) -> None:
    """Raise RecipeError if the run has no rejected samples, or if another config has their name."""
    if not isinstance(stages[0], Instructions):
        raise source.error("output.rejected", "only the stage `instructions` rejects samples.", "Remove this key.")
    pushed = push.get("config") if isinstance(push, Mapping) else None
    if REJECTED in (pushed, *(getattr(stage, "config", None) for stage in stages)):
        raise source.error(
            "output.rejected", f"{quoted(REJECTED)} is also the name of another config.", "Rename that config."
        )


def columns_of(output: Mapping[str, object], name: str) -> Layout | tuple[str, ...] | None:
    """Return the columns that `output.columns` asks for; None for all columns. `name`: of the recipe.

    Raises:
        ArgumentError: the value is invalid, or the columns of the recipe's release are not known.
    """
    given = output.get("columns")
    if given is None:
        return None
    if isinstance(given, str):
        return layout_of(given, name)
    names = tuple(given) if isinstance(given, Sequence) else ()
    if not names or not all(isinstance(column, str) for column in names) or len({*names}) < len(names):
        known = ", ".join([RELEASED, *LAYOUTS])
        raise ArgumentError(
            f"{quoted(given)} is neither a list of different column names nor one of {known}.",
            hint="E.g., columns: released, or columns: [uuid, messages].",
        )
    return names


def check_output(
    columns: Layout | tuple[str, ...] | None, stages: Sequence[Stage], features: Mapping[str, object]
) -> None:
    """Raise if the dataset that these stages make lacks a column that `output.columns` asks for.

    `features`: of the rows before the first stage.

    Raises:
        ArgumentError: columns of a release are missing; the hint names the stages that write them.
        DatasetError: columns of a list of names are missing.
    """
    known = dict(features)
    for stage in stages:
        known = {name: known[name] for name in known if name not in stage.drops} | stage.features()
    if isinstance(columns, Layout):
        columns.check(known)
        for stage in stages:
            if isinstance(stage, Responses):
                columns.check_temperature(stage.sampling.temperature)
    elif columns is not None and not {*columns} <= {*known}:
        absent = {name: ["output.columns"] for name in columns if name not in known}
        raise missing_columns(absent, list(known))


def check_output_of(output: Mapping[str, object], name: str, stages: Sequence[Stage], source: Source) -> None:
    """Raise RecipeError if the stages of a recipe without a dataset lack a column that `output.columns` asks for."""
    try:
        check_output(columns_of(output, name), stages, {})
    except MagpieError as error:
        raise source.error("output.columns", error.message, error.hint) from None
