"""`responses`: the model responds to each instruction with its full chat template.

Source: Magpie, arXiv:2406.08464, section 2.1 (step 2); greedy decoding as in its appendix E.1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from ..columns import OF_RESPONSE, SHAREGPT
from ..engines.base import Generation
from ..errors import CapabilityError, TemplateError, quoted
from ..messages import conversation, messages_feature, user
from ..sampling import SamplingParams, sample_seed, seed_base
from ..stage import (
    OK,
    ROW_INDEX,
    Context,
    Outcome,
    Record,
    Row,
    RowFunction,
    Steps,
    Values,
    failed,
    optional,
    silent,
)
from ..templates.template import ChatTemplate
from .provenance import Provenance, served
from .starts import banned_tokens, begins_with, checked_starts, permitted
from .system_prompts import UnderSystemPrompt, unusable


if TYPE_CHECKING:
    from ..templates.guard import GuardTemplate


MAX_TOKENS = 4096
"""Maximum number of tokens of a response: the default of the reference's response script."""
GREEDY = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
PROVENANCE = Provenance(
    "temperature top_p top_k repetition_penalty max_tokens output_generator revision served_model served_revision seed "
    "system_prompt template_hash stage_version"
)


@dataclass(frozen=True)
class Responses(UnderSystemPrompt):
    """Settings of response generation.

    - `sampling`: greedy by default.
    - `system_prompt`: a text, for the response only; the releases use none. `row`: the column `system_prompt`, i.e., the
      system prompt of the row's instruction, or the system message of an existing conversation. Otherwise that column is
      dropped, because the new response was generated without it.
    - `system_prompt_in_messages`: begin `messages` with the system prompt of the response.
    - `banned_starts`: texts with which a response must not begin, e.g., "#"; such responses are sampled again.
    - `messages` contains the instruction and the new response only: later turns of existing conversations are dropped, and
      so are the annotations of an earlier response (`reward`, `safety`, `flags`, lengths, turns).
    """

    name: ClassVar[str] = "responses"
    is_costly: ClassVar[bool] = True
    version: ClassVar[int] = 2
    role: ClassVar[str] = "responder"
    reads: ClassVar[tuple[str, ...]] = ("instruction",)
    replaces: ClassVar[tuple[str, ...]] = (SHAREGPT, "system_prompt", *OF_RESPONSE)

    sampling: SamplingParams = GREEDY
    system_prompt: str | None = None
    system_prompt_in_messages: bool = silent(False)
    banned_starts: tuple[str, ...] = optional(())

    def __post_init__(self) -> None:
        object.__setattr__(self, "banned_starts", checked_starts(self.banned_starts))

    def features(self) -> Values:
        """Return the response, the conversation as `messages`, the finish reason and the provenance."""
        from datasets import Value

        return {
            "response": Value("string"),
            "messages": messages_feature(),
            "reasoning": Value("string"),
            "response_finish_reason": Value("string"),
            "gen_response_configs": PROVENANCE.feature(),
        }

    def check_template(self, template: ChatTemplate) -> None:
        """Raise TemplateError if the template rejects the system prompt."""
        template.response([user("Hello")], self.example_prompt)

    def bind(self, context: Context) -> RowFunction:
        """Return the function for a row: one request, or several with `banned_starts`. The reasoning of a thinking model has its own column."""
        template = context.template
        check_special_tokens(context)
        starts = self.banned_starts
        sampling = with_stops(self.sampling, template, banned_tokens(context, starts, self.sampling))

        def seed_of(index: int, attempt: int) -> int:
            return sample_seed(seed_base(context.seed, self.name, 1, attempt, ""), index)

        def steps(row: Row) -> Steps:
            instruction = row["instruction"]
            if instruction is None:
                return Outcome({"error": "no instruction"}, "empty")
            try:
                prompt = template.response([user(instruction)], self.prompt_of(row))
            except TemplateError as error:
                return unusable(error)
            seeds = partial(seed_of, row[ROW_INDEX])
            generation, seed = yield from permitted(prompt, sampling, starts, seeds, partial(answer_text, template))
            if generation.failure is not None:
                return failed(generation)
            return read_response(template, generation, seed, starts)

        return steps

    def columns(self, context: Context, row: Row, record: Record, code: str) -> Values:
        """Return the columns of the response; for a failed row they are null, and the finish reason is its code."""
        response, system_prompt = record.get("text"), self.prompt_of(row)
        shown = system_prompt if self.system_prompt_in_messages else None
        return {
            "response": response,
            "messages": conversation((row["instruction"], response), system_prompt=shown),
            "reasoning": record.get("reasoning"),
            "response_finish_reason": record["finish"] if code == OK else f"error: {record.get('error', code)}",
            "gen_response_configs": PROVENANCE.values(
                self, context, self.sampling, record, seed=record.get("seed"), system_prompt=system_prompt
            ),
        }


def with_stops(
    sampling: SamplingParams, template: ChatTemplate | GuardTemplate, banned: tuple[int, ...] = ()
) -> SamplingParams:
    """Return the sampling with the template's stops for a response, and the banned first tokens, added."""
    stops = template.response_stops
    return replace(
        sampling,
        stop=(*sampling.stop, *stops.plain_texts),
        stop_token_ids=(*sampling.stop_token_ids, *stops.token_ids),
        banned_first_token_ids=(*sampling.banned_first_token_ids, *banned),
    )


def check_special_tokens(context: Context) -> None:
    """Raise CapabilityError if the engine hides the token that ends the model's reasoning."""
    closes = context.template.hidden_close
    if closes is None or context.capabilities is None or context.capabilities.special_tokens:
        return
    raise CapabilityError(
        "The server removes special tokens from texts and returns no token ids, but this model's reasoning ends with the "
        f"special token {quoted(closes, 60)}.",
        hint="Use an engine that returns token ids: transformers, vllm, tgi, or openai on a vLLM server. llama.cpp's server "
        "shows special tokens when it is started with --special.",
    )


def answer_text(template: ChatTemplate, generation: Generation) -> str:
    """Return the text of a response, without the model's reasoning."""
    return template.read_answer(generation).text


def read_response(
    template: ChatTemplate, generation: Generation, seed: int | None, banned_starts: tuple[str, ...] = ()
) -> Outcome:
    """Return the record of a response (text, reasoning, finish reason, seed, server), or why it is rejected.

    Codes: `special_token` (the text contains a special token or a marker of the template), `unparsable` (the model
    addressed a tool, not the user), `unfinished` (the model stopped after its reasoning, without a response),
    `banned_start` (every sample began with one of `banned_starts`).
    """
    record: Record = {"finish": generation.finish_reason}
    if seed is not None:
        record["seed"] = seed
    record |= served(generation)
    answer = template.read_answer(generation)
    if begins_with(answer.text, banned_starts):
        return rejected(record, generation, "banned_start", "begins with one of banned_starts")
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


def rejected(record: Record, generation: Generation, code: str, why: str) -> Outcome:
    """Return the outcome of a rejected response: null in the dataset; the journal keeps its text."""
    return Outcome({**record, "raw": generation.text, "error": f"{code}: {why}", "why": why}, code)
