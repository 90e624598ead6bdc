"""`push_to_hub` and `resume_from_hub`: publish rows or a run, and resume a run from its state on the Hub."""

from __future__ import annotations

import logging
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import ArgumentError
from ..hub.download import download_run, find_run
from ..hub.facts import config_facts
from ..hub.manifest import run_name
from ..hub.names import REJECTED, check_names
from ..hub.publisher import Publisher
from ..hub.push import ConfigFiles, check_rows, push_config, write_shards
from ..hub.remote import Remote
from ..hub.settings import PushSettings
from ..recipe.schema import Recipe, load_recipe
from ..session.publishing import prepared, push_command
from ..session.status import run_facts
from ..storage.checksums import check_files
from ..storage.loading import as_dataset, load_rows, quiet_datasets, rows_with_all_columns, run_splits
from ..storage.rundir import RunDir, is_run
from ..storage.state import RunState, SavedRows
from .recipes import RowSource
from .synthesis import run as run_recipe


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger("magpie_hf")


def push_to_hub(
    dataset: RowSource,
    repo_id: str,
    *,
    config_name: str = "default",
    split: str = "train",
    private: bool | None = None,
    gated: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    license: str | None = None,
    state: bool = True,
    retry_timeout_s: float | None = None,
) -> str:
    """Publish rows as a config of a dataset repository, with a generated card; return the URL of the repository.

    Shards, metadata and card are added in one commit. To resume an interrupted push, make the same call again: files
    that are already on the Hub are not uploaded again. Other configs stay as they are.

    Args:
        dataset: A Dataset, a DatasetDict of splits, a table or list of rows, or a path or Hub id. For a run directory,
            its subsets, recipe, funnel and, under `.magpie/`, its finished rows are published too.
        repo_id: "namespace/name". Without a namespace, the account that is logged in is used.
        config_name: The config of the rows.
        split: The name of the split, if one Dataset is given.
        private: Whether a new repository is private. Existing repositories are not changed.
        gated: "auto" or "manual": users must request access; False removes the gate.
        revision: The branch to push to; created if it does not exist.
        create_pr: Push to a new pull request.
        license: A Hub license id. Required if the license of the model is not known.
        state: Whether to publish a run's finished rows, so that `resume_from_hub` can resume the run.
        retry_timeout_s: How long to retry while the Hub cannot be reached (default: ten minutes).

    Raises:
        ArgumentError: a name is invalid, or the license of the model is not known and `license` is not given.
        HubError: you are not logged in, have no write access, or the Hub cannot be reached; the hint says how to resume.
    """
    check_names(config_name, [split])
    settings = PushSettings(
        repo_id, config_name, private, gated, revision, create_pr, license, state, retry_timeout_s=retry_timeout_s
    )
    if isinstance(dataset, (str, Path)):
        place = Path(dataset).expanduser()
        if is_run(place):
            return _push_run(place, settings)
        dataset = load_rows(str(dataset))
    return _push_rows(dataset, split, settings)


def _push_rows(dataset: RowSource, split: str, settings: PushSettings) -> str:
    splits = _splits(dataset, split)
    check_names(settings.config, list(splits))
    check_rows(splits)
    with tempfile.TemporaryDirectory(prefix="magpie-push-") as directory, quiet_datasets():
        shards = {name: write_shards(rows, Path(directory), name) for name, rows in splits.items()}
        sizes = {name: sum(path.stat().st_size for path in paths) for name, paths in shards.items()}
        facts = config_facts(splits, license=settings.license, sizes=sizes)
        remote = Remote(
            settings.repo,
            revision=settings.revision,
            create_pr=settings.create_pr,
            resume="the same magpie_hf.push_to_hub call",
            retry_timeout_s=settings.retry_timeout_s,
        ).open(private=settings.private, gated=settings.gated)
        push_config(remote, ConfigFiles(settings.config, shards, facts))
    return remote.url


def _splits(dataset: RowSource, split: str) -> dict[str, Dataset]:
    """Return the splits of a DatasetDict; other rows, a mapping of columns too, are one split."""
    import datasets

    if isinstance(dataset, Mapping):
        splits = {name: rows for name, rows in dataset.items() if isinstance(rows, datasets.Dataset)}
        if splits and len(splits) == len(dataset):
            return splits
    return {split: as_dataset(dataset)}


def _push_run(place: Path, settings: PushSettings) -> str:
    with RunDir(place).own() as run_dir:
        subsets = list(_subsets(run_dir, settings))  # before anything is created on the Hub
        publisher = Publisher(run_dir, settings, resume=push_command(run_dir, settings)).open()
        for subset in subsets:
            publisher.ready(subset)
        url = publisher.finish()
        run_dir.save()
    return url


def _subsets(run_dir: RunDir, settings: PushSettings) -> Iterator[ConfigFiles]:
    """Yield the configs that a finished run publishes: its subsets, its dataset, and its rejected samples.

    The rejected samples are last, because `load_dataset` loads the first config if none is named "default".
    """
    subsets = run_dir.state.subsets
    if settings.config in subsets:
        raise ArgumentError(f"{settings.config!r} is also the name of a subset of this run.", key="config_name")
    for config, saved in subsets.items():
        if saved.rows and config != REJECTED:
            yield _subset(run_dir.path, settings, config, saved)
    yield from _final_rows(run_dir, settings)
    if REJECTED in subsets and subsets[REJECTED].rows:
        yield _subset(run_dir.path, settings, REJECTED, subsets[REJECTED])


