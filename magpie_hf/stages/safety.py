"""`safety`: a guard says whether a conversation is safe, and which hazard codes apply if not.

Source: Magpie, arXiv:2406.08464, section 3.2 (Llama Guard 2 over instruction and response); the form of the answer is
that of Llama Guard 2's and 3's model cards.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from ..engines.base import Generation
from ..messages import conversation
from ..sampling import SamplingParams, sample_seed, seed_base
from ..stage import OK, ROW_INDEX, Ask, Context, Outcome, RowStage, Steps, failed
from .responses import with_stops


GREEDY = SamplingParams(temperature=0.0, max_tokens=100)
"""Room for "unsafe" and all codes; Llama Guard's model card uses 100 new tokens."""
RETRY_TEMPERATURE = 0.7
_VERDICT = re.compile(r"^\W*(safe|unsafe)\b", re.IGNORECASE)
_CODE = re.compile(r"\b([SO]\d{1,2})\b", re.IGNORECASE)


class Verdict(NamedTuple):
    """`label`: "safe" or "unsafe". `categories`: codes as the guard names them, each once, in its order."""

    label: str
    categories: list[str]


def read_verdict(text: str) -> Verdict | None:
    """Return what a guard said, or None if it said neither "safe" nor "unsafe" first."""
    found = _VERDICT.match(text)
    if found is None:
        return None
    label = found[1].lower()
    codes = [code.upper() for code in _CODE.findall(text[found.end() :])] if label == "unsafe" else []
    return Verdict(label, list(dict.fromkeys(codes)))


@dataclass(frozen=True)
class Safety(RowStage):
    """Asks a guard about the instruction and its response (or the instruction alone, where there is no response).

    - `sampling`: greedy by default.
    - `column`: where the guard's own words go: "llama_guard_2" as released, or "llama_guard_3" for that model.
    """

    name: ClassVar[str] = "safety"
    version: ClassVar[int] = 1
    role: ClassVar[str] = "guard"
    reads: ClassVar[tuple[str, ...]] = ("instruction", "response")

    sampling: SamplingParams = GREEDY
    column: str = "llama_guard_2"

    def features(self) -> dict[str, Any]:
        """Return the guard's words, the verdict, its codes, who guarded, and what went wrong."""
        from datasets import Value

        return {
            self.column: Value("string"),
            "safety": Value("string"),
            "safety_categories": [Value("string")],
            "safety_generator": Value("string"),
            "safety_error": Value("string"),
        }

    def bind(self, context: Context) -> Callable[[Mapping[str, Any]], Steps]:
        """Return `steps` of a row: one request, and a second one if the first says neither safe nor unsafe."""
        template: Any = context.template  # a GuardTemplate: the role says so
        sampling = with_stops(self.sampling, template)
        base = seed_base(context.seed, self.name, 2)
        hotter = dataclasses.replace(sampling, temperature=max(RETRY_TEMPERATURE, sampling.temperature))

        def steps(row: Mapping[str, Any]) -> Steps:
            if row["instruction"] is None:
                return Outcome({"error": "no instruction"}, "empty")
            prompt = template.conversation(conversation((row["instruction"], row["response"])))
            seed = sample_seed(base, row[ROW_INDEX])
            generation = yield Ask(prompt, sampling if sampling.is_greedy else sampling.with_seed(seed))
            if generation.failure is not None:
                return failed(generation)
            if _verdict(template, generation) is None:
                second = yield Ask(prompt, hotter.with_seed(seed))
                if second.failure is not None and second.failure.transient:
                    return failed(second)
                generation = generation if second.failure is not None else second
            text = template.split_reasoning(generation.text)[1].strip()
            record: dict[str, Any] = {"text": text.encode("utf-8", "replace").decode()}
            return Outcome(record, OK if read_verdict(text) is not None else "unparsable")

        return steps

    def columns(
        self, context: Context, row: Mapping[str, Any], record: Mapping[str, Any], code: str
    ) -> dict[str, Any]:
        """Return the columns; what could not be read is null, with the guard's words kept."""
        text = record.get("text")
        verdict = None if text is None else read_verdict(text)
        return {
            self.column: text,
            "safety": None if verdict is None else verdict.label,
            "safety_categories": None if verdict is None else verdict.categories,
            "safety_generator": context.model,
            "safety_error": None if code == OK else record.get("error", code),
        }


def _verdict(template: Any, generation: Generation) -> Verdict | None:
    return read_verdict(template.split_reasoning(generation.text)[1].strip())
