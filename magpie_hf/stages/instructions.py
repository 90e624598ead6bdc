"""`instructions`: the model generates the user's message from the pre-query template alone.

Source of the method: Magpie, arXiv:2406.08464, section 2.1; sampling grids in its Table 7.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, TypeAlias

from ..engines.base import Generation
from ..errors import ArgumentError, did_you_mean, quoted
from ..sampling import GridPoint, SamplingParams, sample_seed, seed_base
from ..stage import (
    OK,
    Ask,
    Context,
    Outcome,
    Record,
    Row,
    RowFunction,
    RowStage,
    Steps,
    Values,
    entries_of,
    failed,
    optional,
    silent,
)
from ..storage.hashing import stable_hash
from ..templates.template import ChatTemplate, Stops
from . import cleaning
from .provenance import Provenance, served
from .starts import banned_tokens, begins_with, checked_starts
from .system_prompts import COLUMN, KEY, labels_of


MAX_TOKENS = 1024
"""Maximum number of tokens of an instruction; the reference's scripts for newer models use 1024 (its default is 2048)."""

PROVENANCE = Provenance(
    "temperature top_p top_k max_tokens input_generator revision served_model served_revision seed grid_point "
    "sample_index system_prompt pre_query_template template_hash stage_version"
)
FindSpecial: TypeAlias = Callable[[str, Sequence[int] | None], str | None]
REASONS = ("unfinished", "header", "special_token", *cleaning.REASONS)
"""The reasons to reject a text; `banned_start` is one more, which follows from the setting `banned_starts` alone."""


@dataclass(frozen=True)
class Instructions(RowStage):
    """Settings of instruction synthesis.

    - `grid`: sampling settings and their shares of the accepted rows.
    - `keep_system_prompt`: save the system prompt of each row in the column `system_prompt`. It is saved, too, if the
      points of the grid have a `system_prompt_key`, or if a later stage reads it (`system_prompt: row`).
    - `clean`: remove labels, quotes and answers (`cleaning.clean`); the raw text is kept in `raw_instruction`.
    - `early_stop_newline`: stop at the first newline, as the reference does by default (one-line instructions).
    - `banned_starts`: texts with which an instruction must not begin, e.g., "#": the reference's "de-markdown".
    - `max_scripts`: maximum number of writing systems in one instruction (translations have two).
    - `reject`: reasons to reject a text; all by default. A text with a reason that is not in the list is kept as a row, its
      special tokens are removed, and the reason is saved in the column `rejection_reason`. With `reject: []`, `num_rows`
      counts the samples that were generated. Texts that begin with one of `banned_starts` are always rejected.
    """

    name: ClassVar[str] = "instructions"
    version: ClassVar[int] = 2
    reads: ClassVar[tuple[str, ...]] = ("grid_point", "sample_index")

    grid: tuple[GridPoint, ...] = silent((GridPoint(SamplingParams(max_tokens=MAX_TOKENS)),))
    clean: bool = True
    early_stop_newline: bool = False
    banned_starts: tuple[str, ...] = ()
    max_scripts: int = cleaning.MAX_SCRIPTS
    reject: tuple[str, ...] = optional(REASONS)
    keep_system_prompt: bool = silent(False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "banned_starts", checked_starts(self.banned_starts))
        object.__setattr__(self, "reject", checked_reasons(self.reject))
        if self.max_scripts < 1:
            raise ArgumentError(f"max_scripts = {self.max_scripts} is invalid.", hint="Give 1 or more.")

    def features(self) -> Values:
        """Return the columns of the released datasets up to the instruction, `raw_instruction`, and reasons if any are kept."""
        from datasets import Value

        return {
            "uuid": Value("string"),
            "model": Value("string"),
            "gen_input_configs": PROVENANCE.feature(),
            "instruction": Value("string"),
            "raw_instruction": Value("string"),
            **({"rejection_reason": Value("string")} if self.keeps_reasons else {}),
            **{name: Value("string") for name in self.own_columns},
        }

    @property
    def keeps_reasons(self) -> bool:
        """Whether rows can have a reason to be rejected."""
        return self.reject != REASONS

    @property
    def own_columns(self) -> tuple[str, ...]:
        """The columns of the system prompt of a row and of its label, if the rows have them."""
        keys = (KEY,) if labels_of(self.grid) else ()
        return (COLUMN, *keys) if keys or self.keep_system_prompt else ()

    def check_template(self, template: ChatTemplate) -> None:
        """Raise TemplateError if the template rejects a system prompt of the grid."""
        for point in self.grid:
            template.pre_query(point.system_prompt)

    def bind(self, context: Context) -> RowFunction:
        """Return the function for a sample: one request, whose text is accepted or rejected with a reason."""
        template = context.template
        prompts = [template.pre_query(point.system_prompt) for point in self.grid]
        bases = [self.seed_base(context.seed, point) for point in self.grid]
        stops = template.instruction_stops
        extra = ("\n",) if self.early_stop_newline else ()
        banned = banned_tokens(context, self.banned_starts)
        samplings = [instruction_sampling(point.sampling, stops, extra, banned) for point in self.grid]

        def steps(row: Row) -> Steps:
            point = row["grid_point"]
            seed = sample_seed(bases[point], row["sample_index"])
            generation = yield Ask(prompts[point], samplings[point].with_seed(seed))
            if generation.failure is not None:
                return failed(generation)
            return self.judge(generation, template.find_special, prompts[point].dropped)

        return steps

    def judge(self, generation: Generation, find_special: FindSpecial, dropped: str = "") -> Outcome:
        """Accept a text or reject it with a reason; the raw text is kept in both cases.

        `dropped`: the end of the user's header that the model generates first (see `Prompt`); not part of the text.
        """
        own = cleaning.without_header_end(generation.text, dropped)
        raw = generation.text if own is None else own
        plain, special = _without_special(raw, generation.token_ids, find_special)
        text = cleaning.clean(plain) if self.clean else plain.strip()
        found = {
            "unfinished": generation.finish_reason == "length",
            "header": own is None,
            "special_token": special is not None,
            "banned_start": begins_with(raw, self.banned_starts),
        }
        reasons = [reason for reason, holds in found.items() if holds]
        reasons += cleaning.rejections(text, max_scripts=self.max_scripts)
        code = next((reason for reason in reasons if reason == "banned_start" or reason in self.reject), OK)
        record: Record = {
            "raw": plain if code == OK else raw,
            "finish": generation.finish_reason,
            **served(generation),
            **({"why": special} if code == "special_token" else {}),
            **({"reason": reasons[0]} if code == OK and reasons else {}),
        }
        return Outcome(record if text == record["raw"] else record | {"text": text}, code)

    def seed_base(self, run_seed: int, point: GridPoint, turn: int = 1, attempt: int = 0) -> int:
        """Return the base of the seeds of a grid point: sample i has the seed (base + i) mod 2^31."""
        return _point_seed_base(run_seed, self.name, turn, attempt, point)

    def columns(self, context: Context, row: Row, record: Record, code: str) -> Values:
        """Return the columns of an accepted sample."""
        point = self.grid[row["grid_point"]]
        return {
            "uuid": sample_uuid(context, point, row["sample_index"]),
            "model": context.model,
            "gen_input_configs": PROVENANCE.values(
                self,
                context,
                point.sampling,
                record,
                seed=sample_seed(self.seed_base(context.seed, point), row["sample_index"]),
                grid_point=row["grid_point"],
                sample_index=row["sample_index"],
                system_prompt=point.system_prompt,
                pre_query_template=context.template.pre_query(point.system_prompt).text,
            ),
            "instruction": record.get("text", record["raw"]),
            "raw_instruction": record["raw"],
            **({"rejection_reason": record.get("reason") if code == OK else code} if self.keeps_reasons else {}),
            **{name: getattr(point, name) for name in self.own_columns},
        }


