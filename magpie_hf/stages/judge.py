"""`quality`, `difficulty`, `category`, and your own rubrics: a judge reads the row and fills in one JSON object.

Source of scales, tags and columns: Magpie, arXiv:2406.08464, section 3.2 and appendix; greedy, as in its scripts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..engines.base import Generation, Prompt
from ..errors import ArgumentError
from ..judging.answers import Reading, read_answer
from ..judging.rubric import (
    BUILT_IN,
    SETS,
    Rubric,
    is_built_in,
    joined_schema,
    load_rubric,
    rubrics_of_set,
    user_message,
)
from ..messages import user
from ..sampling import SamplingParams, sample_seed, seed_base
from ..stage import (
    CODES,
    OK,
    ROW_INDEX,
    Ask,
    Context,
    Outcome,
    Record,
    Row,
    RowFunction,
    RowStage,
    Steps,
    Values,
    failed,
    resolved,
)
from ..templates.template import ChatTemplate
from .provenance import served
from .responses import with_stops


GREEDY = SamplingParams(temperature=0.0, max_tokens=1024)
"""Temperature and length of the reference's annotation script."""
RETRY_TEMPERATURE = 0.7
"""Our choice: high enough to get another reply than the one that could not be parsed, low enough to stay on task."""


@dataclass(frozen=True)
class Judge(RowStage):
    """Asks a judge to fill in one or more rubrics at once.

    - `rubrics`: names of built-in rubrics, YAML files, or mappings with `name`, `task`, `schema`, …; or the name of a set of
      rubrics: "default", or "reference", whose labels mean what those of the Magpie releases mean.
    - `sampling`: greedy by default; `retry_temperature`: of the retry after a reply that cannot be parsed.
    - `structured`: whether engines that support it constrain the reply to the JSON schema. Rubrics with a prefill or
      another parser than JSON are never constrained.

    If both replies cannot be parsed, the columns are null, and `<rubric>_error` and `<rubric>_raw` are set.
    """

    name: ClassVar[str] = "judge"
    version: ClassVar[int] = 1
    role: ClassVar[str] = "judge"

    rubrics: tuple[Any, ...] = BUILT_IN
    sampling: SamplingParams = GREEDY
    retry_temperature: float = RETRY_TEMPERATURE
    structured: bool = True

    def __post_init__(self) -> None:
        if not self.rubrics:
            raise ArgumentError(
                "A judge needs a rubric.", hint=f"E.g., rubrics: [{', '.join(BUILT_IN)}].", key="rubrics"
            )
        if self.name in (*BUILT_IN, "judge") and len(self.rubrics) == 1 and self.rubrics[0] in SETS:
            own = BUILT_IN if self.name == "judge" else (self.name,)
            object.__setattr__(self, "rubrics", rubrics_of_set(self.rubrics[0], own))
        joined_schema(self.loaded)

    @property
    def loaded(self) -> tuple[Rubric, ...]:
        """The rubrics."""
        return tuple(load_rubric(given) for given in self.rubrics)

    @property
    def is_built_in(self) -> bool:
        """Whether all rubrics are built in."""
        return all(map(is_built_in, self.rubrics))

    @property
    def can_be_joined(self) -> bool:
        """Whether the rubrics can share a request with other built-in rubrics."""
        return self.is_built_in and not any(rubric.has_own_request for rubric in self.loaded)

    @property
    def label(self) -> str:
        """The name of the stage, with the names of rubrics that are not built in."""
        return self.name if self.is_built_in else "-".join([self.name, *(rubric.name for rubric in self.loaded)])

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns that the rubrics read."""
        return tuple(dict.fromkeys(column for rubric in self.loaded for column in rubric.reads))

    def derived(self) -> Values:
        """Return the content of the rubrics."""
        return {"rubrics": [rubric.to_dict() for rubric in self.loaded]}

    def features(self) -> Values:
        """Return the columns of each rubric, the judge, and parse errors."""
        return {name: feature for rubric in self.loaded for name, feature in rubric.features().items()}

    def check_template(self, template: ChatTemplate) -> None:
        """Raise TemplateError if the template rejects a single user message, or has no place for the prefill."""
        template.response([user("Hello")], prefill=self.loaded[0].prefill)

    def bind(self, context: Context) -> RowFunction:
        """Return the function for a row: one request, and a second one if the reply cannot be parsed."""
        template, rubrics, needs = context.template, self.loaded, self.needs
        prefill = rubrics[0].prefill
        sampling = self._sampling(context)
        names = "+".join(rubric.name for rubric in rubrics)
        bases = [seed_base(context.seed, "judge", names, attempt) for attempt in (1, 2)]

        def prompt(row: Row) -> Prompt:
            return template.response([user(user_message(rubrics, row))], prefill=prefill)

        def steps(row: Row) -> Steps:
            if any(row[column] is None for column in needs):
                return Outcome({"error": "nothing to judge"}, "empty")
            asked = prompt(row)
            first = sampling if sampling.is_greedy else sampling.with_seed(sample_seed(bases[0], row[ROW_INDEX]))
            generation = yield Ask(asked, first)
            if generation.failure is not None:
                return failed(generation)
            readings, text = _read(template, generation, rubrics)
            if any(reading.code != OK for reading in readings.values()):
                again = self._retry(sampling, generation).with_seed(sample_seed(bases[1], row[ROW_INDEX]))
                generation = yield Ask(asked, again)
                if generation.failure is not None and generation.failure.transient:
                    return failed(generation)
                if generation.failure is None:
                    second, text = _read(template, generation, rubrics)
                    readings = {name: _better(reading, second[name]) for name, reading in readings.items()}
            return _outcome(readings, text, generation)

        return steps

    def _sampling(self, context: Context) -> SamplingParams:
        """Return the sampling with all stops and, where the engine and the rubrics allow it, the JSON schema."""
        rubrics, capabilities = self.loaded, context.capabilities
        stops = (*rubrics[0].stop, *self.sampling.stop)
        sampling = with_stops(dataclasses.replace(self.sampling, stop=stops), context.template)
        constrained = self.structured and all(rubric.allows_schema for rubric in rubrics)
        if constrained and capabilities is not None and capabilities.json_schema:
            schema = json.dumps(joined_schema(rubrics), ensure_ascii=False)
            sampling = dataclasses.replace(sampling, json_schema=schema)
        return sampling

    def _retry(self, sampling: SamplingParams, generation: Generation) -> SamplingParams:
        """Return the sampling of the retry: a higher temperature, and more tokens if the first reply was cut off."""
        longer = 2 if generation.finish_reason == "length" else 1
        temperature = max(self.retry_temperature, sampling.temperature)
        return dataclasses.replace(sampling, temperature=temperature, max_tokens=sampling.max_tokens * longer)

    def columns(self, context: Context, row: Row, record: Record, code: str) -> Values:
        """Return the columns of the rubrics."""
        values, errors = record.get("values", {}), record.get("errors", {})
        shown = record.get("error", code) if not values else None
        out: Values = {}
        for rubric in self.loaded:
            out |= {rubric.column(key): values.get(key, [] if kind["type"] == "array" and values else None)
                    for key, kind in rubric.properties.items()}  # fmt: skip
            error = errors.get(rubric.name, shown)
            out[rubric.judge_column] = context.model
            out[f"{rubric.name}_rubric"] = rubric.tag
            out[f"{rubric.name}_error"] = error
            out[f"{rubric.name}_raw"] = record.get("raw") if error else None
        return out


@dataclass(frozen=True)
class Quality(Judge):
    """Rates the instruction from "very poor" to "excellent": `input_quality`, `quality_explanation`."""

    name: ClassVar[str] = "quality"
    rubrics: tuple[Any, ...] = ("quality",)


@dataclass(frozen=True)
class Difficulty(Judge):
    """Describes intent and knowledge, and rates from "very easy" to "very hard": `intent`, `knowledge`, `difficulty`."""

    name: ClassVar[str] = "difficulty"
    rubrics: tuple[Any, ...] = ("difficulty",)


@dataclass(frozen=True)
class Category(Judge):
    """Labels the kind of task: `task_category` and `other_task_category`."""

    name: ClassVar[str] = "category"
    rubrics: tuple[Any, ...] = ("category",)


@dataclass(frozen=True)
class OwnRubric(Judge):
    """Asks a judge to fill in your own rubric: `rubric` is a YAML file, or a mapping with `name`, `schema`, and `task` or `prompt`."""

    name: ClassVar[str] = "rubric"
    repeatable: ClassVar[bool] = True
    rubrics: tuple[Any, ...] = ()
    rubric: str | dict[str, Any] = resolved("")

    def __post_init__(self) -> None:
        if self.rubric:
            object.__setattr__(self, "rubrics", (self.rubric,))
        super().__post_init__()


def _read(
    template: ChatTemplate, generation: Generation, rubrics: tuple[Rubric, ...]
) -> tuple[dict[str, Reading], str]:
    text = _reply(template, generation, rubrics[0])
    return {rubric.name: read_answer(text, rubric) for rubric in rubrics}, text


def _reply(template: ChatTemplate, generation: Generation, rubric: Rubric) -> str:
    """Return the whole reply: with its prefill, after which no reasoning follows, and with the stop that ended it."""
    text = generation.text if rubric.prefill else template.split_reasoning(generation.text)[1]
    stopped = generation.finish_reason == "stop_text" and len(rubric.stop) == 1
    return rubric.prefill + text + (rubric.stop[0] if stopped else "")


def _better(first: Reading, second: Reading) -> Reading:
    """Return the reading with fewer problems; the first if they are equal."""
    order = (OK, "unknown_label", "unparsable")
    return second if order.index(second.code) < order.index(first.code) else first


def _outcome(readings: Mapping[str, Reading], text: str, generation: Generation) -> Outcome:
    errors = {name: reading.code for name, reading in readings.items() if reading.code != OK}
    record: Record = {"values": {key: value for r in readings.values() for key, value in r.values.items()}}
    if errors:
        record |= {"errors": errors, "raw": text.encode("utf-8", "replace").decode()[:20_000]}
    record |= served(generation)
    return Outcome(record, min(errors.values(), key=CODES.index) if errors else OK)
