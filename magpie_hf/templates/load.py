"""Load the files that a chat template needs: tokenizer, template text, generation config."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..backoff import Attempts, Backoff
from ..errors import ModelError, TemplateError, quoted
from ..models import ModelRef
from .probe import reason_of


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


logger = logging.getLogger("magpie_hf")
_READ_ATTEMPTS = 3


def template_text(tokenizer: PreTrainedTokenizerBase, given: str | None, name: str) -> str:
    """Return the Jinja source: `given` (text, file, or a name among the tokenizer's templates), else the tokenizer's own.

    Raises:
        TemplateError: the tokenizer has no template, or `given` cannot be read.
    """
    own = getattr(tokenizer, "chat_template", None)
    named: Mapping[str, str] = own if isinstance(own, Mapping) else {}
    if given is None:
        found = named.get("default") if named else own
        if isinstance(found, str) and found.strip():
            return found
        some = (
            f" It has templates named {', '.join(sorted(named))}: set chat_template to one of them." if named else ""
        )
        raise TemplateError(
            f"The tokenizer of {quoted(name)} has no chat template.{some}",
            hint="Use an instruct or chat model, or give the template it was trained with: chat_template=… (Jinja text "
            "or the path of a file).",
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
            f"chat_template = {quoted(given)} is neither Jinja text nor a readable file.",
            hint="Give the path of a template file, or the template itself.",
            template=name,
        ) from error


def load_tokenizer(
    source: str, revision: str | None, name: str, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer of `transformers`. Raises ModelError with a hint."""
    try:
        return _load(source, revision, trust_remote_code)
    except Exception as error:
        hint = "Check that the repository has tokenizer files and that they are complete."
        if "trust_remote_code" in str(error):
            hint = "Its tokenizer has custom code: read it, then set trust_remote_code=True."
        elif isinstance(error, ImportError):
            hint = "Install the missing package (often sentencepiece, tiktoken or protobuf)."
        raise ModelError(
            f"The tokenizer of {quoted(name)} cannot be loaded: {reason_of(error)}", hint=hint, model=name
        ) from error


def _load(source: str, revision: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Load a tokenizer from its tokenizer.json, even if the repository also has a tekken.json.

    With mistral-common installed, AutoTokenizer prefers a class of that package, which has no Jinja template and no
    list of added tokens.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        found = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=trust_remote_code, **_hugging_face_format()
        )
    except Exception as error:
        # transformers 4.57 passes arguments to that class which it does not accept
        if _MISTRAL_CLASS not in str(error):
            raise
    else:
        if not type(found).__name__.startswith(_MISTRAL_CLASS):
            return found
    return PreTrainedTokenizerFast.from_pretrained(source, revision=revision)


_MISTRAL_CLASS = "MistralCommon"


def _hugging_face_format() -> dict[str, bool]:
    """Return the argument that makes transformers ignore tekken.json, if this version supports it."""
    try:
        from transformers.integrations.mistral.tokenizer import resolve_mistral_format  # noqa: F401
    except ImportError:
        return {}
    return {"mistral_format": False}


def generation_config_of(source: str, revision: str | None, name: str = "the model") -> Mapping[str, object]:
    """Return a model's generation config, or {} if it has none.

    Connection errors are retried; if the config still cannot be read, a warning is logged.
    """
    attempts = Attempts(Backoff(), limit=_READ_ATTEMPTS)
    while True:
        try:
            return _generation_config(source, revision)
        except Exception as error:  # noqa: BLE001 (logged below; the tokenizer's end-of-sequence token is used)
            reason = reason_of(error)
            wait_s = attempts.next_wait_s() if _may_be_transient(error) else None
        if wait_s is None:
            break
        time.sleep(wait_s)
    logger.warning(
        "The generation config of %s cannot be read, so its end-of-sequence tokens are unknown: %s",
        quoted(name),
        reason,
    )
    return {}


def _generation_config(source: str, revision: str | None) -> Mapping[str, object]:
    path = _generation_config_file(source, revision)
    found = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("generation_config.json does not hold an object")
    return found


def _generation_config_file(source: str, revision: str | None) -> Path | None:
    """Return the file, or None if the model has none; unlike transformers, raise if the connection failed."""
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    name, directory = "generation_config.json", Path(source)
    if directory.is_dir():
        return directory / name if (directory / name).is_file() else None
    if try_to_load_from_cache(source, name, revision=revision) is _CACHED_NO_EXIST:
        return None
    try:
        return Path(hf_hub_download(source, name, revision=revision))
    except LocalEntryNotFoundError:  # a subclass of EntryNotFoundError, but it means that the Hub is not available
        raise
    except EntryNotFoundError:
        return None


def _may_be_transient(error: Exception) -> bool:
    """Whether another attempt may succeed: not with a damaged file, and not offline."""
    from huggingface_hub import constants

    return isinstance(error, OSError) and not constants.HF_HUB_OFFLINE


def find_template(tokenizer: PreTrainedTokenizerBase, ref: ModelRef, given: str | None) -> str:
    """Return a model's Jinja source: `given`, the tokenizer's, or a separate template file. Raises TemplateError."""
    if given is None and not getattr(tokenizer, "chat_template", None):
        given = separate_template(ref.source, ref.load_revision)
    return template_text(tokenizer, given, ref.name)


def separate_template(source: str, revision: str | None) -> str | None:
    """Return the template in a separate file, or None (multimodal models save it with their processor)."""
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