def checked_reasons(given: Sequence[str]) -> tuple[str, ...]:
    """Return the reasons of a setting in their order, each once.

    Raises:
        ArgumentError: a reason is unknown.
    """
    named = entries_of(given)
    for reason in named:
        if reason not in REASONS:
            raise ArgumentError(
                f"Unknown reason to reject a text: {quoted(reason)}.",
                hint=did_you_mean(str(reason), REASONS),
                key="reject",
            )
    return tuple(reason for reason in REASONS if reason in named)


def _without_special(text: str, token_ids: Sequence[int] | None, find: FindSpecial) -> tuple[str, str | None]:
    """Return a text without special tokens and template marks, and the first one that was found."""
    first = special = find(text, token_ids)
    while special:
        text = text.replace(special, "")
        special = find(text, token_ids)
    return text, first


def instruction_sampling(
    sampling: SamplingParams, stops: Stops, extra: tuple[str, ...] = (), banned: tuple[int, ...] = ()
) -> SamplingParams:
    """Return the sampling with the template's stops for a user turn added."""
    return replace(
        sampling,
        stop=(*sampling.stop, *stops.plain_texts, *extra),
        stop_token_ids=(*sampling.stop_token_ids, *stops.token_ids),
        banned_first_token_ids=(*sampling.banned_first_token_ids, *banned),
    )


@lru_cache(maxsize=1024)
def _point_seed_base(run_seed: int, name: str, turn: int, attempt: int, point: GridPoint) -> int:
    return seed_base(run_seed, name, turn, attempt, stable_hash(point.to_dict()))


@lru_cache(maxsize=1024)
def _request_hash(model: str, revision: str | None, template_hash: str, seed: int, point: GridPoint) -> str:
    return stable_hash([model, revision, template_hash, seed, point.to_dict()], 32)


def sample_uuid(context: Context, point: GridPoint, index: int) -> str:
    """Return the uuid of a sample: the same in every run and on every machine with the same settings."""
    request = _request_hash(context.model, context.revision, context.template.hash, context.seed, point)
    return str(uuid.UUID(bytes=hashlib.blake2b(f"{request}:{index}".encode(), digest_size=16).digest(), version=4))


def point_key(point: GridPoint) -> int:
    """Return the first half of the row keys of a grid point; the second half is the index of the sample."""
    return int(stable_hash(point.to_dict(), 16), 16)
