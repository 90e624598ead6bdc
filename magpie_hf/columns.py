"""The register of columns: the annotation that writes each column, its content, and where it is shown.

Statistics, the HTML page, cards, agreement, the released order, conditions and error hints all read this register. A
column that is not listed here has its own entry: `Column.feature` stores the entry in the feature of the dataset, where
it stays through map, filter, Parquet files and the Hub. Rubrics do this by themselves.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from .errors import ArgumentError, DatasetError


if TYPE_CHECKING:
    from datasets import Features, Value

Kind: TypeAlias = Literal["text", "label", "number", "flag", "flags", "list", "struct", "error", "model", "rubric"]
"""The content of a column: "flags" is a struct of booleans, "list" a list of labels, "error" a code that says why an
annotation failed, "model" the name of the model that made the annotation, "rubric" the rubric with its version."""
DTYPES: dict[str, str] = {
    "text": "string", "label": "string", "error": "string", "model": "string", "number": "float64", "flag": "bool",
    "list": "string", "rubric": "string",
}  # fmt: skip
GENERATION_STAGES = ("instructions", "responses", "turns", "preference_responses", "preference")
"""Stages that generate the texts themselves: hints do not suggest them as annotations."""
NEED_SETTINGS = ("novelty", "decontamination")
"""Annotations that need the name of another dataset; reports do not suggest them, because a name alone is not enough."""
SHAREGPT = "conversations"
"""The column of conversations in ShareGPT format (from/value), in the Magpie releases and other datasets: read, and only written on request (`output.columns`).

Next to `messages` it misleads trainers: TRL's SFTTrainer uses it instead of `messages` and keeps the roles human and gpt.
"""
_KINDS: dict[str, Kind] = {kind: kind for kind in get_args(Kind) if kind in DTYPES}
_MARK = "magpie_hf:"
_MOST_LABELS = 1000


@dataclass(frozen=True)
class Column:
    """An entry of the register.

    - `kind`: the type of its content. `labels`: its labels in order, the lowest first; empty if they have no order.
    - `title`, `unit`: for charts and tables. `alias`: another name for it in conditions.
    - `writer`: the annotation or stage that writes it: a name, or `module:Class`.
    - `released`: its position among the columns of the released Magpie datasets, from 1.
    - `report`, `card`, `agreement`: whether statistics and reports, dataset cards, and `agreement` include it.
    """

    name: str
    kind: Kind = "text"
    labels: tuple[str, ...] = ()
    title: str = ""
    unit: str = ""
    alias: str = ""
    writer: str = ""
    released: int | None = None
    report: bool = False
    card: bool = False
    agreement: bool = False

    @property
    def heading(self) -> str:
        """The title, else a title made from the name of the column."""
        return self.title or self.name.replace("_", " ").capitalize()

    def feature(self, dtype: str | None = None, *, annotation: str | None = None) -> Value | list[Value]:
        """Return the `datasets` feature of the column, with the entry stored in it.

        `dtype`: e.g., "int64" for a number. `annotation`: the argument of `annotate` that adds the column, as Python
        code, for hints; by default the name of the writer.

        Raises:
            ArgumentError: the column is a struct, in which no entry can be stored.
        """
        from datasets import Value

        if dtype is None and self.kind not in DTYPES:
            raise ArgumentError(f'The column "{self.name}" is of kind "{self.kind}", so its entry cannot be stored.')
        if annotation or self.writer:
            _ANNOTATIONS[self.name] = annotation or json.dumps(self.writer)
        value = Value(dtype or DTYPES[self.kind], id=_MARK + json.dumps(self._stored(), ensure_ascii=False))
        return [value] if self.kind == "list" else value

    def _stored(self) -> dict[str, object]:
        """Return the part of the entry that the feature stores: the fields that differ from their defaults."""
        fields = (field for field in dataclasses.fields(self) if field.name not in ("name", "alias", "released"))
        given = {
            field.name: getattr(self, field.name) for field in fields if getattr(self, field.name) != field.default
        }
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}

    def fits(self, feature: object) -> bool:
        """Return whether a feature has the type of this entry; another dataset may use the same name differently."""
        if self.kind == "flags":
            return isinstance(feature, Mapping) and all(_dtype(inner) == "bool" for inner in feature.values())
        if self.kind == "struct":
            return True
        if self.kind == "list":
            return _dtype(_entries(feature)) in _STRINGS
        dtype = _dtype(feature)
        if self.kind == "number":
            return dtype == "null" or dtype.startswith(("int", "uint", "float"))
        return dtype == "null" or (dtype == "bool" if self.kind == "flag" else dtype in _STRINGS)


_STRINGS = ("string", "large_string", "string_view")
_ANNOTATIONS: dict[str, str] = {}
"""By column: the argument of `annotate` that adds it, for columns of rubrics and stages that the register does not list."""


def _dtype(feature: object) -> str:
    found = getattr(feature, "dtype", "")
    return found if isinstance(found, str) and type(feature).__name__ == "Value" else ""


def _entries(feature: object) -> object:
    """Return the feature of a list's entries, or None if it is not a list."""
    if isinstance(feature, list):
        return feature[0] if feature else None
    return getattr(feature, "feature", None)


