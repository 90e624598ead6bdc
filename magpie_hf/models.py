"""Resolving model names: Hub ids, local directories and the bundled demo models."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

from .errors import ModelError, quoted


DEMO = "demo"
_HEAD_AND_TAIL_BYTES = 1 << 20
_HASHED = ("*.json", "*.jinja", "*.model", "*.txt", "*.safetensors", "*.bin")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class ModelRef(NamedTuple):
    """A resolved model.

    Attributes:
        name: Its name in identities, cards and rows.
        source: The first argument of `from_pretrained`.
        revision: A commit; for a local directory "sha:" and a hash of its content.
        load_revision: The argument `revision` of `from_pretrained`.
    """

    name: str
    source: str
    revision: str | None
    load_revision: str | None


def resolve_model(name: str, revision: str | None = None, *, kind: str = "model") -> ModelRef:
    """Resolve a Hub id, a local directory or the name "demo", and pin the revision.

    A Hub id's revision is resolved to a commit: by the Hub, or by the local cache when offline. A local directory is
    identified by its content (small files whole, weights by size and both ends), never by its path.

    `kind`: the demo model that "demo" refers to: "model", "reward" or "embedder".

    Raises:
        ModelError: it is neither a model directory nor an accessible repository.
    """
    if name == DEMO:
        return demo_model(kind)
    directory = Path(os.path.expanduser(name))
    if directory.is_dir():
        if not (directory / "config.json").is_file():
            raise ModelError(
                f"The directory {quoted(name)} contains no model.", hint="A model directory has a config.json."
            )
        return ModelRef(directory.resolve().name, str(directory), "sha:" + content_hash(directory), None)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"Model directory {quoted(name)} not found.", hint="Check the path.")
    commit = resolve_commit(name, revision)
    return ModelRef(name, name, commit or revision, commit or revision)


def named_model(name: str, revision: str | None = None) -> ModelRef:
    """Return the model of a chat API by its name: it need not be on the Hub, so nothing is looked up.

    Of a local directory, only the last part of the path is used.
    """
    directory = Path(os.path.expanduser(name))
    is_local = name != DEMO and directory.is_dir()
    return ModelRef(directory.resolve().name if is_local else name, name, revision, None)


def demo_model(kind: str = "model") -> ModelRef:
    """Return the bundled demo model of that kind: "model" (chat), "reward", or "embedder" (the chat model's states)."""
    directory = Path(__file__).parent / "demo" / ("reward" if kind == "reward" else "model")
    return ModelRef(DEMO, str(directory), "sha:" + content_hash(directory), None)


def content_hash(directory: Path) -> str:
    """Hash a model directory: names, sizes, and up to 1 MiB from the start and the end of each file."""
    digest = hashlib.blake2b(digest_size=20)
    files = sorted({path for pattern in _HASHED for path in directory.glob(pattern)})
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(_HEAD_AND_TAIL_BYTES))
            if size > _HEAD_AND_TAIL_BYTES:
                file.seek(max(_HEAD_AND_TAIL_BYTES, size - _HEAD_AND_TAIL_BYTES))
                digest.update(file.read())
    return digest.hexdigest()


def resolve_commit(repo_id: str, revision: str | None = None) -> str | None:
    """Return the commit of a Hub model's `revision` (default: main), or None if it is unknown.

    Raises:
        ModelError: the repository does not exist, is gated, or the Hub is not available and nothing is cached.
    """
    if revision and _COMMIT.fullmatch(revision):
        return revision
    import huggingface_hub
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        return str(huggingface_hub.HfApi().model_info(repo_id, revision=revision, timeout=10).sha)
    except errors.GatedRepoError:
        raise ModelError(
            f"The model {quoted(repo_id)} is gated.",
            hint="Request access on its page, then run `hf auth login` or set HF_TOKEN.",
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"The model {quoted(repo_id)} has no revision {quoted(revision)}.") from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise ModelError(
            f"Model {quoted(repo_id)} not found: neither a local directory nor a repository on the Hub.",
            hint='Check the spelling. A private model requires `hf auth login`; "demo" is the bundled model.',
        ) from None
    except Exception as error:
        cached = try_to_load_from_cache(repo_id, "config.json", revision=revision)
        if isinstance(cached, str):
            return Path(cached).parent.name
        raise ModelError(
            f"The model {quoted(repo_id)} is not cached, and the Hub is not available: {type(error).__name__}.",
            hint="Check the network (or HF_ENDPOINT, HF_HUB_OFFLINE), or use a local directory.",
        ) from error
