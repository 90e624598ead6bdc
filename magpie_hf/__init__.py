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
    "ChatTemplate": "templates.template",
    "GridPoint": "sampling",
    "MagpieError": "errors",
    "Recipe": "recipe.schema",
    "RunStopped": "errors",
    "SamplingParams": "sampling",
    "agreement": "reports",
    "annotate": "api.rows",
    "export": "api.exporting",
    "load_recipe": "recipe.schema",
    "push_to_hub": "api.hub",
    "report": "api.rows",
    "resume_from_hub": "api.hub",
    "run": "api.synthesis",
    "select": "api.rows",
    "synthesize": "api.synthesis",
    "write_card": "api.rows",
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
    "export",
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
    from .api.exporting import export
    from .api.hub import push_to_hub, resume_from_hub
    from .api.rows import annotate, report, select, write_card
    from .api.synthesis import run, synthesize
    from .errors import MagpieError, RunStopped
    from .recipe.schema import Recipe, load_recipe
    from .reports import agreement
    from .sampling import GridPoint, SamplingParams
    from .templates.template import ChatTemplate


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'magpie_hf' has no attribute {name!r}")
    return getattr(importlib.import_module(f"magpie_hf.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_EXPORTS))
