"""Write exported rows: Parquet or JSONL files, the configuration that reads them, and a summary."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from ..errors import StorageError
from ..hub.push import write_shards
from ..storage.disk import writing
from ..storage.loading import quiet_datasets
from ..version import __version__
from .forms import TOOL_CALL
from .targets import Target


if TYPE_CHECKING:
    from datasets import Dataset

    from .convert import Converted

SUMMARY = "export.yaml"
_FRESH = ".export-new"
_HINT = "Free disk space, or choose another output directory, and export again."


def write_export(parts: Mapping[str, Converted], target: Target, place: Path, model: str | None = None) -> list[Path]:
    """Write the splits of an export and return its files. The files of an earlier export are replaced; others are kept.

    Raises:
        StorageError: the directory contains files but no export, or cannot be written.
    """
    check_output(place)
    fresh = place / _FRESH
    with writing("the export", place, hint=_HINT), quiet_datasets():
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for split, part in parts.items():
            _write_rows(part.rows, target, fresh, split)
        for name, text in _configs(parts, target, place, model).items():
            (fresh / name).write_text(text, "utf-8")
        names = [path.relative_to(fresh) for path in sorted(fresh.rglob("*")) if path.is_file()]
        (fresh / SUMMARY).write_text(_summary(parts, target, names), "utf-8")
        _remove_earlier(place)
        for made in [*names, Path(SUMMARY)]:
            (place / made).parent.mkdir(parents=True, exist_ok=True)
            (fresh / made).replace(place / made)
        shutil.rmtree(fresh, ignore_errors=True)
    return [place / name for name in [*names, Path(SUMMARY)]]


def check_output(place: Path) -> None:
    """Raise if the directory contains files but no export.

    Raises:
        StorageError: it does, or it is a file.
    """
    others = place.is_dir() and any(path.name != _FRESH for path in place.iterdir())
    if place.is_file() or (others and not (place / SUMMARY).is_file()):
        found = "is a file" if place.is_file() else "directory contains other files"
        raise StorageError(
            f"The export cannot be written here: this {found}.",
            where=str(place),
            hint="Choose another output directory (output_dir=…, --output).",
        )


def _remove_earlier(place: Path) -> None:
    """Remove the files that an earlier export listed in its summary."""
    import yaml

    try:
        facts = yaml.safe_load((place / SUMMARY).read_text("utf-8"))
        names = [str(name) for name in facts["files"]]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return
    for name in names:
        path = place / name
        if path.resolve().is_relative_to(place.resolve()):
            path.unlink(missing_ok=True)
            if path.parent != place and path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()


def _write_rows(rows: Dataset, target: Target, place: Path, split: str) -> None:
    if target.file_format == "parquet":
        write_shards(rows, place / "data", split)
        return
    with (place / f"{split}.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in _without_null_tools(rows))


def _without_null_tools(rows: Dataset) -> Iterable[dict[str, Any]]:
    for row in rows:
        if "tools" in row and not row["tools"]:
            del row["tools"]
        yield row


def _configs(parts: Mapping[str, Converted], target: Target, place: Path, model: str | None) -> dict[str, str]:
    """Return the texts of the configuration files by name."""
    part = next(iter(parts.values()))
    if target.name == "llamafactory":
        info = {_entry_name(place, split): _entry(one, split) for split, one in parts.items()}
        return {"dataset_info.json": json.dumps(info, indent=2, ensure_ascii=False) + "\n"}
    if part.shape.config is None:
        return {}
    source = resources.files("magpie_hf.exports").joinpath("configs", part.shape.config).read_text("utf-8")
    key = part.form.name if part.form.name not in (None, "content", "drop") else "reasoning_content"
    text = Template(source).substitute(
        directory=json.dumps(str(place.resolve()), ensure_ascii=False),
        train=json.dumps(str(place.resolve() / "train.jsonl"), ensure_ascii=False),
        model=json.dumps(model or "meta-llama/Meta-Llama-3-8B", ensure_ascii=False),
        thinking=key,
    )
    return {part.shape.config: text}


def _entry_name(place: Path, split: str) -> str:
    return place.resolve().name if split == "train" else f"{place.resolve().name}_{split}"


def _entry(part: Converted, split: str) -> dict[str, Any]:
    """Return the entry of dataset_info.json. The formatting `openai` is not used: it adds a text to system prompts."""
    columns = {name: name for name in part.rows.column_names if name in ("messages", "chosen", "rejected", "tools")}
    tags = {
        "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
        "observation_tag": "tool", "function_tag": TOOL_CALL, "system_tag": "system",
    }  # fmt: skip
    ranking = {"ranking": True} if part.task == "preference" else {}
    return {"file_name": f"{split}.jsonl", "formatting": "sharegpt", **ranking, "columns": columns, "tags": tags}


def _summary(parts: Mapping[str, Converted], target: Target, files: Iterable[Path]) -> str:
    """Return the summary as YAML: target, rows and skipped rows of each split, the form of reasoning, and files."""
    import yaml

    first = next(iter(parts.values()))
    facts = {
        "target": target.name,
        "task": first.task,
        "magpie_hf": __version__,
        "splits": {split: {"rows": len(part.rows), "skipped": dict(part.skipped)} for split, part in parts.items()},
        "reasoning": first.form.name,
        "files": [name.as_posix() for name in files],
    }
    return yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)
