"""The errors that magpie_hf raises.

    MagpieError
    ├── ArgumentError           (ValueError)       an argument is invalid
    ├── RecipeError             (ValueError)       a recipe is invalid: file, line, key
    ├── DatasetError            (ValueError)       a dataset lacks what a stage reads
    ├── TemplateError           (ValueError)       a chat template gives no usable prompt
    ├── ModelError              (OSError)          a model or tokenizer cannot be loaded
    ├── DependencyError         (ImportError)      an optional package is missing
    ├── StorageError            (OSError)          a journal, cache or run directory cannot be read or written
    ├── HubError                (OSError)          the Hub rejects a request, or cannot be reached
    ├── RunLockedError          (RuntimeError)     another process owns the run directory
    ├── EngineError             (RuntimeError)
    │   ├── CapabilityError                        the engine does not support what is requested
    │   ├── ModelMismatchError                     the server serves another model than the requested one
    │   ├── PromptMismatchError                    the server counts other prompt tokens than the tokenizer
    │   ├── EngineUnavailableError (ConnectionError)   no endpoint responds
    │   └── EngineDiedError                        the engine's process ended
    └── RunStopped              (RuntimeError)     the run stopped early and can be resumed
        ├── BudgetExceeded
        ├── TooManyFailures
        ├── NothingUsable
        └── RowsPending

`message` says what is wrong, `where` says where, `hint` says what to do, and `data` has the values for programs.
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
    """Return a hint with the closest known name, if any, and all known names."""
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
    """An argument is invalid."""


class RecipeError(MagpieError, ValueError):
    """A recipe cannot be read or has an invalid value; `where` has file, line and key."""


class DatasetError(MagpieError, ValueError):
    """A dataset cannot be read, lacks a column, or has rows that a stage cannot process."""


class TemplateError(MagpieError, ValueError):
    """A chat template is missing, or has no prompt that a user message can follow."""


class ModelError(MagpieError, OSError):
    """A model, tokenizer or configuration cannot be found or loaded."""


class DependencyError(MagpieError, ImportError):
    """An optional package is missing; the hint has the pip line."""


class StorageError(MagpieError, OSError):
    """A file of the journal, the cache or the run directory cannot be read or written."""


class HubError(MagpieError, OSError):
    """The Hub rejects a request or cannot be reached. Finished work is kept; the same command resumes."""


class RunLockedError(MagpieError, RuntimeError):
    """Another process owns the run directory; `data` has its host, its pid and when it was last seen."""


class EngineError(MagpieError, RuntimeError):
    """An engine cannot continue."""


class CapabilityError(EngineError):
    """The engine does not support what is requested; raised at the start, before any row is paid for."""


class ModelMismatchError(EngineError):
    """The server serves another model than the requested one, or changed it during the run."""


class PromptMismatchError(EngineError):
    """The server counts other prompt tokens than the tokenizer does."""


class EngineUnavailableError(EngineError, ConnectionError):
    """No endpoint responds, or none has for `max_outage_s`."""


class EngineDiedError(EngineError):
    """The process that runs the model has ended."""


class RunStopped(MagpieError, RuntimeError):
    """The run stopped early. Finished rows are kept; the same command resumes the run."""


class BudgetExceeded(RunStopped):
    """A budget (`max_tokens_total`, `max_hours`, `max_cost`) is used up, or the next row would exceed it."""


class TooManyFailures(RunStopped):
    """Most of the last requests failed."""


class NothingUsable(RunStopped):
    """(Almost) no instruction of the model is accepted; `data` has the counted reasons."""


class RowsPending(RunStopped):
    """Some rows had only transient failures and are not finished."""