def stored_column(name: str, feature: object) -> Column | None:
    """Return the entry that the feature of a column stores; None if it stores none or an invalid one."""
    inner = _entries(feature)
    given = getattr(feature if inner is None else inner, "id", None)
    if not isinstance(given, str) or not given.startswith(_MARK):
        return None
    try:
        raw = json.loads(given.removeprefix(_MARK))
    except (ValueError, RecursionError):
        return None
    return _checked(name, raw) if isinstance(raw, dict) else None


def types_without_entries(features: Features) -> object:
    """Return the types of columns for a comparison: equal whether or not, and whatever, entries they store."""

    def bare(given: object) -> object:
        if isinstance(given, list):
            return [bare(inner) for inner in given]
        if not isinstance(given, dict):
            return given
        is_feature = isinstance(given.get("_type"), str)  # else a struct, which may have a field "id"
        return {name: bare(inner) for name, inner in given.items() if not (is_feature and name == "id")}

    return bare(features.to_dict())


def _checked(name: str, raw: Mapping[str, object]) -> Column | None:
    """Return a stored entry as a `Column`, None if it is invalid: it may come from an untrusted dataset."""
    kind, labels = _KINDS.get(str(raw.get("kind", "text"))), raw.get("labels", [])
    if kind is None or not isinstance(labels, list) or len(labels) > _MOST_LABELS:
        return None
    if not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
        return None
    title, unit, writer = (str(raw.get(key, ""))[:200] for key in ("title", "unit", "writer"))
    report, card, agreement = (raw.get(key) is True for key in ("report", "card", "agreement"))
    return Column(name, kind, tuple(labels), title, unit, writer=writer, report=report, card=card, agreement=agreement)


def columns_of(features: Mapping[str, object]) -> dict[str, Column]:
    """Return the entries of the columns of a dataset: first in the order of the register, then columns of others.

    Columns without an entry, or with another type than their entry, are left out.
    """
    found: dict[str, Column] = {}
    for name in [
        *(name for name in REGISTER if name in features),
        *(name for name in features if name not in REGISTER),
    ]:
        column = stored_column(name, features[name]) or REGISTER.get(name)
        if column is not None and column.fits(features[name]):
            found[name] = column
    return found


