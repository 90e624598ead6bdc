"""The errors that magpie_hf raises.

    MagpieError
    ├── ArgumentError           (ValueError)       an argument is invalid
    ├── RecipeError             (ValueError)       a recipe is invalid; names file, line and key
    ├── DatasetError            (ValueError)       a dataset lacks columns or values that a stage reads
    ├── TemplateError           (ValueError)       a chat template is missing or cannot be used
    ├── ModelError              (OSError)          a model or tokenizer cannot be loaded
    ├── DependencyError         (ImportError)      an optional package is missing
    ├── StorageError            (OSError)          a journal, cache or run directory cannot be read or written
    ├── HubError                (OSError)          the Hub rejects a request, or cannot be reached
    ├── RunLockedError          (RuntimeError)     another process owns the run directory
    ├── EngineError             (RuntimeError)
    │   ├── CapabilityError                        the engine does not support what is requested
    │   ├── ModelMismatchError                     the server serves another model than the requested one
    │   ├── PromptMismatchError                    the server and the tokenizer count different prompt tokens
    │   ├── EngineUnavailableError (ConnectionError)   no endpoint responds
    │   └── EngineDiedError                        the process that runs the model ended
    └── RunStopped              (RuntimeError)     the run stopped early and can be resumed
        ├── BudgetExceeded                         a budget is used up
        ├── TooManyFailures                        most of the recent requests failed
        ├── NothingUsable                          almost all instructions were rejected
        └── RowsPending                            some rows only had transient failures

`message` describes the problem, `where` its location, `hint` the remedy, and `data` has the values for programs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


MAX_QUOTED = 200
MAX_LISTED = 40  # names that a hint lists beside a suggestion


def quoted(text: object, limit: int = MAX_QUOTED) -> str:
    """Quote text for an error message, cut to `limit` characters, control characters escaped."""
    shown = str(text)
    cut = shown[:limit]
    return repr(cut) + (f"… ({len(shown)} characters)" if len(shown) > limit else "")


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return a hint with the closest known name, if any, and all known names; of many names, only the closest ones."""
    names = sorted(known)
    is_long = len(names) > MAX_LISTED
    close = difflib.get_close_matches(given, names, n=3 if is_long else 1, cutoff=0.6)
    suggested = " or ".join(f'"{name}"' for name in close)
    start = f"Did you mean {suggested}?" if close else ""
    return start if close and is_long else f"{start} Known: {', '.join(names)}.".lstrip()


class MagpieError(Exception):
    """Base of all errors of magpie_hf.

    Attributes: `message` (the problem), `where` (file, line, key, row; or None), `hint` (what to do; or None), `data`
    (the values that the error is about, by name).
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
    """A chat template is missing, or cannot be used: it has no position where a user message starts."""


class ModelError(MagpieError, OSError):
    """A model, tokenizer or configuration cannot be found or loaded."""


class DependencyError(MagpieError, ImportError):
    """An optional package is missing; the hint has the pip command."""


class StorageError(MagpieError, OSError):
    """A file of the journal, the cache or the run directory cannot be read or written."""


class HubError(MagpieError, OSError):
    """The Hub rejects a request or cannot be reached. Finished rows are kept; run the same command again to resume."""


class RunLockedError(MagpieError, RuntimeError):
    """Another process owns the run directory; `data` has its host, its pid and when it was last seen."""


class EngineError(MagpieError, RuntimeError):
    """An engine cannot continue."""


class CapabilityError(EngineError):
    """The engine does not support what is requested; raised at startup, before any row is generated."""


class ModelMismatchError(EngineError):
    """The server serves another model than the requested one, or its model changed during the run."""


class PromptMismatchError(EngineError):
    """The server counts a different number of prompt tokens than the tokenizer."""


class EngineUnavailableError(EngineError, ConnectionError):
    """No endpoint responds at startup, or no endpoint has responded for `max_outage_s` seconds."""


class EngineDiedError(EngineError):
    """The process that runs the model has ended."""


class RunStopped(MagpieError, RuntimeError):
    """The run stopped early. Finished rows are kept; run the same command again to resume."""


class BudgetExceeded(RunStopped):
    """A budget (`max_tokens_total`, `max_hours`, `max_cost`) is used up, or the next row would exceed it."""


class TooManyFailures(RunStopped):
    """Most of the recent requests failed."""


class NothingUsable(RunStopped):
    """All or almost all instructions of the model were rejected; `data` has the number of rejections by reason."""


class RowsPending(RunStopped):
    """Some rows only had transient failures and are not finished."""
