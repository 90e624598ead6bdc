"""`turns`: the model continues the conversation, alternating between the user and the assistant.

Source: Magpie, arXiv:2406.08464, section 2.2 and Fig. 14. The user's turns are generated with a system prompt that
describes a conversation of several rounds, because small models otherwise forget that they play the user; the responses
are generated without it. With `system_prompt: row`, the row's own system prompt is in force for both, as in magpie-ultra.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from ..columns import SHAREGPT
from ..engines.base import Generation
from ..errors import ArgumentError, TemplateError
from ..messages import assistant, conversation, messages_feature, user
from ..sampling import SamplingParams, sample_seed, seed_base
from ..stage import (
    FAILURE_CODES,
    OK,
    ROW_INDEX,
    Ask,
    Context,
    Outcome,
    Record,
    Row,
    RowFunction,
    Stage,
    Steps,
    Values,
    failed,
    optional,
    silent,
)
from ..templates.template import ChatTemplate
from .instructions import REASONS, Instructions, checked_reasons, instruction_sampling
from .provenance import Provenance
from .responses import GREEDY, Responses, answer_text, check_special_tokens, read_response, with_stops
from .starts import banned_tokens, checked_starts, permitted
from .system_prompts import UnderSystemPrompt, unusable


SYSTEM_PROMPT = (
    "You are a helpful AI assistant. The user will engage in a multi-round conversation with you, asking initial "
    "questions and following up with additional related questions. Your goal is to provide thorough, relevant and "
    "insightful responses to help the user with their queries."
)
"""The reference's multi-turn prompt (its Fig. 14) with two typing errors corrected: "Al" for "AI", and a missing space."""
ATTEMPTS = 3
PROVENANCE = Provenance(
    "temperature top_p max_tokens response_temperature response_top_p response_max_tokens system_prompt turns_generator "
    "revision seeds template_hash stage_version"
)


