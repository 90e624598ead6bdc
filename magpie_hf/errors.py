"""Every error magpie_hf raises on purpose.

    MagpieError
    ├── ArgumentError           (ValueError)       a value given by the user cannot be used
    ├── RecipeError             (ValueError)       the same, in a recipe file: file, line, key
    ├── DatasetError            (ValueError)       a dataset lacks what a stage reads
    ├── TemplateError           (ValueError)       a chat template gives no usable prompt
    ├── ModelError              (OSError)          a model or tokenizer cannot be loaded
    ├── DependencyError         (ImportError)      an optional package is missing
    ├── StorageError            (OSError)          a journal, cache or run directory cannot be read or written
    ├── HubError                (OSError)          the Hub refuses, or cannot be reached
    ├── RunLockedError          (RuntimeError)     another process owns the run directory
    ├── EngineError             (RuntimeError)
    │   ├── CapabilityError                        the engine cannot do what is asked of it
    │   ├── ModelMismatchError                     the server holds another model than the one asked for
    │   ├── PromptMismatchError                    the server counts other prompt tokens than we do
    │   ├── EngineUnavailableError (ConnectionError)   no endpoint answers
    │   └── EngineDiedError                        the engine's process ended
    └── RunStopped              (RuntimeError)     the run ended early and can be resumed
        ├── BudgetExceeded
        ├── TooManyFailures
        ├── NothingUsable
        └── RowsPending

The message says what is wrong, `where` where, `hint` what to do; `data` holds the values for programs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


MAX_QUOTED = 200


def quoted(text: object, limit: int = MAX_QUOTED) -> str:
    """Quote text for an error message, cut to `limit` characters, control characters escaped."""
    shown = str(text)
    cut = shown[:limit]
    return repr(cut) + (f"… ({len(shown)} characters)" if len(shown) > limit else "")


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return the hint that names the closest known name, if there is one, and lists them all."""
    names = sorted(known)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    start = f'Did you mean "{close[0]}"? ' if close else ""
    return f"{start}Known: {', '.join(names)}."


class MagpieError(Exception):
    """Base of all errors of magpie_hf.

    Attributes: `message` (what is wrong), `where` (file, line, key, row; or None), `hint` (what to do; or None),
    `data` (the values concerned, by name).
    """

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None, **data: Any) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint
        self.data = data

    def __str__(self) -> str:
        head = f"{self.where}: {self.message}" if self.where else self.message
        return f"{head}\n  {self.hint}" if self.hint else head

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.where, self.hint, self.data))


def _rebuild(
    kind: type[MagpieError], message: str, where: str | None, hint: str | None, data: dict[str, Any]
) -> MagpieError:
    return kind(message, where=where, hint=hint, **data)


class ArgumentError(MagpieError, ValueError):
    """A value given by the user cannot be used."""


class RecipeError(MagpieError, ValueError):
    """A recipe cannot be read or holds a value that cannot be used; `where` has file, line and key."""


class DatasetError(MagpieError, ValueError):
    """A dataset lacks a column, or has rows, that a stage cannot work on."""


class TemplateError(MagpieError, ValueError):
    """A chat template is missing or gives no prompt that a user's message could follow."""


class ModelError(MagpieError, OSError):
    """A model, tokenizer or configuration cannot be found or loaded."""


class DependencyError(MagpieError, ImportError):
    """An optional package is missing; the hint has the pip line."""


class StorageError(MagpieError, OSError):
    """A file of the journal, the cache or the run directory cannot be read or written."""


class HubError(MagpieError, OSError):
    """The Hub refuses what is asked, or cannot be reached; what is finished stays, and the same command goes on."""


class RunLockedError(MagpieError, RuntimeError):
    """Another process owns the run directory; `data` has host, pid and when it was last seen."""


class EngineError(MagpieError, RuntimeError):
    """An engine cannot go on."""


class CapabilityError(EngineError):
    """The engine cannot express what is asked of it; said at the start, before any row is paid for."""


class ModelMismatchError(EngineError):
    """The server holds another model than the one asked for, or changed it in mid-run."""


class PromptMismatchError(EngineError):
    """The server counts other prompt tokens than the tokenizer does."""


class EngineUnavailableError(EngineError, ConnectionError):
    """No endpoint answers, or none has for `max_outage_s`."""


class EngineDiedError(EngineError):
    """The process that held the model ended."""


class RunStopped(MagpieError, RuntimeError):
    """The run ended early, with everything finished kept: the same command goes on where it was."""


class BudgetExceeded(RunStopped):
    """A budget (`max_tokens_total`, `max_hours`, `max_cost`) is used up, or is sure to be."""


class TooManyFailures(RunStopped):
    """Most of the last requests failed."""


class NothingUsable(RunStopped):
    """The model yields (almost) no instruction that can be accepted; `data` has the reasons counted."""


class RowsPending(RunStopped):
    """Some rows met only transient failures and are still open."""
