"""What a grammar's form is: a function that writes one exchange, its labels beside it.

Labels are exact because the form knows what it wrote; annotation prompts and tests read them from here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar


# The twelve task categories of the Magpie releases.
CATEGORIES = (
    "Information seeking",
    "Reasoning",
    "Planning",
    "Editing",
    "Coding & Debugging",
    "Math",
    "Role playing",
    "Data analysis",
    "Creative writing",
    "Advice seeking",
    "Brainstorming",
    "Others",
)
DIFFICULTIES = ("very easy", "easy", "medium", "hard", "very hard")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Exchange:
    """An instruction with its answer.

    `form`: the name of the form that wrote it. `category`, `difficulty`: the labels, as the releases name them.
    `topic`: what it is about, one or a few words. `language`: ISO 639-1 code of the instruction.
    `follow_ups`: exchanges that make sense right after this one, and refer back to it. `hazard`: the code of what a
    guard should say of the instruction, or None if it is safe.
    """

    form: str
    category: str
    difficulty: str
    topic: str
    instruction: str
    answer: str
    language: str = "en"
    follow_ups: tuple[Exchange, ...] = ()
    hazard: str | None = None

    def then(self, instruction: str, answer: str, **changes: object) -> Exchange:
        """Return this exchange with one more follow-up; its labels are those of this one unless `changes` sets them."""
        values: dict[str, object] = {"form": f"{self.form}/follow-up", "follow_ups": (), **changes}
        follow_up = replace(self, instruction=instruction, answer=answer, **values)  # type: ignore[arg-type]
        return replace(self, follow_ups=(*self.follow_ups, follow_up))


Form = Callable[[random.Random], Exchange]


class RegisteredForm(NamedTuple):
    """A form, the domain whose system prompts call for it, and how often it is drawn there."""

    name: str
    domain: str
    weight: float
    write: Form


FORMS: dict[str, RegisteredForm] = {}


def form(domain: str, weight: float = 1.0) -> Callable[[Form], Form]:
    """Register a form under its function's name.

    `domain`: "general", "math", "code", "translation", "writing", or a language code.
    """

    def register(write: Form) -> Form:
        FORMS[write.__name__] = RegisteredForm(write.__name__, domain, weight, write)
        return write

    return register


def table(text: str) -> list[tuple[str, ...]]:
    """Read rows of fields separated by "|" from a block of text."""
    return [tuple(field.strip() for field in line.split("|")) for line in text.strip().splitlines() if line.strip()]


def numbered(lines: Sequence[str], start: int = 1) -> str:
    """Return the lines as a numbered list."""
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, start))


def bullets(lines: Sequence[str]) -> str:
    """Return the lines as a list with dashes."""
    return "\n".join(f"- {line}" for line in lines)


def upper_first(text: str) -> str:
    """Return the text with its first letter in upper case, the rest as it is."""
    return text[:1].upper() + text[1:]


def article(noun: str) -> str:
    """Return the noun with "a" or "an" before it."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
