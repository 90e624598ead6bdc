"""Selections as data, and the named selections of the paper and the dataset cards."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..columns import SCALES, missing_columns, scales_of
from ..errors import ArgumentError, did_you_mean, quoted
from ..storage.state import JsonObject
from .expressions import parse
from .tree import Scales, resolve_name


TAU_1 = -12.0
"""Minimum reward: Magpie, arXiv:2406.08464, Table 5."""
TAU_1_CARDS = -10.0
"""Minimum reward in the dataset cards and the authors' notebook."""
TAU_2 = 0.0
"""Minimum reward difference: Magpie, arXiv:2406.08464, Table 5."""
SHUFFLE_SEED = 42
"""The seed with which the authors' notebook shuffles a filtered dataset."""


# Columns of lengths that are not named after the column that is measured.
_LENGTHS_OF = {"conversation_length": "messages"}


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


@dataclass(frozen=True)
class Selection:
    """The conditions of a selection.

    - `where`: an expression (`magpie_hf.selection.expressions`), or "" for all rows.
    - `one_per_group`: keep one row per `group_id`: that with the smallest uuid, or with the highest value (label or number)
      in a column if its name is given.
    - `quotas`: column to {label: number of rows, or share of the remaining rows if below 1}; the longest of each label,
      or the shortest if `shortest` is given.
    - `longest`, `shortest`: keep this many rows, those with the largest or smallest values in `length_column`; only one of
      them. Rows without a length are kept last.
    - `length_column`: a column of numbers, texts (their characters) or messages (the characters of all of them). If
      "X_length" is missing, the lengths of the column X are used; of `messages`, if "conversation_length" is missing.
    - `sample`: keep this many rows, or a share below 1, drawn by `seed`. `shuffle`: seed for shuffling the result.
    - `source`: the publication of the selection.
    """

    name: str = "selection"
    where: str = ""
    one_per_group: bool | str = False
    quotas: dict[str, dict[str, float]] = field(default_factory=dict)
    longest: int | None = None
    shortest: int | None = None
    length_column: str = "response_length"
    sample: float | None = None
    seed: int = 0
    shuffle: int | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if self.where:
            parse(self.where)
        if isinstance(self.one_per_group, str):
            object.__setattr__(self, "one_per_group", resolve_name(self.one_per_group))
        self._check_quotas()
        object.__setattr__(self, "quotas", {resolve_name(column): given for column, given in self.quotas.items()})
        for name in ("longest", "shortest", "sample"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and value > 0):
                raise ArgumentError(f"Invalid {name} = {value!r}.", hint="Give a number above 0.", key=name)
        if self.longest is not None and self.shortest is not None:
            raise ArgumentError("Both longest and shortest are given.", hint="Give one of them.", key="shortest")
        if not isinstance(self.length_column, str) or not self.length_column:
            found = f"Invalid length_column = {self.length_column!r}."
            raise ArgumentError(found, hint='Give the name of a column, e.g., "response_length".', key="length_column")
        for name in ("seed", "shuffle"):
            value = getattr(self, name)
            whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
            if value is not None and not (whole and value >= 0):
                raise ArgumentError(f"Invalid {name} = {value!r}.", hint="Give an integer, 0 or more.", key=name)

    def _check_quotas(self) -> None:
        columns = self.quotas if isinstance(self.quotas, Mapping) else {}
        if columns is not self.quotas or not all(isinstance(shares, Mapping) for shares in columns.values()):
            raise ArgumentError(
                f"Invalid quotas = {quoted(self.quotas, 60)}.",
                hint='Give numbers of rows by column and label, e.g., {"difficulty": {"easy": 1000, "hard": 500}}.',
                key="quotas",
            )
        for column, shares in columns.items():
            if not all(_is_number(value) and value >= 0 for value in shares.values()):
                raise ArgumentError(
                    f"Invalid quotas of {quoted(column)}: not all of them are numbers.",
                    hint="Give 0 or more for each label.",
                    key="quotas",
                )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads, if only columns of the register have ordered labels."""
        return self.columns_on(SCALES)

    @property
    def by_length(self) -> int | None:
        """How many rows `longest` or `shortest` keeps, None if neither is given."""
        return self.shortest if self.longest is None else self.longest

    def columns_on(self, scales: Scales) -> tuple[str, ...]:
        """Return the columns that it reads; `scales` decides which names are labels without quotes."""
        found = set(parse(self.where).columns_on(scales)) if self.where else set()
        if self.one_per_group:
            found |= {"group_id", "uuid"}
        if isinstance(self.one_per_group, str):
            found.add(self.one_per_group)
        found |= self.quotas.keys()
        if self.by_length is not None or self.quotas:
            found.add(length_source(self.length_column))
        return tuple(sorted(found))

    def check(self, features: Mapping[str, object], reader: str | None = None) -> None:
        """Raise for what cannot be applied to a dataset with these features; `reader`: its name in error messages.

        Raises:
            DatasetError: a column is missing; says which annotation writes it.
            ArgumentError: a label is not on its scale, or types do not match.
        """
        if self.where:
            parse(self.where).check(features)
        computed = length_source(self.length_column) if self.length_column in features else ""
        needed = [name for name in self.columns_on(scales_of(features)) if name != computed]
        missing = [name for name in needed if name not in features]
        if missing:
            reader = reader or f"the selection {quoted(self.name)}"
            raise missing_columns({name: [reader] for name in missing}, list(features))


# In `source`, "card" is what a dataset card states, and "inferred" what is concluded from other cards and the notebook:
# the cards of Air, Pro-MT and Llama 3.1 have lines that are not known to us, at the place where all others state them.
_PAPER = "paper, arXiv:2406.08464, Table 5"
# The paper's condition on duplicates. As our distance of equal texts is 0, it drops all copies of a text; one_per_group
# keeps one of them, as the authors' code and the cards do.
_UNIQUE = "min_neighbor_distance > 0"
_COMPLETE = "not endswith(instruction, ':')"
_CARD = f"reward >= {TAU_1_CARDS} and {_COMPLETE}"

SELECTIONS: dict[str, Selection] = {
    selection.name: selection
    for selection in (
        Selection(
            "air-filter",
            f"quality >= good and difficulty >= medium and {_UNIQUE} and reward_difference > {TAU_2}",
            longest=300_000,
            source=f"{_PAPER}, Air, Filter (the dataset is made by air-300k-card)",
        ),
        Selection(
            "pro-filter",
            f"quality >= average and {_UNIQUE} and reward > {TAU_1}",
            longest=300_000,
            source=f"{_PAPER}, Pro, Filter",
        ),
        Selection(
            "pro-filter2",
            f"quality >= good and difficulty >= easy and {_UNIQUE} and reward > {TAU_1}",
            longest=300_000,
            source=f"{_PAPER}, Pro, Filter2",
        ),
        Selection("pro-filter3", f"{_UNIQUE} and reward > {TAU_1}", longest=300_000, source=f"{_PAPER}, Pro, Filter3"),
        Selection(
            "pro-filter4",
            f"quality >= good and difficulty >= easy and {_UNIQUE} and reward_difference > {TAU_2}",
            longest=300_000,
            source=f"{_PAPER}, Pro, Filter4",
        ),
        Selection(
            "pro-filter5",
            f"quality >= good and difficulty >= easy and {_UNIQUE} and reward > {TAU_1}",
            source=f"{_PAPER}, Pro, Filter5 (338K rows came out)",
        ),
        Selection(
            "pro-filter6",
            f"difficulty >= easy and {_UNIQUE} and reward > {TAU_1}",
            quotas={"difficulty": {"easy": 100_000, "> easy": 100_000}},
            source=f"{_PAPER}, Pro, Filter6 (50 % easy, 50 % harder: the longest 200K)",
        ),
        Selection(
            "pro-300k-card",
            f"quality >= average and {_CARD}",
            one_per_group=True,
            longest=300_000,
            shuffle=SHUFFLE_SEED,
            source="card of Magpie-Pro-300K-Filtered; inferred: the shuffle, as in the authors' notebook",
        ),
        Selection(
            "air-300k-card",
            f"quality >= good and difficulty >= medium and reward_difference > {TAU_2} and {_COMPLETE}",
            one_per_group=True,
            longest=300_000,
            shuffle=SHUFFLE_SEED,
            source="card of Magpie-Air-300K-Filtered (quality, difficulty, longest); paper, Table 5 (reward difference); "
            "inferred: ':' and one row per group, as on the Pro card, and the shuffle, as in the authors' notebook",
        ),
        Selection(
            "notebook-filter",
            f"quality in ['good', 'excellent'] and reward > {TAU_1_CARDS} and {_COMPLETE}",
            one_per_group=True,
            longest=300_000,
            shuffle=SHUFFLE_SEED,
            source="script: the authors' filter notebook, which made Magpie-Qwen2-Pro-300K-Filtered",
        ),
        Selection(
            "pro-mt",
            f"quality >= good and difficulty >= easy and {_CARD}",
            one_per_group=True,
            longest=300_000,
            source="card of Magpie-Pro-MT-300K (quality, difficulty); "
            "inferred: reward, ':', one row per group and longest, as on the Pro card",
        ),
        Selection(
            "chinese-200k",
            f"quality >= average and language == 'ZH' and {_CARD}",
            one_per_group=True,
            longest=200_000,
            source="card of Magpie-Qwen2-Pro-200K-Chinese",
        ),
        Selection(
            "english-200k",
            f"quality >= average and language == 'EN' and {_CARD}",
            one_per_group=True,
            longest=200_000,
            source="inferred: as the card of Magpie-Qwen2-Pro-200K-Chinese, for English",
        ),
        Selection(
            "llama-3.1-500k",
            f"quality >= good and {_CARD} and (lines(instruction) < 5 or category == 'Coding & Debugging')",
            one_per_group=True,
            longest=500_000,
            source="card of Magpie-Llama-3.1-Pro-MT-300K-Filtered (quality, lines, longest), whose first turns are those "
            "of 500K-Filtered; inferred: reward, ':' and one row per group, as on the Pro card",
        ),
        Selection(
            "reasoning-v2",
            f"contains(raw_instruction, '## Step 1') and contains(response, '## Step 1') and "
            f"reward > {TAU_1_CARDS} and quality >= good and {_COMPLETE}",
            source="script: issue 38 of the authors' repository",
        ),
    )
}


def named_selection(name: str) -> Selection:
    """Return a selection by its name.

    Raises:
        ArgumentError: the name is unknown.
    """
    if name not in SELECTIONS:
        raise ArgumentError(f"Unknown selection {quoted(name)}.", hint=did_you_mean(name, SELECTIONS))
    return SELECTIONS[name]


def as_selection(given: str | Mapping[str, object] | Selection, **changes: object) -> Selection:
    """Return a selection from a name, an expression, or a mapping with the fields of `Selection`; `changes` override it.

    A text is the name of a selection if it is one of `SELECTIONS`, or can only be one (words joined by hyphens); any
    other text is an expression.

    Raises:
        ArgumentError: it is invalid.
    """
    known = {f.name for f in dataclasses.fields(Selection)}
    if not isinstance(given, (str, Mapping, Selection)):
        raise ArgumentError(
            f"Invalid selection {quoted(given, 60)}.",
            hint="Give a name, an expression, or a mapping with the fields of `Selection`.",
        )
    if isinstance(given, Selection):
        base = given
    elif isinstance(given, Mapping):
        base, changes = Selection(), {**given, **changes}
    elif given in SELECTIONS or _is_misspelled_name(given):
        base = named_selection(given)
    else:
        base = Selection(where=given)
    for key in changes:
        if key not in known:
            raise ArgumentError(
                f"Unknown setting of a selection: {quoted(key)}.", hint=did_you_mean(key, known), key=key
            )
    return with_changes(base, changes)


def with_changes(base: Selection, changes: Mapping[str, object]) -> Selection:
    """Return a selection with other fields; `shortest` replaces its `longest`, and the other way round."""
    fields: JsonObject = dict(changes)
    for one, other in (("longest", "shortest"), ("shortest", "longest")):
        if fields.get(one) is not None and other not in fields:
            fields[other] = None
    return dataclasses.replace(base, **fields)


def _is_misspelled_name(given: str) -> bool:
    """Tell whether a text is not a possible condition but looks like a name, e.g., "air-filtr"."""
    return "-" in given and all(c.isalnum() or c in "-." for c in given)


def length_source(name: str) -> str:
    """Return the column of texts or messages whose lengths a column holds; the column itself for all others."""
    return _LENGTHS_OF.get(name) or (name.removesuffix("_length") if name.endswith("_length") else name)
