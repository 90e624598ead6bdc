"""`magpie-hf`: the command line, a thin layer over the functions of the package."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import ArgumentError, MagpieError, RunStopped
from ..version import __version__
from .annotate import add_row_commands
from .exporting import add_export_command
from .flags import (
    Commands,
    add_command,
    add_engine_flags,
    add_group,
    add_owner_flags,
    add_run_flags,
    add_set_flag,
    run_options,
)
from .hub import add_hub_commands, add_publishing_flags
from .hub_jobs import add_job_commands
from .parse import check_endpoint_model, overrides_of
from .show import carry_out, harmless, show_presets, show_probe, show_recipes, show_sources, show_status, show_template


EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_STOPPED = 75
"""EX_TEMPFAIL of sysexits.h: the run stopped, and the same command resumes it. Schedulers can requeue such jobs."""
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. Errors of magpie_hf are printed without a traceback, unless --debug."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = build_parser().parse_args(arguments)
    _configure_logging(options)
    # Set before torch is imported: threads that spin while they wait make a busy machine up to 20 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    restore = _terminate_like_interrupt()
    try:
        code: int = options.command(options)
        return code
    except KeyboardInterrupt:
        print(f"\nInterrupted. Finished rows are kept. Resume with:\n  {_same_command(arguments)}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except RunStopped as stop:
        _show(stop, options.debug)
        print(f"  Resume with:\n    {_same_command(arguments)}", file=sys.stderr)
        return EXIT_STOPPED
    except MagpieError as error:
        _show(error, options.debug)
        return EXIT_ERROR
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except Exception as error:
        if options.debug:
            raise
        print(harmless(f"{type(error).__name__}: {str(error)[:600]}"), file=sys.stderr)
        print("  This error is unexpected. Use --debug to print the traceback.", file=sys.stderr)
        return EXIT_ERROR
    finally:
        _scale_to_zero()
        restore()


def _scale_to_zero() -> None:
    """Scale the Inference Endpoints to zero that this command started."""
    module = sys.modules.get("magpie_hf.hub.inference_endpoints")
    for name in module.scale_to_zero() if module else []:
        print(f"The endpoint {name} is scaled to zero again.", file=sys.stderr)


def _same_command(arguments: Sequence[str]) -> str:
    return "magpie-hf " + shlex.join(arguments)


def _show(error: MagpieError, debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exception(error)
    print(harmless(f"{type(error).__name__}: {error}"), file=sys.stderr)


def _configure_logging(options: argparse.Namespace) -> None:
    level = logging.DEBUG if options.debug else logging.WARNING if options.quiet else logging.INFO
    logger = logging.getLogger("magpie_hf")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(level)


def _terminate_like_interrupt() -> Callable[[], None]:
    """Make SIGTERM act like Ctrl-C: finished rows are kept, and the command to resume is printed."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread
        return lambda: None

    def restore() -> None:
        signal.signal(signal.SIGTERM, before)

    return restore


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="magpie-hf", description="Synthesize, annotate, filter and publish alignment data with the Magpie method."
    )
    parser.add_argument("--version", action="version", version=f"magpie_hf {__version__}")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_synthesize(commands)
    add_row_commands(commands)
    add_export_command(commands)
    add_hub_commands(commands)
    add_job_commands(commands)
    _add_inspection(commands)
    _add_model_commands(commands)
    _add_maintenance(commands)
    return parser


def _add_run(commands: Commands) -> None:
    parser = add_command(commands, "run", _run, "Run a recipe: a YAML file or the name of a bundled recipe.")
    parser.add_argument("recipe", help="YAML file, or name of a bundled recipe")
    parser.add_argument("--model", help="use this model instead of the recipe's")
    parser.add_argument("--num-rows", type=int, help="number of accepted instructions")
    _add_synthesis_flags(parser)


def _add_synthesize(commands: Commands) -> None:
    parser = add_command(commands, "synthesize", _synthesize, "Synthesize instructions and responses with a model.")
    parser.add_argument("--model", help='Hub id, directory, or "demo" (bundled, for trying things out)')
    parser.add_argument("--num-rows", type=int, help="number of accepted instructions (default 1000)")
    parser.add_argument("--turns", type=int, default=1, help="turns of each conversation (default 1)")
    parser.add_argument("--system-prompt", help="system prompt for the generation of instructions")
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="system prompt and sampling for a topic or language, e.g., math (see `presets`)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the model")
    parser.add_argument("--temperature", type=float, help="sampling temperature of the instructions (default 1.0)")
    parser.add_argument("--top-p", type=float, help="top-p of the instructions (default 1.0)")
    parser.add_argument("--seed", type=int, default=0, help="base of all seeds (default 0)")
    _add_synthesis_flags(parser)


