"""Publish a run to the Hub while it is running."""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..hub.facts import config_facts, joined_license, writers
from ..hub.manifest import public_name, public_recipe
from ..hub.publisher import Publisher
from ..hub.push import ConfigFiles, write_shards
from ..hub.settings import PushSettings
from ..recipe.schema import Recipe
from ..storage.loading import files_of
from ..storage.rundir import RunDir
from ..storage.state import JsonObject, RunFacts


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.getLogger("magpie_hf")


@contextlib.contextmanager
def publishing(recipe: Recipe, run_dir: RunDir, rows: Dataset | None = None) -> Iterator[Publisher | None]:
    """Publish a run while it is running. The publisher is None if the recipe has no `push` section.

    `rows`: the existing rows that the run annotates.

    Raises:
        ArgumentError: the repository name is invalid, or the license is not known and not given.
        HubError: you are not logged in, have no write permission, or the Hub cannot be reached; or, at the end of the
            run, files could not be uploaded.
    """
    settings = recipe.push
    if settings is None:
        yield None
        return
    check_licence(recipe, settings, rows)
    publisher = Publisher(run_dir, settings, resume=push_command(run_dir, settings)).open()
    try:
        yield publisher
    except Exception:
        with _abandoned_on_interrupt(publisher):
            publisher.stop()
        raise
    except BaseException:
        publisher.abandon()
        raise
    with _abandoned_on_interrupt(publisher):
        publisher.finish()


@contextlib.contextmanager
def _abandoned_on_interrupt(publisher: Publisher) -> Iterator[None]:
    """Also stop publishing on Ctrl-C: the process of a notebook keeps running, but must not publish any more."""
    try:
        yield
    except KeyboardInterrupt:
        publisher.abandon()
        raise


def check_licence(recipe: Recipe, settings: PushSettings, rows: Dataset | None = None) -> None:
    """Raise ArgumentError if the license of the rows is unknown."""
    if rows is not None:
        models = writers(public_recipe(recipe.raw), rows)
    else:
        models = [public_name(model) for model in dict.fromkeys((recipe.model, recipe.role("responder").model))]
    joined_license(models, settings.license)


def push_command(run_dir: RunDir, settings: PushSettings) -> str:
    """Return the command that publishes a run directory."""
    words = ["magpie-hf", "push", str(run_dir.path), settings.repo]
    words += ["--config", settings.config] if settings.config != "default" else []
    words += ["--revision", settings.revision] if settings.revision else []
    words += ["--create-pr"] if settings.create_pr else []
    words += ["--license", settings.license] if settings.license else []
    return shlex.join(words)


def prepared(
    place: Path,
    settings: PushSettings,
    splits: Mapping[str, Dataset],
    config: str,
    files: list[str],
    *,
    run: RunFacts | None,
    funnel: Sequence[JsonObject] | None,
    described: Dataset | None = None,
) -> ConfigFiles | None:
    """Return a config of a run with its files, None if it has no rows.

    `splits`: the published rows. `described`: rows with all columns, for the statistics of the card; by default those of
    the first split. Rows that are saved in another format are written again as Parquet.

    Raises:
        ArgumentError: the license is not known and not given.
    """
    if not any(len(rows) for rows in splits.values()):
        # `load_dataset` cannot load a config without rows.
        logger.warning("The config %s is not published, because no row passed its conditions.", config)
        return None
    shards = {name: [place / path for path in files_of(files, name)] for name in splits}
    for name, rows in splits.items():
        shards[name] = shards[name] or write_shards(rows, place / "parquet" / config, name)
    sizes = {name: sum(path.stat().st_size for path in paths) for name, paths in shards.items()}
    facts = config_facts(splits, run=run, funnel=funnel, license=settings.license, sizes=sizes, described=described)
    return ConfigFiles(config, shards, facts)
