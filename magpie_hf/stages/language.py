"""`language`: the language of an instruction, detected by lingua.

Source of column and labels: the releases (lingua, ISO 639-1 in capitals, null if undetected).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from ..errors import ArgumentError, DependencyError, did_you_mean
from ..stage import Batch, BatchFunction, BatchStage, Columns, Context, Values, entries_of


if TYPE_CHECKING:
    import lingua

MAX_CHARACTERS = 2000
"""Only the beginning of longer texts is used: more text costs time and changes no result."""
_FENCED = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Language(BatchStage):
    """Adds `language` (ISO 639-1, capitals, such as "EN") and `language_confidence` (0 to 1).

    - `column`: the text to detect; fenced code is ignored if there is other text.
    - `languages`: ISO 639-1 codes to choose from; all 75 languages of lingua by default.
    - `min_confidence`: below it, the language is null.
    - `low_memory`: load smaller models (tens of MB instead of about 1 GB), equally accurate on longer texts.
    """

    name: ClassVar[str] = "language"
    version: ClassVar[int] = 1

    column: str = "instruction"
    languages: tuple[str, ...] = ()
    min_confidence: float = 0.0
    low_memory: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "languages", entries_of(self.languages))
        if not 0 <= self.min_confidence <= 1:
            raise ArgumentError(
                f"min_confidence = {self.min_confidence} is invalid.", hint="Give a number from 0 to 1."
            )
        if len(set(self.languages)) == 1:
            raise ArgumentError(
                "languages contains only one language.", hint="Give two or more to choose from, or none."
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """The text."""
        return (self.column,)

    def derived(self) -> Values:
        """Return the languages in a fixed order."""
        return {"languages": sorted(self.languages)}

    def features(self) -> Values:
        """Return the language and its confidence."""
        from datasets import Value

        return {"language": Value("string"), "language_confidence": Value("float32")}

    def check_ready(self) -> None:
        """Raise DependencyError if lingua is missing, ArgumentError for a language that it does not support."""
        known_languages(self.languages)

    def bind(self, context: Context) -> BatchFunction:
        """Return the function that detects the languages of a batch, on all cores."""
        found = detector(tuple(sorted(self.languages)), self.low_memory)

        def detect(batch: Batch) -> Columns:
            texts = [relevant_text(text) for text in batch[self.column]]
            present = [n for n, text in enumerate(texts) if text]
            names: list[str | None] = [None] * len(texts)
            sure: list[float | None] = [None] * len(texts)
            for n, values in zip(
                present, found.compute_language_confidence_values_in_parallel([texts[n] for n in present]), strict=True
            ):
                best = values[0] if values else None
                if best is None or best.value <= 0:
                    continue  # only digits and symbols
                sure[n] = best.value
                if best.value >= self.min_confidence:
                    names[n] = best.language.iso_code_639_1.name
            return {"language": names, "language_confidence": sure}

        return detect


def relevant_text(text: str | None) -> str:
    """Return the part of a text that shows its language: the beginning, without fenced code if there is other text."""
    if text is None or not any(c.isalpha() for c in text[: 20 * MAX_CHARACTERS]):
        return ""
    head = text[: 20 * MAX_CHARACTERS]
    prose = _FENCED.sub(" ", head).strip()
    chosen = prose if any(c.isalpha() for c in prose) else head
    return chosen[:MAX_CHARACTERS].encode("utf-8", "replace").decode()


@cache
def detector(languages: tuple[str, ...], low_memory: bool) -> lingua.LanguageDetector:
    """Return lingua's detector for these languages; built once per process.

    Raises:
        DependencyError: lingua is not installed.
        ArgumentError: lingua does not support a language.
    """
    chosen = known_languages(languages)
    import lingua

    builder = lingua.LanguageDetectorBuilder
    built = builder.from_languages(*chosen) if chosen else builder.from_all_languages()
    return (built.with_low_accuracy_mode() if low_memory else built).build()


def known_languages(codes: Sequence[str]) -> list[lingua.Language]:
    """Return lingua's languages for ISO 639-1 codes.

    Raises:
        DependencyError: lingua is not installed.
        ArgumentError: lingua does not support a language.
    """
    try:
        import lingua
    except ImportError:
        raise DependencyError(
            "Language detection requires lingua.", hint='pip install "magpie_hf[language]"', package="lingua"
        ) from None
    known = {str(language.iso_code_639_1.name): language for language in lingua.Language.all()}
    for code in codes:
        if code not in known:
            raise ArgumentError(f"lingua has no language {code!r}.", hint=did_you_mean(code, known))
    return [known[code] for code in codes]
