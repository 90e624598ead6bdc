"""`base_responses`: a base model responds to each instruction in context, for `reward_difference`.

Source: Magpie, arXiv:2406.08464, section 3.2: r_base is the reward of the base model's response with URIAL
(arXiv:2312.01552). The wording of the prompt and its examples are ours.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from ..judging.prompts import urial_prompt, urial_stops
from ..sampling import SamplingParams, sample_seed, seed_base
from ..stage import OK, ROW_INDEX, Ask, Context, Outcome, Record, Row, RowFunction, RowStage, Steps, Values, failed
from .responses import rejected


if TYPE_CHECKING:
    from ..templates.plain import PlainTemplate


GREEDY = SamplingParams(temperature=0.0, max_tokens=1024)
"""Greedy, as for the responses; the length is our choice: long responses of base models are rarely useful."""


@dataclass(frozen=True)
class BaseResponses(RowStage):
    """Settings of the base model's responses.

    - `sampling`: greedy by default.
    """

    name: ClassVar[str] = "base_responses"
    is_costly: ClassVar[bool] = True
    version: ClassVar[int] = 2
    role: ClassVar[str] = "base"
    reads: ClassVar[tuple[str, ...]] = ("instruction",)

    sampling: SamplingParams = GREEDY

    def derived(self) -> Values:
        """Return the prompt that all rows share, and the stop texts."""
        return {"prompt": urial_prompt(""), "stop": list(urial_stops())}

    def features(self) -> Values:
        """Return the response, the base model, and the finish reason."""
        from datasets import Value

        return {name: Value("string") for name in ("base_response", "base_model", "base_finish_reason")}

    def bind(self, context: Context) -> RowFunction:
        """Return `steps` of a row: one request."""
        template = cast("PlainTemplate", context.template)  # the role "base" has a PlainTemplate
        stops = template.response_stops
        sampling = dataclasses.replace(
            self.sampling,
            stop=(*self.sampling.stop, *urial_stops()),
            stop_token_ids=(*self.sampling.stop_token_ids, *stops.token_ids),
        )
        base, sampled = seed_base(context.seed, self.name), not sampling.is_greedy

        def steps(row: Row) -> Steps:
            if row["instruction"] is None:
                return Outcome({"error": "no instruction"}, "empty")
            seed = sample_seed(base, row[ROW_INDEX]) if sampled else None
            generation = yield Ask(template.plain(urial_prompt(row["instruction"])), sampling.with_seed(seed))
            if generation.failure is not None:
                return failed(generation)
            special = template.find_special(generation.text, generation.token_ids)
            if special is not None:
                return rejected({"finish": generation.finish_reason}, generation, "special_token", special)
            text = generation.text.encode("utf-8", "replace").decode().strip()
            return Outcome({"text": text, "finish": generation.finish_reason}, OK)

        return steps

    def columns(self, context: Context, row: Row, record: Record, code: str) -> Values:
        """Return the columns; the response of a failed row is null."""
        finish = record["finish"] if code == OK else f"error: {record.get('error', code)}"
        return {"base_response": record.get("text"), "base_model": context.model, "base_finish_reason": finish}