def _add_synthesis_flags(parser: argparse.ArgumentParser) -> None:
    add_run_flags(parser)
    parser.add_argument("--shard", metavar="I/N", help="generate only part I of N (from 0), for job arrays")
    add_publishing_flags(parser)


def _add_inspection(commands: Commands) -> None:
    status = add_command(commands, "status", _status, "Show the progress of a run, its rejected rows and its cost.")
    status.add_argument("run", help="run directory")
    explain = add_command(commands, "explain", _explain, "Show which stages would run again with changed settings.")
    explain.add_argument("run", help="run directory")
    add_set_flag(explain, "a setting to change, e.g., sampling.temperature=1.2")
    add_command(
        commands, "presets", _presets, "List the presets: system prompts and sampling for topics and languages."
    )
    recipes = add_command(commands, "recipes", _recipes, "List the bundled recipes, or show one.")
    recipes.add_argument("action", nargs="?", choices=("show",), help="show one recipe instead of the list")
    recipes.add_argument("recipe", nargs="?", help="name of the recipe to show")
    recipes.add_argument(
        "--sources",
        action="store_true",
        help="show each value with its source: paper, card, script, inferred, our choice",
    )


def _add_model_commands(commands: Commands) -> None:
    inner = add_group(commands, "template", "Inspect a model's chat template.")
    show = add_command(
        inner, "show", _template_show, "Show the exact prompts that are sent to the model, and its stop tokens."
    )
    show.add_argument("model", help='Hub id, directory, or "demo"')
    show.add_argument("--revision", help="branch, tag or commit of the model")
    show.add_argument("--system-prompt", help="system prompt to render in the prompts")
    show.add_argument("--chat-template", help="Jinja text or file to use instead of the model's own")
    show.add_argument("--kwargs", default="{}", help="template arguments as YAML, e.g., {enable_thinking: false}")
    show.add_argument("--json", action="store_true", help="print as JSON")
    show.add_argument("--trust-remote-code", action="store_true", help="run code from the model's repository")
    probe = add_command(
        commands,
        "probe",
        _probe,
        "Sample a few instructions with several settings and grade them, to see whether a model is suitable.",
    )
    probe.add_argument("model", help='Hub id, directory, or "demo"')
    probe.add_argument("--num-samples", type=int, default=64, help="instructions per setting (default 64)")
    probe.add_argument(
        "--preset", metavar="NAME", help="sample with this preset, and report the share of samples that meet its check"
    )
    add_engine_flags(probe)
    add_set_flag(probe)


def _add_maintenance(commands: Commands) -> None:
    merge = add_command(commands, "merge", _merge, "Merge the shards of a job array into one run.")
    merge.add_argument("shards", nargs="+", metavar="RUN", help="run directories")
    merge.add_argument("--output", required=True, help="run directory of the merged run")
    add_set_flag(merge, "set a key of the recipe, e.g., engine.endpoint=URL")
    merge.add_argument("--rows", type=int, default=3, metavar="N", help="rows to show at the end (default 3)")
    add_owner_flags(merge)
    retry = add_command(commands, "retry", _retry, "Run the rows again that finished with an error.")
    retry.add_argument("run", help="run directory")
    retry.add_argument(
        "--errors",
        action="append",
        required=True,
        metavar="CODE",
        help="code of the rows, e.g., too_long; can be repeated",
    )
    add_set_flag(retry, "set a key of the recipe, e.g., engine.endpoint=URL")
    retry.add_argument("--rows", type=int, default=0, metavar="N", help="rows to show at the end (default none)")
    add_owner_flags(retry)


def _run(options: argparse.Namespace) -> int:
    from ..recipe.schema import load_recipe

    recipe = load_recipe(options.recipe, overrides_of(options))
    check_endpoint_model(options, recipe.model)
    return carry_out(recipe, options.rows, **run_options(options))


