"""What the generating model's licence asks of a dataset made with it: the Hub's licence id, and words to show.

Read off the model cards of the families; a model that is not here has no default: its user must say.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ..errors import ArgumentError, quoted


class Licence(NamedTuple):
    """`id`: as the Hub's card metadata names it. `notice`: what must be shown with the data, or ""."""

    id: str
    notice: str = ""


_LLAMA = "Models trained on this data must have “Llama” at the beginning of their name."
_BUILT = "Built with {name}. " + _LLAMA
# pattern of the model id (lower case), licence id, notice; the first that fits counts
_FAMILIES: tuple[tuple[str, str, str], ...] = (
    (r"^demo$", "apache-2.0", ""),
    (r"llama-?4", "llama4", _BUILT.format(name="Llama")),
    (r"llama-?3\.3", "llama3.3", _BUILT.format(name="Llama")),
    (r"llama-?3\.2", "llama3.2", _BUILT.format(name="Llama")),
    (r"llama-?3\.1", "llama3.1", _BUILT.format(name="Llama")),
    (r"llama-?3(?![.\d])", "llama3", "Built with Meta Llama 3. " + _LLAMA.replace("“Llama”", "“Llama 3”")),
    (r"llama-?2", "llama2", ""),
    (r"^qwen/qwen2\.5-(?:coder-|math-)?3b", "other", "Qwen Research License: not for commercial use."),
    (
        r"^qwen/qwen2(?:\.5)?-(?:math-)?72b",
        "other",
        "Qwen License: say that Qwen made it; above 100 million users ask first.",
    ),
    (r"^qwen/qwen(?:2|2\.5|3)(?![.\d])", "apache-2.0", ""),
    (r"^google/gemma-", "gemma", "Gemma is provided under and subject to the Gemma Terms of Use."),
    (r"^microsoft/phi-", "mit", ""),
    (r"^mistralai/(?:mistral-7b|mixtral)", "apache-2.0", ""),
    (r"^openai/gpt-oss-", "apache-2.0", ""),
    (r"^allenai/olmo-?[23]", "apache-2.0", ""),
    (r"^huggingfacetb/smollm", "apache-2.0", ""),
)


def licence_of(model: str, given: str | None = None) -> Licence:
    """Return the licence for a dataset that a model generated; `given` overrides the id.

    Raises:
        ArgumentError: the model's family is not known, and none is given.
    """
    name = model.lower()
    for pattern, identifier, notice in _FAMILIES:
        if re.search(pattern, name):
            return Licence(given or identifier, notice)
    if given:
        return Licence(given)
    raise ArgumentError(
        f"What licence data of {quoted(model)} has is not known here.",
        hint="Read the model's licence, then give one: license=… (--license), as apache-2.0 or other.",
        key="license",
    )