def _subset(place: Path, settings: PushSettings, config: str, saved: SavedRows) -> ConfigFiles:
    known, funnel = run_facts(place, config)
    check_files(place, saved.files)
    rows = _parquet([place / name for name in saved.files])
    subset = prepared(place, settings, {"train": rows}, config, list(saved.files), run=known, funnel=funnel)
    assert subset is not None  # noqa: S101 (it has rows)
    return subset


def _final_rows(run_dir: RunDir, settings: PushSettings) -> Iterator[ConfigFiles]:
    place, output = run_dir.path, run_dir.state.output
    if output is not None and not output.rows:
        logger.warning(
            "The dataset of the run has no rows: no row met its conditions. Only the subsets are published."
        )
        return
    known, funnel = run_facts(place)
    files = list(output.files) if output is not None else []
    last = prepared(
        place,
        settings,
        run_splits(place),
        settings.config,
        files,
        run=known,
        funnel=funnel,
        described=rows_with_all_columns(place),
    )
    if last is not None:
        yield last


def _parquet(files: list[Path]) -> Dataset:
    import datasets

    with quiet_datasets():
        return datasets.load_dataset("parquet", data_files=[str(path) for path in files], split="train")


def resume_from_hub(
    repo_id: str,
    *,
    run: str | None = None,
    output: str | Path | None = None,
    revision: str | None = None,
    overrides: Mapping[str, object] | None = None,
    push: bool = True,
    accept_failures: bool = False,
    allow_mixed: bool = False,
    force: bool = False,
    take_over: bool = False,
    show_progress: bool | None = None,
) -> Dataset | DatasetDict:
    """Resume a run on this machine from its state on the Hub, and return its dataset as `run` does.

    Finished rows, including rejected ones, are not generated again. Settings that depend on the machine are not saved
    on the Hub: give the URLs of endpoints and the path of a local model as `overrides`.

    Args:
        repo_id: The repository that the run was pushed to.
        run: The name of the run. Required if the repository has several runs.
        output: The run directory. Default: one in the Hugging Face cache.
        revision: Branch, pull request or commit to read; results are pushed to the same branch or pull request.
        overrides: As in `run`, e.g., {"engine.endpoints": ["http://localhost:8080"], "num_rows": 20_000}.
        push: Whether to continue to publish the run to the repository.
        accept_failures: As in `synthesize`; so are the following arguments.
        allow_mixed: Continue even if the server changes its model during the run.
        force: Run in `output` even if it contains the run of another recipe; the dataset of that run is replaced.
        take_over: Take over the run directory immediately, even if another process owns it.
        show_progress: Show a progress bar.

    Raises:
        ArgumentError: the repository has several runs and `run` is not given.
        HubError: the repository cannot be read, or has no run.
    """
    fetched = fetch_run(
        repo_id, run=run, output=output, revision=revision, overrides=overrides, push=push, take_over=take_over
    )
    return run_recipe(
        fetched.recipe,
        output=fetched.run_dir,
        shard=fetched.shard,
        accept_failures=accept_failures,
        allow_mixed=allow_mixed,
        force=force,
        take_over=take_over,
        show_progress=show_progress,
    )


class FetchedRun(NamedTuple):
    """A run whose state was downloaded: its recipe with overrides, its directory, and its shard ("i/n" or None)."""

    recipe: Recipe
    run_dir: Path
    shard: str | None


def fetch_run(
    repo_id: str,
    *,
    run: str | None = None,
    output: str | Path | None = None,
    revision: str | None = None,
    overrides: Mapping[str, object] | None = None,
    push: bool = True,
    take_over: bool = False,
) -> FetchedRun:
    """Download a run's state from the Hub into its run directory; arguments and errors as in `resume_from_hub`."""
    from huggingface_hub.constants import HF_HOME

    remote = Remote(repo_id, revision=revision, resume=f"magpie-hf resume {shlex.quote(repo_id)}")
    name, head = find_run(remote, run)
    place = Path(output).expanduser() if output else Path(HF_HOME) / "magpie" / name
    with RunDir(place).own(take_over=take_over):
        state = download_run(remote, name, head, place)
    logger.info("%s: downloaded %s to %s", repo_id, run_name(state), place)
    changes: dict[str, object] = {"push": _push_section(repo_id, revision, state)} if push else {}
    recipe = {key: value for key, value in state.recipe.items() if key != "push"}
    return FetchedRun(load_recipe(recipe, {**changes, **(overrides or {})}), place, state.shard_name)


def _push_section(repo_id: str, revision: str | None, state: RunState) -> dict[str, object]:
    """Return the `push` section for the recipe of a resumed run: the recorded settings, with this repository."""
    section = state.push.given if state.push else {}
    return {**section, "repo": repo_id, **({"revision": revision} if revision else {})}