def _synthesize(options: argparse.Namespace) -> int:
    from ..api.recipes import synthesis_recipe

    overrides = overrides_of(options)
    sampling = {"temperature": options.temperature, "top_p": options.top_p}
    model = overrides.get("model") or getattr(options, "endpoint_model", None)
    engine = overrides.get("engine.kind")
    recipe = synthesis_recipe(
        None if model is None else str(model),
        num_rows=1000 if options.num_rows is None else options.num_rows,
        turns=options.turns,
        system_prompt=options.system_prompt,
        preset=options.preset,
        sampling={key: value for key, value in sampling.items() if value is not None},
        engine=None if engine is None else str(engine),
        endpoint=options.endpoint,
        engine_options={"api_key_env": options.api_key_env} if options.api_key_env else {},
        revision=options.revision,
        seed=options.seed,
        overrides=overrides,
    )
    check_endpoint_model(options, recipe.model)
    return carry_out(recipe, options.rows, **run_options(options))


def _status(options: argparse.Namespace) -> int:
    show_status(Path(options.run))
    return 0


def _explain(options: argparse.Namespace) -> int:
    from ..session.explain import explain_changes

    changes = explain_changes(options.run, overrides_of(options))
    width = max((len(change.name) for change in changes), default=0) + 2
    for change in changes:
        print(f"{change.name:<{width}}{change.describe()}")
        for field, before, now in change.reasons:
            print(f"{'':<{width}}  {field}: {before!r} → {now!r}")
    return 0


def _presets(options: argparse.Namespace) -> int:
    show_presets()
    return 0


def _recipes(options: argparse.Namespace) -> int:
    from ..recipe.schema import recipe_path

    if options.action:
        if not options.recipe:
            raise ArgumentError(
                "The name of the recipe is missing.", hint="E.g., `magpie-hf recipes show quickstart`."
            )
        if options.sources:
            show_sources(options.recipe)
        else:
            print(recipe_path(options.recipe).read_text("utf-8"), end="")
        return 0
    if options.sources:
        raise ArgumentError("--sources needs a recipe.", hint="E.g., `magpie-hf recipes show magpie-air --sources`.")
    show_recipes()
    return 0


def _template_show(options: argparse.Namespace) -> int:
    import yaml

    from ..templates.describe import describe
    from ..templates.template import ChatTemplate

    try:
        kwargs = yaml.safe_load(options.kwargs)
    except yaml.YAMLError:
        kwargs = options.kwargs
    if not isinstance(kwargs, (dict, type(None))):
        raise ArgumentError(
            f"--kwargs {options.kwargs!r} is not a mapping.", hint="Write it as '{enable_thinking: false}'."
        )
    template = ChatTemplate.load(
        options.model,
        revision=options.revision,
        chat_template=options.chat_template,
        template_kwargs=kwargs,
        trust_remote_code=options.trust_remote_code,
    )
    described = describe(template, options.system_prompt)
    if options.json:
        import json

        print(json.dumps(described, indent=2, ensure_ascii=False))
    else:
        show_template(described)
    return 0


def _probe(options: argparse.Namespace) -> int:
    from ..session.probe import probe_model

    overrides = overrides_of(options)
    overrides.pop("model", None)
    results = probe_model(options.model, num_samples=options.num_samples, overrides=overrides, preset=options.preset)
    show_probe(results)
    return 0


def _merge(options: argparse.Namespace) -> int:
    from ..recipe.schema import load_recipe
    from ..session.maintenance import merge_runs

    merged = merge_runs(options.shards, options.output, force=options.force, take_over=options.take_over)
    recipe = load_recipe(merged.recipe, overrides_of(options))
    return carry_out(recipe, options.rows, output=options.output, force=options.force)


def _retry(options: argparse.Namespace) -> int:
    from ..recipe.schema import load_recipe
    from ..session.maintenance import reopen_rows
    from ..storage.rundir import RunDir

    opened = reopen_rows(options.run, options.errors, take_over=options.take_over)
    for stage, count in opened.items():
        print(f"{stage}: {count} rows reopened")
    if not opened:
        print("No rows have these codes.")
    # Run in any case: an interrupted retry may have reopened rows that have not been run since.
    run_dir = RunDir.read(options.run)
    state, recipe = run_dir.state, load_recipe(run_dir.recipe, overrides_of(options))
    return carry_out(recipe, options.rows, output=options.run, shard=state.shard_name, force=options.force)


if __name__ == "__main__":
    sys.exit(main())
