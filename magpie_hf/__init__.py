"""Synthesize, annotate, filter and publish alignment data with the Magpie method, natively in 🤗 datasets.

import magpie_hf
ds = magpie_hf.synthesize("meta-llama/Meta-Llama-3-8B-Instruct", num_rows=10_000)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .version import __version__


# public name -> submodule; imported when first used. No name may equal a submodule's.
_EXPORTS = {
    "ChatTemplate": "templates",
    "GridPoint": "sampling",
    "MagpieError": "errors",
    "Recipe": "recipe",
    "RunStopped": "errors",
    "SamplingParams": "sampling",
    "agreement": "reports",
    "annotate": "api_rows",
    "load_recipe": "recipe",
    "push_to_hub": "api_hub",
    "report": "api_rows",
    "resume_from_hub": "api_hub",
    "run": "api",
    "select": "api_rows",
    "synthesize": "api",
    "write_card": "api_rows",
}

__all__ = [
    "ChatTemplate",
    "GridPoint",
    "MagpieError",
    "Recipe",
    "RunStopped",
    "SamplingParams",
    "__version__",
    "agreement",
    "annotate",
    "load_recipe",
    "push_to_hub",
    "report",
    "resume_from_hub",
    "run",
    "select",
    "synthesize",
    "write_card",
]

if TYPE_CHECKING:
    from .api import run, synthesize
    from .api_hub import push_to_hub, resume_from_hub
    from .api_rows import annotate, report, select, write_card
    from .errors import MagpieError, RunStopped
    from .recipe import Recipe, load_recipe
    from .reports import agreement
    from .sampling import GridPoint, SamplingParams
    from .templates import ChatTemplate


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'magpie_hf' has no attribute {name!r}")
    return getattr(importlib.import_module(f"magpie_hf.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_EXPORTS))
