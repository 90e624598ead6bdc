"""The commands for existing rows: annotate, select, report, card, agreement."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..errors import ArgumentError
from .flags import (
    Commands,
    add_command,
    add_engine_flags,
    add_failure_flags,
    add_owner_flags,
    add_set_flag,
    run_options,
)
from .parse import names_of, settings_of
from .show import carry_out


if TYPE_CHECKING:
    from ..api.rows import SelectionChanges

DATASET = "run directory, file or Hub id"


def add_row_commands(commands: Commands) -> None:
    """Add the commands to the parser."""
    _add_annotate(commands)
    _add_select(commands)
    report = add_command(commands, "report", _report, "Write a report of a dataset: one HTML file.")
    report.add_argument("dataset", help=DATASET)
    report.add_argument("--output", default="report.html", help="HTML file to write (default report.html)")
    report.add_argument("--title", help="heading of the page")
    report.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="NAME=DATASET",
        help="another dataset for the topic map; can be repeated (up to three)",
    )
    card = add_command(
        commands, "card", _card, "Write the dataset card of a run or dataset to a file that you can check and edit."
    )
    card.add_argument("dataset", help=DATASET)
    card.add_argument(
        "--output", help="file to write (default: README.md in the run directory, else in the current directory)"
    )
    card.add_argument("--repo-id", default="me/my-dataset", help="repository that the examples of the card load from")
    card.add_argument("--title", help="heading of the card")
    card.add_argument("--license", help="Hub license id; required if the license of the model is not known")
    agree = add_command(commands, "agreement", _agreement, "Compare two annotations of the same rows.")
    agree.add_argument("first", help=DATASET)
    agree.add_argument("second", help=DATASET)


def _add_annotate(commands: Commands) -> None:
    parser = add_command(commands, "annotate", _annotate, "Annotate a dataset: labels, rewards, near-duplicates, …")
    parser.add_argument("dataset", help=DATASET)
    parser.add_argument(
        "annotations", help="comma-separated names: quality,difficulty,category,neighbors,…; or files of rubrics"
    )
    parser.add_argument("--judge", metavar="MODEL", help='model that annotates: Hub id, directory, or "demo"')
    parser.add_argument("--guard", metavar="MODEL", help="model for safety (default: Llama Guard 2)")
    parser.add_argument("--base", metavar="MODEL", help="base model for reward_difference")
    parser.add_argument("--model", help="model of annotations that generate text, e.g., turns")
    add_engine_flags(parser)
    parser.add_argument(
        "--judge-mode",
        default="separate",
        metavar="MODE",
        help="separate (a request per rubric) or combined (one for all)",
    )
    parser.add_argument(
        "--judge-rubrics",
        default="default",
        metavar="SET",
        help="default, or reference (labels that mean what those of the Magpie releases mean)",
    )
    add_set_flag(
        parser, "set a key of the recipe, e.g., engine.omit=temperature or stages.quality.sampling.max_tokens=4096"
    )
    parser.add_argument("--tokenizer", metavar="MODEL", help="model whose tokenizer counts tokens for lengths")
    parser.add_argument("--output", help="run directory (default: in the Hugging Face cache, printed at the end)")
    add_failure_flags(parser)
    add_owner_flags(parser)
    parser.add_argument("--rows", type=int, default=0, metavar="N", help="rows to show at the end (default none)")


def _add_select(commands: Commands) -> None:
    parser = add_command(commands, "select", _select, "Select rows: a named selection or an expression.")
    parser.add_argument("dataset", help=DATASET)
    parser.add_argument(
        "selection", help="air-filter, pro-filter, …; or an expression, e.g., \"quality >= good and language == 'EN'\""
    )
    lengths = parser.add_mutually_exclusive_group()
    lengths.add_argument("--longest", type=int, metavar="N", help="keep the N rows with the longest responses")
    lengths.add_argument("--shortest", type=int, metavar="N", help="keep the N rows with the shortest responses")
    parser.add_argument(
        "--length-column",
        metavar="COLUMN",
        help="the lengths that --longest and --shortest compare, e.g., conversation_length (default response_length)",
    )
    parser.add_argument(
        "--sample", type=float, metavar="N", help="keep N random rows; below 1: this share of the rows"
    )
    parser.add_argument(
        "--one-per-group",
        nargs="?",
        const=True,
        default=False,
        metavar="COLUMN",
        help="keep one row of each group of near-duplicates, the one with the highest COLUMN if given",
    )
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="shuffle the selected rows with this seed")
    parser.add_argument("--seed", type=int, default=0, help="seed of --sample (default 0)")
    parser.add_argument("--output", required=True, help="Parquet file to write")


def _annotate(options: argparse.Namespace) -> int:
    from ..api.recipes import annotation_recipe

    recipe, _ = annotation_recipe(
        options.dataset,
        names_of(options.annotations),
        judge=options.judge,
        guard=options.guard,
        base=options.base,
        model=options.model,
        engine=options.engine,
        endpoint=options.endpoint,
        engine_options={"api_key_env": options.api_key_env} if options.api_key_env else {},
        judge_mode=options.judge_mode,
        judge_rubrics=options.judge_rubrics,
        tokenizer=options.tokenizer,
        overrides=settings_of(options),
    )
    return carry_out(recipe, options.rows, **run_options(options))


def _select(options: argparse.Namespace) -> int:
    from ..api.rows import selected_rows
    from ..storage.loading import quiet_datasets

    target = Path(options.output)
    if target.suffix != ".parquet":
        raise ArgumentError(
            f"--output {options.output!r} is not a Parquet file.", hint="Write, e.g., --output filtered.parquet."
        )
    changes = _changes(options)
    kept, funnel, warning = selected_rows(options.dataset, options.selection, changes)
    print(f"{'condition':<70}{'rows in':>12}{'rows out':>12}{'null':>10}")
    for step in funnel:
        print(f"{step.condition[:68]:<70}{step.rows_in:>12,}{step.rows_out:>12,}{step.nulls:>10,}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with quiet_datasets():
        kept.to_parquet(str(target))
    print(f"\n{len(kept):,} rows in {target}")
    if not len(kept):
        print(f"Warning: {warning or 'The dataset has no rows.'}")
        print("The file has columns but no rows. datasets.load_dataset can only load it with streaming=True.")
    return 0


def _changes(options: argparse.Namespace) -> SelectionChanges:
    """Return the settings that the command line gives; all others are those of the selection."""
    names = ("longest", "shortest", "length_column", "sample", "one_per_group", "shuffle", "seed")
    given = {name: getattr(options, name) for name in names}
    return cast(
        "SelectionChanges", {name: value for name, value in given.items() if value is not None and value is not False}
    )


def _report(options: argparse.Namespace) -> int:
    from ..api.rows import report

    compare = {}
    for text in options.compare:
        name, equals, place = text.partition("=")
        if not equals:
            raise ArgumentError(f"--compare {text!r} has no dataset.", hint="Write --compare NAME=DATASET.")
        compare[name] = place
    print(report(options.dataset, options.output, title=options.title, compare=compare or None))
    return 0


def _card(options: argparse.Namespace) -> int:
    from ..api.rows import write_card

    print(
        write_card(
            options.dataset, options.output, repo_id=options.repo_id, title=options.title, license=options.license
        )
    )
    return 0


def _agreement(options: argparse.Namespace) -> int:
    from ..reports import agreement
    from ..storage.loading import load_rows

    found = agreement(load_rows(options.first), load_rows(options.second))
    print(f"{'column':<20}{'rows':>10}{'agree':>10}{'kappa':>10}{'weighted':>10}{'nulls':>16}")
    for name, facts in found.items():
        figures = [facts["agreement"], facts["kappa"], facts["weighted_kappa"]]
        shown = "".join(f"{'-' if value is None else f'{value:.3f}':>10}" for value in figures)
        nulls = f"{facts['nulls_first']:,} / {facts['nulls_second']:,}"
        print(f"{name:<20}{facts['rows']:>10,}{shown}{nulls:>16}")
    rubrics = {(*facts["rubrics_first"], "/", *facts["rubrics_second"]): None for facts in found.values()}
    for compared in rubrics:
        if len(compared) > 1:
            print(f"\nRubrics: {' '.join(compared)}")
    return 0
