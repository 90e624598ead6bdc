"""Push a config to a dataset repository: Parquet shards, metadata and card in one commit.

The shards are uploaded before the commit, one at a time; a push that is interrupted does not upload them again. Files
that the Hub already has are not sent.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..columns import types_without_entries
from ..errors import DatasetError, quoted
from ..storage.disk import writing
from .card import render_card
from .facts import FORMAT, chart_sheet
from .manifest import ROOT
from .names import check_names
from .remote import Changes, Head, Remote


if TYPE_CHECKING:
    from datasets import Dataset

DEFAULT = "default"
SHARD_BYTES = 500_000_000
"""As in `Dataset.push_to_hub`."""
MOST_SHARDS = 100
"""Maximum number of data files per commit, recommended by the storage page of the Hub; larger datasets get larger shards."""
_SHARD = re.compile(r"[\w.-]+-\d{5}-of-\d{5}\.parquet")


class ConfigFiles(NamedTuple):
    """A config to publish: its local shards by split, in order, and the facts for its card."""

    name: str
    shards: Mapping[str, Sequence[Path]]
    facts: Mapping[str, Any]


def directory_of(config_name: str) -> str:
    """Return the folder of a config in a repository, as in `Dataset.push_to_hub`."""
    return "data" if config_name == DEFAULT else config_name


def write_shards(dataset: Dataset, target: Path, split: str = "train", shard_bytes: int = SHARD_BYTES) -> list[Path]:
    """Write rows as Parquet files named SPLIT-00000-of-0000N; the same rows give the same bytes.

    Raises:
        StorageError: they cannot be written.
    """
    size = dataset._estimate_nbytes()
    count = max(1, min(MOST_SHARDS, math.ceil(size / shard_bytes)))
    paths = [target / f"{split}-{number:05d}-of-{count:05d}.parquet" for number in range(count)]
    with writing("the dataset", target, hint="Free disk space and run the same command again."):
        target.mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(paths):
            dataset.shard(num_shards=count, index=number, contiguous=True).to_parquet(str(path))
    return paths


def push_config(remote: Remote, config: ConfigFiles, extra: Mapping[str, bytes] | None = None) -> str:
    """Push a config: shards, facts, charts, metadata and card in one commit. Return the id of the commit.

    `extra`: other small files for the same commit, by path.

    Raises:
        HubError: the Hub rejects the push or cannot be reached.
    """
    check_names(config.name, list(config.shards))
    directory = directory_of(config.name)
    data = {f"{directory}/{path.name}": path for paths in config.shards.values() for path in paths}

    def changes(head: Head) -> Changes:
        found = _known_configs(remote, head)
        dropped = _dropped_splits(found.get(config.name), config)
        old = [path for path in head.files if _is_shard_of(path, directory, {*config.shards, *dropped})]
        described = _described(remote, head, config, found, dropped)
        return Changes({**data, **(extra or {}), **described}, [p for p in old if p not in data])

    return remote.commit(changes, f"Publish {config.name} with magpie_hf")


def _dropped_splits(before: Mapping[str, Any] | None, config: ConfigFiles) -> set[str]:
    """Return the test split if a run wrote it and the run's recipe no longer has one: its rows are in `train` now."""
    if before is None or not config.facts["recipe"] or "test" in config.shards:
        return set()
    return {"test"} & {*before["splits"]} if "test_size" in before["recipe"].get("output", {}) else set()


def _is_shard_of(path: str, directory: str, splits: Collection[str]) -> bool:
    folder, _, name = path.rpartition("/")
    return folder == directory and bool(_SHARD.fullmatch(name)) and name.rsplit("-", 3)[0] in splits


def _described(
    remote: Remote, head: Head, config: ConfigFiles, found: dict[str, dict[str, Any]], dropped: Collection[str]
) -> dict[str, bytes]:
    """Return the files that describe the repository with this config: facts, charts, card. `found`: known configs."""
    before = found.get(config.name)
    if before is not None:  # a push of one split keeps the other splits
        config = config._replace(facts=_with_other_splits(config.facts, before, dropped))
    found[config.name] = dict(config.facts)
    found = {name: found[name] for name in sorted(found, key=_rank)}
    existing = remote.read("README.md", head.commit).decode("utf-8", "replace") if "README.md" in head.files else ""
    files: dict[str, bytes] = {}
    plots: dict[str, str] = {}
    for name, facts in found.items():
        picture = chart_sheet(facts["statistics"], name)
        if picture:
            plots[name] = f"{ROOT}/plots/{name}.svg"
            files[plots[name]] = picture.encode()
    text = json.dumps(found[config.name], ensure_ascii=False, indent=1, default=str)
    files[f"{ROOT}/configs/{config.name}.json"] = text.encode("utf-8", "replace")
    patterns = {
        name: {split: f"{directory_of(name)}/{split}-*" for split in facts["splits"]} for name, facts in found.items()
    }
    card = render_card(found, repo_id=remote.repo_id, existing=existing, data_files=patterns, plots=plots)
    files["README.md"] = card.encode("utf-8", "replace")
    return files


def _rank(name: str) -> tuple[int, str]:
    """Sort key of configs: the usual order of a run, then the name."""
    usual = (DEFAULT, "raw", "filtered", "mt", "preference")
    return (usual.index(name) if name in usual else len(usual), name)


def _known_configs(remote: Remote, head: Head) -> dict[str, dict[str, Any]]:
    """Return the facts of the configs that are already published."""
    found = {}
    for path in sorted(head.files):
        match = re.fullmatch(rf"{re.escape(ROOT)}/configs/([\w.-]+)\.json", path)
        if match:
            facts = json.loads(remote.read(path, head.commit))
            if isinstance(facts, dict) and facts.get("format") == FORMAT:
                found[match[1]] = facts
    return found


def _with_other_splits(
    facts: Mapping[str, Any], before: Mapping[str, Any], dropped: Collection[str] = ()
) -> dict[str, Any]:
    """Return the facts of a config with its existing splits added; statistics are those of the first split."""
    usual = ("train", "validation", "test")
    splits = {name: rows for name, rows in before["splits"].items() if name not in dropped} | facts["splits"]
    order = sorted(splits, key=lambda name: usual.index(name) if name in usual else len(usual))
    known = {split["name"]: split for split in [*before["info"]["splits"], *facts["info"]["splits"]]}
    sizes = {**before.get("sizes", {}), **facts["sizes"]}
    newest = facts if order[0] in facts["splits"] else before
    return {
        **newest,
        "splits": {name: splits[name] for name in order},
        "sizes": {name: sizes[name] for name in order if name in sizes},
        "info": {**facts["info"], "splits": [known[name] for name in order]},
    }


def check_rows(splits: Mapping[str, Dataset]) -> None:
    """Raise DatasetError for rows that cannot be published as one config."""
    first = types_without_entries(next(iter(splits.values())).features)
    for name, rows in splits.items():
        if types_without_entries(rows.features) != first:
            raise DatasetError(f"The split {quoted(name)} has other columns than the first split.", column=name)
        if not rows.column_names or not len(rows):
            raise DatasetError(f"The split {quoted(name)} has no rows.", hint="`load_dataset` could not load it.")
