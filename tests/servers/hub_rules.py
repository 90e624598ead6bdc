"""The Hub's rules for the metadata of a dataset card, as far as the package uses them (huggingface.co/docs/hub/datasets-cards)."""

from __future__ import annotations

import re
from typing import Any

import yaml


LICENCES = {
    "apache-2.0", "mit", "other", "unknown", "gemma", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4",
    "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0", "cc0-1.0", "openrail", "bsd-3-clause", "odc-by",
}  # fmt: skip
SIZES = {"n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B"}
TASKS = {"text-generation", "question-answering", "text-classification", "reinforcement-learning", "other"}


def card_errors(given: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    """Return {"errors", "warnings"} for the content of a card, as POST /api/validate-yaml does."""
    errors = [{"message": message} for message in _problems(given["content"])]
    return {"errors": errors, "warnings": []}


def _problems(content: str) -> list[str]:
    found = re.match(r"\A---\r?\n(.*?)\r?\n---\r?(?:\n|\Z)", content, re.DOTALL)
    if not found:
        return []
    try:
        data = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return [f"YAML: {error}"]
    if not isinstance(data, dict):
        return ["the metadata is not a mapping"]
    problems = []
    if "license" in data and data["license"] not in LICENCES:
        problems.append(f'"license" must be one of the list, not {data["license"]!r}')
    if not set(_list(data.get("size_categories"))) <= SIZES:
        problems.append('"size_categories" must be of the list')
    if not set(_list(data.get("task_categories"))) <= TASKS:
        problems.append('"task_categories" must be of the list')
    if any(not re.fullmatch(r"[a-z]{2,3}|code|multilingual", str(code)) for code in _list(data.get("language"))):
        problems.append('"language" must be ISO 639 codes')
    if any(not isinstance(tag, str) or len(tag) > 100 for tag in _list(data.get("tags"))):
        problems.append('"tags" must be short texts')
    names = [config.get("config_name") for config in _list(data.get("configs"))]
    if len(set(names)) != len(names) or None in names:
        problems.append('"configs" must have different names')
    if sum(bool(config.get("default")) for config in _list(data.get("configs"))) > 1:
        problems.append("one config at most is the default")
    return problems


def _list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]
