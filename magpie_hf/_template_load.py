"""Load what a chat template needs: tokenizer, template text, generation config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._template_probe import reason_of
from .errors import ModelError, TemplateError, quoted


def template_text(tokenizer: Any, given: str | None, name: str) -> str:
    """Return the Jinja source: `given` (text, file, or a name among the tokenizer's templates), else the tokenizer's own.

    Raises:
        TemplateError: there is none, or `given` is neither.
    """
    own = getattr(tokenizer, "chat_template", None)
    named: Mapping[str, str] = own if isinstance(own, Mapping) else {}
    if given is None:
        found = named.get("default") if named else own
        if isinstance(found, str) and found.strip():
            return found
        some = f" It has templates named {', '.join(sorted(named))}: name one as chat_template." if named else ""
        raise TemplateError(
            f"The tokenizer of {quoted(name)} has no chat template.{some}",
            hint="Use an instruct or chat model, or give the template it was trained with: chat_template=… (Jinja text "
            "or a file of it).",
            template=name,
        )
    if given in named:
        return named[given]
    if "{{" in given or "{%" in given:
        return given
    path = Path(given).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise TemplateError(
            f"chat_template = {quoted(given)} is neither Jinja text nor a file that can be read.",
            hint="Give a path, or the template itself.",
            template=name,
        ) from error


def load_tokenizer(source: str, revision: str | None, name: str, *, trust_remote_code: bool = False) -> Any:
    """Load a tokenizer. Raises ModelError with what to do."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:
        hint = "Check that the repository has tokenizer files and that they are complete."
        if "trust_remote_code" in str(error):
            hint = "Its tokenizer is code of its own: read it, then allow it with trust_remote_code=True."
        elif isinstance(error, ImportError):
            hint = "Install what it asks for (often sentencepiece, tiktoken or protobuf)."
        raise ModelError(
            f"The tokenizer of {quoted(name)} cannot be loaded: {reason_of(error)}", hint=hint, model=name
        ) from error


def generation_config_of(source: str, revision: str | None) -> Any:
    """Return a model's generation config, or None."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(source, revision=revision)
    except Exception:  # noqa: BLE001 (many models have none; the tokenizer's own end of sequence is left then)
        return None


def template_beside(source: str, revision: str | None) -> str | None:
    """Return a template that lies beside the tokenizer (multimodal models keep it with their processor)."""
    from transformers.utils import cached_file

    for file in ("chat_template.jinja", "chat_template.json"):
        try:
            path = cached_file(source, file, revision=revision, _raise_exceptions_for_missing_entries=False)
            if path is None:
                continue
            text = Path(path).read_text(encoding="utf-8")
            return text if file.endswith(".jinja") else str(json.loads(text)["chat_template"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
