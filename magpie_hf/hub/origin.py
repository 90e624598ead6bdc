"""The origin of a config's texts: synthesized with the Magpie method, or taken from another dataset.

The origin is read from the rows, which name the models that generated them, and from the facts of the run. A card only
states what these sources show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

from ..columns import columns_of, listed
from ..storage.state import JsonObject, RunFacts
from .manifest import public_name
from .markdown import line


if TYPE_CHECKING:
    from datasets import Dataset

METHOD = "the Magpie method ([arXiv:2406.08464](https://arxiv.org/abs/2406.08464))"
_WRITERS = {  # the column, and its field, that name the model that wrote a text of the row
    "instructions": ("gen_input_configs", "input_generator"),
    "responses": ("gen_response_configs", "output_generator"),
}
_FURTHER_WRITERS = {  # as _WRITERS, for texts other than an instruction and its response
    "further turns": ("gen_turns_configs", "turns_generator"),
    "preference responses": ("gen_responses_configs", "output_generator"),
}
TEXT_WRITERS = (_WRITERS["responses"], *_FURTHER_WRITERS.values())
"""Columns, and their fields, that name the models that wrote other texts than instructions (those are in `model`)."""
_TEXT_STAGES = ("instructions", "responses", "turns", "preference_responses")
_OTHER_STAGES = ("select", "subset")


class Generated(TypedDict):
    """How many rows have a kind of generated text, and the models that wrote it."""

    rows: int
    models: list[str]


class Origin(TypedDict):
    """The origin of rows.

    `is_new`: the run synthesized the rows, even if it has no rows. `synthesized`: number of instructions synthesized with
    the method. `answered`: number of generated responses, or of those that name their model. `instructors`,
    `responders`: the models, if the rows name them. `generated`: other generated texts. `annotations`: the stages or
    annotations that added columns. `source`: the dataset that the rows come from, "" if unknown.
    """

    rows: int
    is_new: bool
    synthesized: int
    answered: int
    responders: list[str]
    instructors: list[str]
    generated: dict[str, Generated]
    annotations: list[str]
    source: str


def origin_of(recipe: JsonObject, run: RunFacts, dataset: Dataset) -> Origin:
    """Return the origin of a dataset's rows; `recipe`: the public recipe of the run (without private settings)."""
    is_new = bool(recipe) and not recipe.get("dataset")
    stages = [state.name for state in run.stages.values()]
    written = {what: _written(dataset, *where) for what, where in _WRITERS.items()}
    further = {what: _written(dataset, *where) for what, where in _FURTHER_WRITERS.items()}
    given = recipe.get("dataset")
    source = given.get("path") if isinstance(given, Mapping) else given
    annotated = (
        [name for name in stages if name not in (*_TEXT_STAGES, *_OTHER_STAGES)] if stages else _annotations(dataset)
    )
    is_answered = is_new and "responses" in stages
    return {
        "rows": len(dataset),
        "is_new": is_new,
        "synthesized": len(dataset) if is_new else written["instructions"][0],
        "answered": len(dataset) if is_answered else written["responses"][0],
        "responders": [public_name(name) for name in written["responses"][1]],
        "instructors": [public_name(name) for name in written["instructions"][1]],
        "generated": {
            what: {"rows": count, "models": [public_name(name) for name in models]}
            for what, (count, models) in further.items()
            if count
        },
        "annotations": list(dict.fromkeys(annotated)),
        "source": public_name(str(source)) if source else "",
    }


def _annotations(dataset: Dataset) -> list[str]:
    """Return the annotations whose model is named in the rows, for rows without a run."""
    known = columns_of(dataset.features).values()
    return [column.writer for column in known if column.kind == "model" and column.writer not in _TEXT_STAGES]


def _written(dataset: Dataset, column: str, field: str) -> tuple[int, list[str]]:
    """Return how many rows name the model that wrote them, and the models."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column not in dataset.column_names:
        return 0, []
    count, found = 0, dict[str, None]()
    for table in dataset.select_columns([column]).with_format("arrow").iter(batch_size=20_000):
        values = table[column].combine_chunks()
        if not pa.types.is_struct(values.type) or values.type.get_field_index(field) < 0:
            return 0, []
        names = pc.struct_field(values, field)
        if not (pa.types.is_string(names.type) or pa.types.is_large_string(names.type)):
            return 0, []
        count += len(names) - names.null_count
        found |= dict.fromkeys(str(name) for name in names.unique().to_pylist() if name)
    return count, list(found)


def is_synthetic(origin: Origin) -> bool:
    """Return whether some of the texts are known to be generated by a model."""
    return is_magpie(origin) or bool(origin["answered"] or origin["generated"])


def is_magpie(origin: Origin) -> bool:
    """Return whether instructions were synthesized with the method, even if no row was accepted."""
    return bool(origin["synthesized"] or origin["is_new"])


def cites_magpie(origin: Origin) -> bool:
    """Return whether a card cites the paper: the rows were made with its method or annotated with its rubrics."""
    return is_magpie(origin) or bool(set(origin["annotations"]) & {"quality", "difficulty", "category", "judge"})


def summary(origins: Sequence[Origin], models: Sequence[str], rows: int) -> str:
    """Return a one-sentence summary of a dataset, for cards without a description."""
    if all(origin["synthesized"] == origin["rows"] > 0 for origin in origins):
        return f"{rows:,} conversations synthesized by {listed(models) or 'a language model'} alone."
    sources = dict.fromkeys(origin["source"] or "an existing dataset" for origin in origins)
    annotations = dict.fromkeys(name for origin in origins for name in origin["annotations"])
    annotated = f", annotated with {listed(list(annotations))}" if annotations else ""
    return f"{rows:,} {'row' if rows == 1 else 'rows'} of {listed(list(sources))}{annotated}."


def sentences(origin: Origin) -> str:
    """Return how the texts were made, as Markdown."""
    rows, synthesized, answered = origin["rows"], origin["synthesized"], origin["answered"]
    source = line(origin["source"] or "an existing dataset")
    said = []
    if is_magpie(origin):
        same = answered == synthesized and set(origin["responders"]) <= set(origin["instructors"])
        end = "wrote that message, and answered it." if same else "and wrote that message."
        which = "Instructions" if synthesized == rows else f"{synthesized:,} of {rows:,} instructions"
        said.append(
            f"{which} were synthesized with {METHOD}: the model was sent its chat template up to where a user's message "
            f"would start, {end}"
        )
        answered = 0 if same else answered
    if synthesized < rows:
        said.append(f"{'The other instructions' if synthesized else 'The instructions'} come from {source}.")
    if answered:
        which = "Responses" if answered == rows else f"{answered:,} of {rows:,} responses"
        by = listed([line(name) for name in origin["responders"]])
        said.append(f"{which} were generated{' by ' + by if by else ''}.")
    # Of synthesized rows, the sentence above already names the model.
    for what, found in origin["generated"].items() if synthesized < rows else ():
        which = what.capitalize() + ("" if found["rows"] == rows else f" of {found['rows']:,} of {rows:,} rows")
        said.append(f"{which} were generated by {listed([line(name) for name in found['models']])}.")
    if origin["annotations"] and synthesized < rows:
        said.append(f"The rows were annotated with {listed([line(name) for name in origin['annotations']])}.")
    return " ".join(said)