def scales_of(features: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    """Return the ordered labels, the lowest first, of each column of a dataset that has ordered labels."""
    return {name: column.labels for name, column in columns_of(features).items() if column.labels}


def _written_by(writer: str, *columns: Column) -> tuple[Column, ...]:
    return tuple(dataclasses.replace(column, writer=writer) for column in columns)


def _label(name: str, title: str, labels: Sequence[str] = (), alias: str = "", released: int | None = None) -> Column:
    return Column(
        name, "label", tuple(labels), title, alias=alias, released=released, report=True, card=True, agreement=True
    )


def _number(
    name: str, title: str, unit: str = "", alias: str = "", released: int | None = None, card: bool = False
) -> Column:
    return Column(name, "number", (), title, unit, alias, released=released, report=True, card=card)


def _error(name: str) -> Column:
    return Column(name, "error", report=True)


_DISTANCE = "squared L2 distance of unit vectors, 0 to 4"
REGISTER: dict[str, Column] = {
    column.name: column
    for column in (
        *_written_by(
            "quality",
            # The scales are Magpie's: arXiv:2406.08464, section 3.2.
            _label("input_quality", "Quality of instructions", ("very poor", "poor", "average", "good", "excellent"),
                   "quality", 14),
            Column("quality_explanation", released=15),
            Column("quality_generator", "model", released=16),
            Column("quality_rubric", "rubric"),
            _error("quality_error"),
            Column("quality_raw"),
        ),
        *_written_by(
            "difficulty",
            _label("difficulty", "Difficulty", ("very easy", "easy", "medium", "hard", "very hard"), released=10),
            Column("intent", released=11),
            Column("knowledge", released=12),
            Column("difficulty_generator", "model", released=13),
            Column("difficulty_rubric", "rubric"),
            _error("difficulty_error"),
            Column("difficulty_raw"),
        ),
        *_written_by(
            "category",
            _label("task_category", "Task category", alias="category", released=7),
            Column("other_task_category", "list", title="Other task categories", released=8, report=True),
            Column("task_category_generator", "model", released=9),
            Column("category_rubric", "rubric"),
            _error("category_error"),
            Column("category_raw"),
        ),
        *_written_by("language", _label("language", "Language", released=25)),
        *_written_by(
            "safety",
            _label("safety", "Safety"),
            Column("safety_categories", "list", title="Hazard codes", report=True),
            Column("llama_guard_2", alias="guard", released=17),
            Column("llama_guard_3"),
            Column("safety_generator", "model"),
            _error("safety_error"),
        ),
        *_written_by("flags", Column("flags", "flags", title="Flags", report=True)),
        *_written_by(
            "lengths",
            _number("instruction_tokens", "Instruction length, tokens", "tokens", card=True),
            _number("response_tokens", "Response length, tokens", "tokens", card=True),
            _number("instruction_length", "Instruction length, characters", "characters", released=23),
            _number("response_length", "Response length, characters", "characters", released=24),
            _number("conversation_length", "Conversation length, characters", "characters"),
            _number("conversation_tokens", "Conversation length, tokens", "tokens"),
        ),
        *_written_by(
            "reward",
            _number("instruct_reward", "Reward", "reward", "reward", released=19, card=True),
            Column("reward_model", "model", released=18),
            Column("reward_truncated", "flag"),
        ),
        *_written_by(
            "reward_difference",
            _number("base_reward", "Reward of the base model's response", "reward"),
            _number("reward_difference", "Reward difference (r* - r_base)", "reward", card=True),
            Column("base_response"),
            Column("base_model", "model"),
            Column("base_finish_reason", "label"),
        ),
        *_written_by(
            "preference",
            _number("reward_margin", "Reward margin of chosen over rejected", "reward", card=True),
            Column("preference_rewards", "struct"),
            Column("preference_model", "model"),
            Column("chosen", "struct"),
            Column("rejected", "struct"),
            Column("chosen_reward", "number"),
            Column("rejected_reward", "number"),
        ),
        *_written_by(
            "neighbors",
            _number("min_neighbor_distance", "Distance to the nearest other instruction", _DISTANCE, released=20,
                    card=True),
            _number("repeat_count", "Near-duplicates of a row", "rows", released=21),
            Column("min_similar_uuid", released=22),
            Column("group_id"),
            Column("embedding", "struct"),
        ),
        *_written_by(
            "novelty",
            _number("existing_distance", "Distance to the nearest existing instruction", _DISTANCE),
            Column("existing_uuid"),
        ),
        *_written_by(
            "decontamination",
            Column("contaminated", "flag", title="Contaminated by a benchmark", report=True),
            Column("contamination", "struct"),
        ),
        *_written_by("language", _number("language_confidence", "Confidence of the language")),
        *_written_by(
            "instructions",
            Column("uuid", released=1),
            Column("model", "model", released=2),
            Column("gen_input_configs", "struct", released=3),
            Column("instruction", released=4),
            Column("raw_instruction"),
            Column("rejection_reason", "label", title="Reasons to reject a text", report=True, card=True),
            Column("system_prompt_key", "label", title="System prompt", report=True, card=True),
            Column("system_prompt"),
        ),
        *_written_by(
            "responses",
            Column("response_finish_reason", "label", title="How responses ended", report=True),
            Column("response", released=5),
            Column(SHAREGPT, "struct", released=6),
            Column("messages", "struct"),
            Column("reasoning"),
            Column("gen_response_configs", "struct"),
        ),
        *_written_by(
            "turns",
            Column("num_turns", "number"),
            Column("turns_end", "label"),
            Column("gen_turns_configs", "struct"),
        ),
        *_written_by(
            "preference_responses",
            Column("responses", "struct"),
            Column("responses_finish_reason", "struct"),
            Column("gen_responses_configs", "struct"),
        ),
    )
}  # fmt: skip
"""The columns of the package by name, in the order in which reports show them."""
OF_RESPONSE = (
    *(name for name, column in REGISTER.items() if column.writer in ("safety", "flags", "reward", "turns")),
    "reward_difference", "response_tokens", "response_length", "conversation_tokens", "conversation_length",
)  # fmt: skip
"""Columns that describe a response. They are outdated when a row gets a new one."""
OF_PAIRS = ("rewards_armorm", *(name for name, column in REGISTER.items() if column.writer == "preference"))
"""Columns that describe the pair chosen from `responses`, in the releases and here."""
SCALES: dict[str, tuple[str, ...]] = {name: column.labels for name, column in REGISTER.items() if column.labels}
"""Ordered labels of the columns in the register, the lowest first."""
ALIASES: dict[str, str] = {column.alias: name for name, column in REGISTER.items() if column.alias}
"""Other names of columns that conditions can use, and the columns that they mean."""
RELEASED: tuple[str, ...] = tuple(
    name for _, name in sorted((column.released, name) for name, column in REGISTER.items() if column.released)
)
"""The columns of the released Magpie datasets, in their order: as in the viewers of the Qwen2, Phi-3 and Llama-3.1
releases (raw and filtered)."""


def annotation_calls() -> dict[str, str]:
    """Return for each column the annotation that adds it, as Python code for `annotate`, if it is known."""
    own = {name: json.dumps(c.writer) for name, c in REGISTER.items() if c.writer not in GENERATION_STAGES}
    return {**_ANNOTATIONS, **own}


def missing_columns(
    readers: Mapping[str, Sequence[str]], present: Sequence[str], also: Sequence[str] = ()
) -> DatasetError:
    """Return one error for all columns that a dataset lacks.

    `readers`: each missing column with what reads it, e.g., 'the stage "quality"'. `present`: the columns of the
    dataset. `also`: other names that conditions can use for columns. The hint names the annotation that adds the
    column, or a similar name.
    """
    names = list(readers)
    who = list(dict.fromkeys(reader for given in readers.values() for reader in given))
    shown = listed([f'"{name}"' for name in names])
    reader = (
        f"{who[0][:1].upper()}{who[0][1:]}" if " " in who[0] else who[0]
    )  # a key, e.g., output.columns, stays as it is
    if len(who) > 1:
        each = [f'"{name}" (read by {listed(readers[name])})' for name in names]
        message = f"The dataset lacks the column{'s' if len(names) > 1 else ''} {listed(each)}."
    elif len(names) > 1:
        message = f"{reader} reads the columns {shown}, but the dataset does not have them."
    else:
        message = f"{reader} reads the column {shown}, but the dataset does not have it."
    known = annotation_calls()
    written = list(dict.fromkeys(known[name] for name in names if name in known))
    unknown = [name for name in names if name not in known]
    hints = [_similar(name, [*present, *also], f' for "{name}"' if len(names) > 1 else "") for name in unknown]
    if written:
        hints.append(
            f"Run magpie_hf.annotate(ds, [{', '.join(written)}]) first. In a recipe, put that stage before this one."
        )
    else:
        hints.append(f"Columns: {', '.join(sorted(present)[:40]) or 'none'}.")
    return DatasetError(
        message,
        hint=" ".join(hint for hint in hints if hint),
        column=names[0],
        columns=names,
        annotation=written[0].strip('"') if written else None,
    )


def _similar(name: str, known: Sequence[str], which: str) -> str:
    # No annotation adds instruction or response, so names such as "base_response" are not suggested for them.
    others: Iterable[str] = () if name in ("instruction", "response") else annotation_calls()
    close = difflib.get_close_matches(name, sorted({*known, *others}), n=1, cutoff=0.6)
    return f'Did you mean "{close[0]}"{which}?' if close else ""


def listed(names: Sequence[str]) -> str:
    """Join names for a sentence: "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