@dataclass(frozen=True)
class Turns(UnderSystemPrompt):
    """Settings of multi-turn synthesis.

    - `turns`: total number of turns, including the first; according to the reference, quality decreases after four.
    - `sampling`, `response_sampling`: of the user's turns and of the responses.
    - `system_prompt`: a text, for the user's turns only, or null. `row`: the column `system_prompt`, for the user's turns
      and for the responses.
    - `system_prompt_in_messages`: begin `messages` with the system prompt; requires `system_prompt: row`. Also true if it
      is true in the recipe's `responses`.
    - `attempts`: samples tried for a user's turn before the conversation ends early.
    - `clean`, `max_scripts`, `reject`: as in `instructions`. A user's turn that is rejected is tried again.
    - `banned_starts`: texts with which no user turn and no response must begin; see `instructions` and `responses`.
    """

    name: ClassVar[str] = "turns"
    is_costly: ClassVar[bool] = True
    version: ClassVar[int] = 3
    reads: ClassVar[tuple[str, ...]] = ("instruction", "response")
    replaces: ClassVar[tuple[str, ...]] = (SHAREGPT,)

    turns: int = 2
    sampling: SamplingParams = field(default=SamplingParams(temperature=1.0, max_tokens=1024))
    response_sampling: SamplingParams = GREEDY
    system_prompt: str | None = SYSTEM_PROMPT
    system_prompt_in_messages: bool = silent(False)
    attempts: int = ATTEMPTS
    clean: bool = True
    max_scripts: int = 2
    banned_starts: tuple[str, ...] = optional(())
    reject: tuple[str, ...] = optional(REASONS)

    def __post_init__(self) -> None:
        object.__setattr__(self, "banned_starts", checked_starts(self.banned_starts))
        object.__setattr__(self, "reject", checked_reasons(self.reject))
        if self.turns < 2:
            raise ArgumentError(
                f"turns = {self.turns} is invalid.", hint="Give 2 or more: the first turn is included."
            )
        if self.attempts < 1:
            raise ArgumentError(f"attempts = {self.attempts} is invalid.", hint="Give 1 or more.")
        if self.system_prompt_in_messages and not self.is_per_row:
            raise ArgumentError(
                "system_prompt_in_messages = true requires `system_prompt: row`.",
                hint="Any other system prompt is in force for the user's turns only, not for the responses.",
            )

    def with_settings_of(self, others: Sequence[Stage]) -> Turns:
        """Begin `messages` with the system prompt if `responses` does, so that it is not lost here."""
        begins = any(isinstance(other, Responses) and other.system_prompt_in_messages for other in others)
        return dataclasses.replace(self, system_prompt_in_messages=True) if begins and self.is_per_row else self

    def features(self) -> Values:
        """Return `instruction_t` and `response_t` (null after the end of the conversation) and `messages`."""
        from datasets import Value

        names = [name for t in range(2, self.turns + 1) for name in (f"instruction_{t}", f"response_{t}")]
        return {
            **{name: Value("string") for name in names},
            "messages": messages_feature(),
            "num_turns": Value("int64"),
            "turns_end": Value("string"),
            "gen_turns_configs": PROVENANCE.feature(),
        }

    def check_template(self, template: ChatTemplate) -> None:
        """Raise TemplateError if the template rejects the system prompt or a second turn."""
        turn = [user("Hello"), assistant("Hello")]
        template.next_user(turn, self.example_prompt)
        template.response([*turn, user("Hello")], self._answer_prompt(self.example_prompt))

    def _answer_prompt(self, system_prompt: str | None) -> str | None:
        """Return the system prompt for the responses: that of the row, but none that is for the user's turns only."""
        return system_prompt if self.is_per_row else None

    def bind(self, context: Context) -> RowFunction:
        """Return the function for a conversation: a user's turn (retried if unusable), a response, and so on."""
        template = context.template
        check_special_tokens(context)
        starts = self.banned_starts
        judge = self._user_rules().judge
        answer_of = partial(answer_text, template)
        banned = banned_tokens(context, starts, self.sampling, self.response_sampling)
        user_sampling = instruction_sampling(self.sampling, template.instruction_stops, banned=banned)
        answer_sampling = with_stops(self.response_sampling, template, banned)

        def user_turn(
            messages: list[dict[str, str]], turn: int, row: Row
        ) -> Generator[Ask, Generation, tuple[Outcome, int]]:
            outcome, seed = Outcome({}, "failed"), 0
            try:
                prompt = template.next_user(messages, self.prompt_of(row))
            except TemplateError as error:
                return unusable(error), seed
            for attempt in range(self.attempts):
                seed = sample_seed(seed_base(context.seed, self.name, turn, attempt), row[ROW_INDEX])
                generation = yield Ask(prompt, user_sampling.with_seed(seed))
                if generation.failure is not None:
                    return failed(generation), seed
                outcome = judge(generation, template.find_special, prompt.dropped)
                if outcome.code == OK or user_sampling.is_greedy:
                    break
            return outcome, seed

        def steps(row: Row) -> Steps:
            record: Record = {"turns": [], "seeds": []}
            if row["instruction"] is None or row["response"] is None:
                return Outcome({**record, "end": "no first turn"}, "fewer_turns")
            messages = [user(row["instruction"]), assistant(row["response"])]
            for turn in range(2, self.turns + 1):
                outcome, seed = yield from user_turn(messages, turn, row)
                if outcome.code != OK:
                    return _ended(record, outcome)
                text = outcome.record.get("text", outcome.record["raw"])
                messages.append(user(text))
                seeds = partial(self._answer_seed, context.seed, turn, row[ROW_INDEX])
                prompt = template.response(messages, self._answer_prompt(self.prompt_of(row)))
                generation, used = yield from permitted(prompt, answer_sampling, starts, seeds, answer_of)
                if generation.failure is not None:
                    return _ended(record, failed(generation))
                read = read_response(template, generation, used, starts)
                if read.code != OK:
                    return _ended(record, read)
                answer = read.record
                record["turns"].append([text, answer["text"]])
                record["seeds"].append(seed)
                if answer["finish"] == "length":
                    # A user cannot reply to a response that was cut off.
                    return Outcome({**record, "end": "length"}, OK if turn == self.turns else "fewer_turns")
                messages.append(assistant(answer["text"]))
            return Outcome({**record, "end": "complete"}, OK)

        return steps

    def _answer_seed(self, seed: int, turn: int, index: int, attempt: int) -> int:
        again = (attempt,) if attempt else ()
        return sample_seed(seed_base(seed, self.name, turn, "answer", *again), index)

    def _user_rules(self) -> Instructions:
        """Return the rules for a user's turn: those of an instruction."""
        return Instructions(
            clean=self.clean, max_scripts=self.max_scripts, banned_starts=self.banned_starts, reject=self.reject
        )

    def columns(self, context: Context, row: Row, record: Record, code: str) -> Values:
        """Return the turns and the whole conversation as `messages`."""
        later = record["turns"]
        pairs = [(row["instruction"], row["response"]), *later]
        system_prompt = self.prompt_of(row)
        shown = system_prompt if self.system_prompt_in_messages else None
        values: Values = {}
        for turn in range(2, self.turns + 1):
            pair = later[turn - 2] if turn - 2 < len(later) else (None, None)
            values[f"instruction_{turn}"], values[f"response_{turn}"] = pair
        return {
            **values,
            "messages": conversation(*pairs, system_prompt=shown),
            "num_turns": sum(None not in pair for pair in pairs),
            "turns_end": record["end"],
            "gen_turns_configs": PROVENANCE.values(
                self,
                context,
                self.sampling,
                record,
                response_temperature=self.response_sampling.temperature,
                response_top_p=self.response_sampling.top_p,
                response_max_tokens=self.response_sampling.max_tokens,
                system_prompt=system_prompt,
                seeds=record["seeds"],
            ),
        }


def _ended(record: Record, outcome: Outcome) -> Outcome:
    """Return a conversation that ended early, with its turns so far and the reason."""
    reason = outcome.record.get("error", outcome.code) if outcome.code in FAILURE_CODES else outcome.code
    return Outcome({**record, "end": reason}, "fewer_turns")
