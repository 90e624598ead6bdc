"""`safety`: a guard model classifies conversations as safe or unsafe, with hazard codes.

Source: Magpie, arXiv:2406.08464, section 3.2 (Llama Guard 2 over instruction and response); the format of the reply is
documented in the model cards of Llama Guard 2 and 3.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, cast

from ..engines.base import Generation
from ..errors import TemplateError
from ..messages import conversation
from ..sampling import SamplingParams, sample_seed, seed_base
from ..stage import (
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
    optional,
)
from .over import PAIR, check_over, read_conversation
from .responses import with_stops
from .system_prompts import unusable


if TYPE_CHECKING:
    from ..templates.guard import GuardTemplate
    from ..templates.template import ChatTemplate


GREEDY = SamplingParams(temperature=0.0, max_tokens=100)
"""Enough for "unsafe" and all codes; Llama Guard's model card uses 100 new tokens."""
RETRY_TEMPERATURE = 0.7
_VERDICT = re.compile(r"^\W*(safe|unsafe)\b", re.IGNORECASE)
_CODE = re.compile(r"\b([SO]\d{1,2})\b", re.IGNORECASE)


class Verdict(NamedTuple):
    """Reply of a guard. `label`: "safe" or "unsafe". `categories`: hazard codes, each once, in the guard's order."""

    label: str
    categories: list[str]


def read_verdict(text: str) -> Verdict | None:
    """Parse a guard's reply; None if it begins with neither "safe" nor "unsafe"."""
    found = _VERDICT.match(text)
    if found is None:
        return None
    label = found[1].lower()
    codes = [code.upper() for code in _CODE.findall(text[found.end() :])] if label == "unsafe" else []
    return Verdict(label, list(dict.fromkeys(codes)))


@dataclass(frozen=True)
class Safety(RowStage):
    """Classifies the instruction and its response (or the instruction alone, for rows without a response).

    - `over`: `pair` (instruction and response), or `messages` (the whole conversation, without a system message).
    - `sampling`: greedy by default.
    - `column`: the column for the guard's reply: "llama_guard_2" as released, or "llama_guard_3" for that model.
    """

    name: ClassVar[str] = "safety"
    version: ClassVar[int] = 1
    role: ClassVar[str] = "guard"
    reads: ClassVar[tuple[str, ...]] = ("instruction", "response")

    sampling: SamplingParams = GREEDY
    column: str = "llama_guard_2"
    over: str = optional(PAIR)

    def __post_init__(self) -> None:
        check_over(self.over)

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns of the texts to classify."""
        return self.reads if self.over == PAIR else (self.over,)

    def conversation_of(self, row: Row) -> list[dict[str, str]] | None:
        """Return the conversation of a row to classify, None if a text is missing."""
        if self.over == PAIR:
            return None if row["instruction"] is None else conversation((row["instruction"], row["response"]))
        messages = read_conversation(row)
        return messages and [message for message in messages if message["role"] != "system"]

    def features(self) -> Values:
        """Return the guard's reply, the label, the hazard codes, the guard model, and errors."""
        from datasets import Value

        return {
            self.column: Value("string"),
            "safety": Value("string"),
            "safety_categories": [Value("string")],
            "safety_generator": Value("string"),
            "safety_error": Value("string"),
        }

    def check_template(self, template: ChatTemplate) -> None:
        """Raise TemplateError if the guard's template does not show a whole conversation."""
        if self.over != PAIR:
            cast("GuardTemplate", template).conversation(conversation(("Hello", "Hello"), ("How?", "So.")))

    def bind(self, context: Context) -> RowFunction:
        """Return the function for a row: one request, and a second one if the reply is neither safe nor unsafe."""
        template = cast("GuardTemplate", context.template)  # the role "guard" has a GuardTemplate
        sampling = with_stops(self.sampling, template)
        base = seed_base(context.seed, self.name, 2)
        retry_sampling = dataclasses.replace(sampling, temperature=max(RETRY_TEMPERATURE, sampling.temperature))

        def steps(row: Row) -> Steps:
            messages = self.conversation_of(row)
            if not messages:
                return Outcome({"error": "no instruction" if self.over == PAIR else "no conversation"}, "empty")
            try:
                prompt = template.conversation(messages)
            except TemplateError as error:
                if self.over == PAIR:  # no pair can be rendered: a wrong guard, not a wrong row
                    raise
                return unusable(error)
            seed = sample_seed(base, row[ROW_INDEX])
            generation = yield Ask(prompt, sampling if sampling.is_greedy else sampling.with_seed(seed))
            if generation.failure is not None:
                return failed(generation)
            if _verdict(template, generation) is None:
                second = yield Ask(prompt, retry_sampling.with_seed(seed))
                if second.failure is not None and second.failure.transient:
                    return failed(second)
                generation = generation if second.failure is not None else second
            text = template.split_reasoning(generation.text)[1].strip()
            record: Record = {"text": text.encode("utf-8", "replace").decode()}
            return Outcome(record, OK if read_verdict(text) is not None else "unparsable")

        return steps

    def columns(self, context: Context, row: Row, record: Record, code: str) -> Values:
        """Return the columns; if the reply could not be parsed, they are null, except for the reply."""
        text = record.get("text")
        verdict = None if text is None else read_verdict(text)
        return {
            self.column: text,
            "safety": None if verdict is None else verdict.label,
            "safety_categories": None if verdict is None else verdict.categories,
            "safety_generator": context.model,
            "safety_error": None if code == OK else record.get("error", code),
        }


def _verdict(template: GuardTemplate, generation: Generation) -> Verdict | None:
    return read_verdict(template.split_reasoning(generation.text)[1].strip())
