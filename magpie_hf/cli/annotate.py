"""The commands that work on rows that are there: annotate, select, report, agreement."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ArgumentError
from .show import carry_out


def add_commands(commands: Any, command: Callable[..., Any]) -> None:
    """Add the commands to the parser."""
    _add_annotate(commands, command)
    _add_select(commands, command)
    report = command(commands, "report", _report, "Write a report of a dataset: one HTML file.")
    report.add_argument("dataset", help="run directory, file or Hub id")
    report.add_argument("--output", default="report.html", help="the file (default report.html)")
    report.add_argument("--title")
    report.add_argument("--compare", action="append", default=[], metavar="NAME=DATASET", help="up to three others")
    card = command(commands, "card", _card, "Write the dataset card of a run or dataset, to look at and to add to.")
    card.add_argument("dataset", help="run directory, file or Hub id")
    card.add_argument("--output", help="the file (default: README.md in the run's directory, else here)")
    card.add_argument("--repo-id", default="me/my-dataset", help="where it will be on the Hub")
    card.add_argument("--title")
    card.add_argument("--license", help="Hub licence id, where the model's is not known")
    agree = command(commands, "agreement", _agreement, "Compare two annotations of the same rows.")
    agree.add_argument("first", help="run directory, file or Hub id")
    agree.add_argument("second")


def add_owner_flags(parser: Any) -> None:
    """Add the flags that say what happens to a run directory that somebody or something else uses."""
    parser.add_argument(
        "--force", action="store_true", help="replace the dataset of another recipe's run in the run directory"
    )
    parser.add_argument("--take-over", action="store_true", help="take the run directory from its owner, at once")


def _add_annotate(commands: Any, command: Callable[..., Any]) -> None:
    parser = command(commands, "annotate", _annotate, "Annotate a dataset: labels, rewards, duplicates, …")
    parser.add_argument("dataset", help="run directory, file or Hub id")
    parser.add_argument("annotations", help="names with commas between: quality,difficulty,category,neighbors,…")
    parser.add_argument("--model", help='the judge: Hub id, directory, or "demo"')
    parser.add_argument("--engine", help="of the judge: transformers, vllm, tgi or openai")
    parser.add_argument("--endpoint", action="append", metavar="URL", help="address of its server; may be given again")
    parser.add_argument("--api-key-env", metavar="NAME", help="environment variable that holds the endpoint's key")
    parser.add_argument(
        "--judge", choices=["separate", "combined"], default="separate", help="one request a rubric, or one for all"
    )
    parser.add_argument("--guard", help="model for safety (default Llama Guard 2)")
    parser.add_argument("--base", help="base model for reward_difference")
    parser.add_argument("--tokenizer", metavar="MODEL", help="whose tokens lengths counts")
    parser.add_argument("--output", help="run directory (default: in the Hugging Face cache, named at the end)")
    parser.add_argument("--accept-failures", action="store_true", help="finish rows with transient failures as errors")
    parser.add_argument("--allow-mixed", action="store_true", help="go on although the server changed its model")
    add_owner_flags(parser)
    parser.add_argument("--rows", type=int, default=0, metavar="N", help="rows to show at the end (default none)")


def _add_select(commands: Any, command: Callable[..., Any]) -> None:
    parser = command(commands, "select", _select, "Select rows: a named filter or an expression.")
    parser.add_argument("dataset", help="run directory, file or Hub id")
    parser.add_argument("selection", help="air-filter, pro-filter, …, or as \"quality >= good and language == 'EN'\"")
    parser.add_argument("--longest", type=int, help="keep so many rows, those with the longest responses")
    parser.add_argument("--sample", type=float, help="keep so many rows, or a share below 1, drawn by --seed")
    parser.add_argument(
        "--one-per-group",
        nargs="?",
        const=True,
        default=None,
        metavar="COLUMN",
        help="one row of each group of near duplicates",
    )
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="shuffle the result")
    parser.add_argument("--seed", type=int, help="of --sample")
    parser.add_argument("--output", required=True, help="parquet file to write")


def _annotate(options: argparse.Namespace) -> int:
    from ..api.rows import annotation_recipe
    from ..api.synthesis import named_model
    from ..recipe.schema import load_recipe

    engine: dict[str, Any] | None = None
    if options.model or options.engine or options.endpoint:
        engine = {"model": named_model(options.model, options.engine)}
        named = {"kind": options.engine, "endpoints": options.endpoint, "api_key_env": options.api_key_env}
        engine |= {name: value for name, value in named.items() if value is not None}
    names = [name.strip() for name in options.annotations.split(",") if name.strip()]
    raw, _ = annotation_recipe(
        options.dataset,
        names,
        engine=engine,
        judge=options.judge,
        guard=options.guard,
        base=options.base,
        model=options.tokenizer,
    )
    flags = ("output", "accept_failures", "allow_mixed", "force", "take_over")
    return carry_out(load_recipe(raw), options.rows, **{name: getattr(options, name) for name in flags})


def _select(options: argparse.Namespace) -> int:
    from ..selection.filters import nothing_kept, select_rows
    from ..storage.loading import load_rows, quiet_datasets, with_row_columns

    names = ("longest", "sample", "one_per_group", "shuffle", "seed")
    changes = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    target = Path(options.output)
    if target.suffix != ".parquet":
        raise ArgumentError(f"--output {options.output!r} is no parquet file.", hint="As --output filtered.parquet.")
    rows = with_row_columns(load_rows(options.dataset))
    selected = select_rows(rows, options.selection, **changes)
    kept = rows.select(selected.indices)
    print(f"{'condition':<70}{'rows in':>12}{'rows out':>12}{'null':>10}")
    for step in selected.funnel:
        print(f"{step.condition[:68]:<70}{step.rows_in:>12,}{step.rows_out:>12,}{step.nulls:>10,}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with quiet_datasets():
        kept.to_parquet(str(target))
    print(f"\n{len(kept):,} rows in {target}")
    if not len(kept):
        print(f"Warning: {nothing_kept(selected) or 'The dataset has no rows.'}")
        print("The file has the columns only; datasets.load_dataset reads it with streaming=True only.")
    return 0


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
    return 0
