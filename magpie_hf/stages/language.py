"""`language`: which language an instruction is in, by lingua.

Source of column and labels: the releases (lingua, ISO 639-1 in capitals, null where nothing can be said).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from ..errors import ArgumentError, DependencyError, did_you_mean
from ..stage import BatchStage, Context, entries_of


MAX_CHARACTERS = 2000
"""Longer texts are judged by their beginning: more changes no verdict and costs time."""
_FENCED = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Language(BatchStage):
    """Adds `language` (ISO 639-1, capitals, such as "EN") and `language_confidence` (0 to 1).

    - `column`: the text judged; code in fences is left out where other text is there.
    - `languages`: ISO 639-1 codes to choose from; by default all 75 that lingua knows.
    - `min_confidence`: below it, the language is null.
    - `low_memory`: load smaller models (some tens of MB instead of about 1 GB): as good on texts of some length.
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
            raise ArgumentError(f"min_confidence = {self.min_confidence} cannot be used.", hint="From 0 to 1.")
        if len(set(self.languages)) == 1:
            raise ArgumentError("languages names one language only.", hint="Give two or more to choose from, or none.")

    @property
    def needs(self) -> tuple[str, ...]:
        """The text."""
        return (self.column,)

    def derived(self) -> dict[str, Any]:
        """Return the languages in one order."""
        return {"languages": sorted(self.languages)}

    def features(self) -> dict[str, Any]:
        """Return the language and how sure that is."""
        from datasets import Value

        return {"language": Value("string"), "language_confidence": Value("float32")}

    def check_ready(self) -> None:
        """Raise DependencyError without lingua, ArgumentError for a language that it does not know."""
        known_languages(self.languages)

    def bind(self, context: Context) -> Callable[[Mapping[str, Sequence[Any]]], dict[str, list[Any]]]:
        """Return the function that judges a batch, on all cores."""
        found = detector(tuple(sorted(self.languages)), self.low_memory)

        def judge(batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
            texts = [relevant_text(text) for text in batch[self.column]]
            there = [n for n, text in enumerate(texts) if text]
            names: list[str | None] = [None] * len(texts)
            sure: list[float | None] = [None] * len(texts)
            for n, values in zip(
                there, found.compute_language_confidence_values_in_parallel([texts[n] for n in there]), strict=True
            ):
                best = values[0] if values else None
                if best is None or best.value <= 0:
                    continue  # digits and signs only: no language has a claim
                sure[n] = best.value
                if best.value >= self.min_confidence:
                    names[n] = best.language.iso_code_639_1.name
            return {"language": names, "language_confidence": sure}

        return judge


def relevant_text(text: str | None) -> str:
    """Return what of a text speaks for its language: the beginning, without code where there is more than code."""
    if text is None or not any(c.isalpha() for c in text[: 20 * MAX_CHARACTERS]):
        return ""
    head = text[: 20 * MAX_CHARACTERS]
    prose = _FENCED.sub(" ", head).strip()
    chosen = prose if any(c.isalpha() for c in prose) else head
    return chosen[:MAX_CHARACTERS].encode("utf-8", "replace").decode()


@cache
def detector(languages: tuple[str, ...], low_memory: bool) -> Any:
    """Return lingua's detector for these languages; built once a process.

    Raises:
        DependencyError: lingua is not installed.
        ArgumentError: a code is none of lingua's languages.
    """
    chosen = known_languages(languages)
    import lingua

    builder = lingua.LanguageDetectorBuilder
    built = builder.from_languages(*chosen) if chosen else builder.from_all_languages()
    return (built.with_low_accuracy_mode() if low_memory else built).build()


def known_languages(codes: Sequence[str]) -> list[Any]:
    """Return lingua's languages of these ISO 639-1 codes.

    Raises:
        DependencyError: lingua is not installed.
        ArgumentError: a code is none of lingua's languages.
    """
    try:
        import lingua
    except ImportError:
        raise DependencyError(
            "The annotation of languages needs lingua.", hint='pip install "magpie_hf[language]"', package="lingua"
        ) from None
    known = {str(language.iso_code_639_1.name): language for language in lingua.Language.all()}
    for code in codes:
        if code not in known:
            raise ArgumentError(f"lingua has no language {code!r}.", hint=did_you_mean(code, known))
    return [known[code] for code in codes]
