"""`responses`: the model answers each instruction under its full chat template.

Source: Magpie, arXiv:2406.08464, section 2.1 (step 2); greedy decoding as in its appendix E.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..columns import SHAREGPT
from ..engines.base import Generation
from ..errors import CapabilityError, quoted
from ..messages import conversation, messages_feature, user
from ..sampling import SamplingParams, sample_seed, seed_base
from ..stage import OK, ROW_INDEX, Ask, Context, Outcome, RowStage, Steps, failed
from ..templates.template import ChatTemplate
from .provenance import Provenance, served


MAX_TOKENS = 4096
"""Most tokens of a response: the default of the reference's response script."""
GREEDY = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
PROVENANCE = Provenance(
    "temperature top_p top_k repetition_penalty max_tokens output_generator revision served_model served_revision seed "
    "system_prompt template_hash stage_version"
)


@dataclass(frozen=True)
class Responses(RowStage):
    """Settings of response generation.

    - `sampling`: greedy by default.
    - `system_prompt`: for the answer only; the releases use none. A column `system_prompt` of the rows is not read, and
      dropped, as the new response was generated without it.
    - `messages` is written anew, of the instruction and the new response: later turns of the rows' conversations are dropped.
    """

    name: ClassVar[str] = "responses"
    version: ClassVar[int] = 2
    role: ClassVar[str] = "responder"
    reads: ClassVar[tuple[str, ...]] = ("instruction",)
    replaces: ClassVar[tuple[str, ...]] = (SHAREGPT, "system_prompt")

    sampling: SamplingParams = GREEDY
    system_prompt: str | None = None

    def features(self) -> dict[str, Any]:
        """Return the response, the conversation as `messages`, how it ended, and how it was made."""
        from datasets import Value

        return {
            "response": Value("string"),
            "messages": messages_feature(),
            "reasoning": Value("string"),
            "response_finish_reason": Value("string"),
            "gen_response_configs": PROVENANCE.feature(),
        }

    def check_template(self, template: ChatTemplate) -> None:
        """Raise TemplateError if the template refuses the system prompt."""
        template.response([user("Hello")], self.system_prompt)

    def bind(self, context: Context) -> Callable[[Mapping[str, Any]], Steps]:
        """Return `steps` of a row: one request; what a thinking model thought goes to a column of its own."""
        template = context.template
        check_special_tokens(context)
        sampling = with_stops(self.sampling, template)
        base = seed_base(context.seed, self.name, 1, 0, "")
        system_prompt, sampled = self.system_prompt, not sampling.is_greedy

        def steps(row: Mapping[str, Any]) -> Steps:
            instruction = row["instruction"]
            if instruction is None:
                return Outcome({"error": "no instruction"}, "empty")
            seed = sample_seed(base, row[ROW_INDEX]) if sampled else None
            prompt = template.response([user(instruction)], system_prompt)
            generation = yield Ask(prompt, sampling.with_seed(seed))
            if generation.failure is not None:
                return failed(generation)
            return read_response(template, generation, seed)

        return steps

    def columns(
        self, context: Context, row: Mapping[str, Any], record: Mapping[str, Any], code: str
    ) -> dict[str, Any]:
        """Return the response's columns; of a failed row they are null, and the finish reason is its code."""
        response = record.get("text")
        return {
            "response": response,
            "messages": conversation((row["instruction"], response)),
            "reasoning": record.get("reasoning"),
            "response_finish_reason": record["finish"] if code == OK else f"error: {record.get('error', code)}",
            "gen_response_configs": PROVENANCE.values(
                self, context, self.sampling, record, seed=record.get("seed"), system_prompt=self.system_prompt
            ),
        }


def with_stops(sampling: SamplingParams, template: ChatTemplate) -> SamplingParams:
    """Return the sampling with the template's stops of a response added."""
    stops = template.response_stops
    return replace(
        sampling,
        stop=(*sampling.stop, *stops.plain_texts),
        stop_token_ids=(*sampling.stop_token_ids, *stops.token_ids),
    )


def check_special_tokens(context: Context) -> None:
    """Raise CapabilityError if the engine hides what closes the model's reasoning."""
    closes = context.template.hidden_close
    if closes is None or context.capabilities is None or context.capabilities.special_tokens:
        return
    raise CapabilityError(
        f"The server leaves special tokens out of its texts and returns no token ids, but only {quoted(closes, 60)} "
        "shows where this model's reasoning ends.",
        hint="Use an engine that returns token ids: transformers, vllm, tgi, or openai on a vLLM server. llama.cpp's server "
        "shows special tokens when it is started with --special.",
    )


def read_response(template: ChatTemplate, generation: Generation, seed: int | None) -> Outcome:
    """Return what is kept of an answer (text, reasoning apart, finish reason, seed, who served), or why it is rejected.

    Codes: `special_token` (a special token, or a mark of the template, is left in the text), `unparsable` (the model
    addressed a tool, not the user), `unfinished` (the model stopped without an answer after its reasoning).
    """
    answer = template.read_answer(generation)
    record: dict[str, Any] = {"finish": generation.finish_reason}
    if seed is not None:
        record["seed"] = seed
    record |= served(generation)
    if answer.special is not None:
        return rejected(record, generation, "special_token", answer.special)
    if answer.misses:
        return rejected(record, generation, "unparsable", f"no {answer.misses!r} at its beginning")
    if answer.reasoning is not None and not answer.text and generation.finish_reason != "length":
        return rejected(record, generation, "unfinished", "no answer after the reasoning")
    record["text"] = answer.text
    if answer.reasoning is not None:
        record["reasoning"] = answer.reasoning
    return Outcome(record, OK)


def rejected(record: dict[str, Any], generation: Generation, code: str, why: str) -> Outcome:
    """Return the outcome of a response that is stored as null; the journal keeps its text."""
    return Outcome({**record, "raw": generation.text, "error": f"{code}: {why}", "why": why}, code)
