"""What a reader of the test Hub sees at each commit."""

from __future__ import annotations

import fnmatch
import io

import pyarrow.parquet as pq


def whole_at_every_commit(server, repo, ref="main"):
    """Assert that no commit shows half a config, or data that belong to none; return the configs of the last."""
    configs = {}
    for commit in server.history(repo, ref):
        metadata = server.metadata(repo, commit)
        infos = metadata.get("dataset_info") or []
        infos = {info.get("config_name", "default"): info for info in (infos if isinstance(infos, list) else [infos])}
        shown = set()
        configs = {}
        for config in metadata.get("configs", []):
            name = config["config_name"]
            rows = {split["name"]: split["num_examples"] for split in infos[name]["splits"]}
            for entry in config["data_files"]:
                paths = [path for path in commit.files if fnmatch.fnmatch(path, entry["path"])]
                there = sum(num_rows(server, repo, path, commit) for path in paths)
                assert paths, (name, commit.title)
                assert there == rows[entry["split"]], (name, commit.title)
                shown.update(paths)
            configs[name] = rows
        visible = {p for p in commit.files if p.endswith(".parquet") and not p.startswith(".")}
        assert visible == shown, commit.title
    return configs


def num_rows(server, repo, path, commit):
    return pq.read_metadata(io.BytesIO(server.read(repo, path, commit))).num_rows
