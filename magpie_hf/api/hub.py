"""The one-call functions that reach the Hub: publish rows or a run, and go on with a run that lies there."""

from __future__ import annotations

import logging
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError
from ..hub.download import download_run, find_run
from ..hub.facts import config_facts
from ..hub.manifest import run_name
from ..hub.names import check_names
from ..hub.publisher import Publisher
from ..hub.push import Subset, check_rows, push_subset, write_shards
from ..hub.remote import Remote
from ..hub.settings import PushSettings
from ..session.publishing import prepared, push_command
from ..session.status import run_facts
from ..storage.checksums import check_files
from ..storage.loading import as_dataset, load_rows, quiet_datasets
from ..storage.rundir import RunDir, is_run
from ..storage.state import RunState
from .synthesis import run as run_recipe


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger("magpie_hf")


def push_to_hub(
    dataset: Dataset | DatasetDict | str | Path,
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
    patience_s: float | None = None,
) -> str:
    """Publish rows as a config of a dataset repository, with a generated card; return the repository's address.

    Shards, metadata and card appear in one commit. A push that dies goes on when it is called again: what the Hub has
    is not sent twice. Other configs stay as they are.

    Args:
        dataset: A Dataset, a DatasetDict of splits, or a run's directory: then its subsets, recipe, funnel and, under
            `.magpie/`, its finished rows go along.
        repo_id: "namespace/name"; a name alone is in your own namespace.
        config_name: The config of the rows.
        split: The split's name, where one Dataset is given.
        private: Make the repository private, if it is made now.
        gated: "auto" or "manual": readers must ask; False takes it back.
        revision: A branch; made if it is not there.
        create_pr: Push to a new pull request.
        license: A Hub licence id, where the model's is not known.
        state: Whether a run's finished rows go along, so that `resume_from_hub` can go on.
        patience_s: How long to try again while the Hub cannot be reached (default ten minutes).

    Raises:
        ArgumentError: a name cannot be used, or the licence must be given.
        HubError: no login, no right to write, or the Hub cannot be reached; says which command goes on.
    """
    check_names(config_name, [split])
    settings = PushSettings(
        repo_id, config_name, private, gated, revision, create_pr, license, state, patience_s=patience_s
    )
    if isinstance(dataset, (str, Path)):
        place = Path(dataset).expanduser()
        if is_run(place):
            return _push_run(place, settings)
        dataset = load_rows(str(dataset))
    return _push_rows(dataset, split, settings)


def _push_rows(dataset: Any, split: str, settings: PushSettings) -> str:
    splits = dict(dataset) if isinstance(dataset, Mapping) else {split: as_dataset(dataset)}
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
            patience_s=settings.patience_s,
        ).open(private=settings.private, gated=settings.gated)
        push_subset(remote, Subset(settings.config, shards, facts))
    return remote.url


def _push_run(place: Path, settings: PushSettings) -> str:
    with RunDir(place).own() as run_dir:
        subsets = list(_subsets(run_dir, settings))  # before anything is made on the Hub
        publisher = Publisher(run_dir, settings, resume=push_command(run_dir, settings)).open()
        for subset in subsets:
            publisher.ready(subset)
        url = publisher.finish()
        run_dir.save()
    return url


def _subsets(run_dir: RunDir, settings: PushSettings) -> Iterator[Subset]:
    """Yield what a finished run has to publish: its subsets, and its rows."""
    place = run_dir.path
    for config, saved in run_dir.state.subsets.items():
        if config == settings.config:
            raise ArgumentError(f"{config!r} is also the name of a subset of this run.", key="config_name")
        if saved.rows:
            known, funnel = run_facts(place, config)
            check_files(place, saved.files)
            rows = _parquet([place / name for name in saved.files])
            subset = prepared(place, settings, rows, config, list(saved.files), run=known, funnel=funnel)
            assert subset is not None  # noqa: S101 (it has rows)
            yield subset
    output = run_dir.state.output
    if output is not None and not output.rows:
        logger.warning("The run's last rows are none: nothing passed its conditions. Only its subsets are published.")
        return
    known, funnel = run_facts(place)
    files = list(output.files) if output is not None else []
    last = prepared(place, settings, load_rows(str(place)), settings.config, files, run=known, funnel=funnel)
    if last is not None:
        yield last


def _parquet(files: list[Path]) -> Any:
    import datasets

    with quiet_datasets():
        return datasets.load_dataset("parquet", data_files=[str(path) for path in files], split="train")


def resume_from_hub(
    repo_id: str,
    *,
    run: str | None = None,
    output: str | Path | None = None,
    revision: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    push: bool = True,
    **options: Any,
) -> Dataset:
    """Go on with a run on this machine from what lies on the Hub, and return its Dataset.

    Finished rows, rejected ones too, are not made again. What differs from machine to machine did not travel: the
    addresses of endpoints, and where a local model lies, are given in `overrides`.

    Args:
        repo_id: The repository that the run was pushed to.
        run: Which run, where several lie there.
        output: The run directory; by default one in the Hugging Face cache.
        revision: Branch, pull request or commit to read; what is pushed goes to the same branch.
        overrides: As in `run`: {"engine.endpoints": ["http://localhost:8080"], "num_rows": 20_000}.
        push: Whether the run goes on publishing to the repository.
        **options: Further arguments of `run`.

    Raises:
        ArgumentError: there are several runs and none is named.
        HubError: the repository cannot be read, or holds no run.
    """
    from huggingface_hub.constants import HF_HOME

    remote = Remote(repo_id, revision=revision, resume=f"magpie-hf resume {shlex.quote(repo_id)}")
    name, head = find_run(remote, run)
    place = Path(output).expanduser() if output else Path(HF_HOME) / "magpie" / name
    with RunDir(place).own(take_over=bool(options.get("take_over"))):
        state = download_run(remote, name, head, place)
    logger.info("%s: %s is here, in %s", repo_id, run_name(state), place)
    changes: dict[str, Any] = {"push": _push_section(repo_id, revision, state)} if push else {}
    recipe = {key: value for key, value in state.recipe.items() if key != "push"}
    return run_recipe(recipe, {**changes, **(overrides or {})}, output=place, shard=state.shard_name, **options)


def _push_section(repo_id: str, revision: str | None, state: RunState) -> dict[str, Any]:
    """Return the recipe's `push` for going on: the same settings, as far as they travelled."""
    section = state.push.given if state.push else {}
    return {**section, "repo": repo_id, **({"revision": revision} if revision else {})}
