"""`magpie-hf`: a thin skin over the functions of the package."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, MagpieError, RunStopped
from ..version import __version__
from .annotate import add_commands, add_owner_flags
from .hub import add_hub_commands, add_run_flags
from .hub_jobs import add_job_commands
from .parse import check_endpoint_model, overrides_of
from .show import carry_out, harmless, show_probe, show_recipes, show_status, show_template


EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_STOPPED = 75
"""EX_TEMPFAIL of sysexits.h: the run stopped and the same command goes on; job schedulers may requeue on it."""
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code; errors of magpie_hf print without traceback unless --debug."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = build_parser().parse_args(arguments)
    _configure_logging(options)
    # Before torch is imported: threads that spin while they wait make a busy machine up to 20 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    restore = _terminate_like_interrupt()
    try:
        code: int = options.command(options)
        return code
    except KeyboardInterrupt:
        print(
            f"\nInterrupted. Everything finished is kept; go on with:\n  {_same_command(arguments)}", file=sys.stderr
        )
        return EXIT_INTERRUPTED
    except RunStopped as stop:
        _show(stop, options.debug)
        print(f"  Go on with:\n    {_same_command(arguments)}", file=sys.stderr)
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
        print("  This is not an error that magpie_hf foresaw: --debug shows where it comes from.", file=sys.stderr)
        return EXIT_ERROR
    finally:
        _let_sleep()
        restore()


def _let_sleep() -> None:
    """Put Inference Endpoints to sleep that this command woke."""
    module = sys.modules.get("magpie_hf.hub.inference_endpoints")
    for name in module.let_sleep() if module else []:
        print(f"The endpoint {name} sleeps again.", file=sys.stderr)


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
    """Let SIGTERM end a run as Ctrl-C does: what is finished is kept, the resume command is printed."""

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
    add_commands(commands, _command)
    add_hub_commands(commands, _command, _add_common)
    add_job_commands(commands, _command)
    _add_looking(commands)
    _add_model_commands(commands)
    _add_maintenance(commands)
    return parser


def _command(commands: Any, name: str, function: Callable[[argparse.Namespace], int], text: str) -> Any:
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("--quiet", action="store_true", help="show warnings and errors only")
    parser.set_defaults(command=function)
    return parser


def _add_run(commands: Any) -> None:
    parser = _command(commands, "run", _run, "Run a recipe: a YAML file or the name of a bundled one.")
    parser.add_argument("recipe")
    parser.add_argument("--model", help="use this model instead of the recipe's")
    parser.add_argument("--num-rows", type=int, help="accepted instructions wanted")
    _add_common(parser)
    add_run_flags(parser)


def _add_synthesize(commands: Any) -> None:
    parser = _command(commands, "synthesize", _synthesize, "Synthesize instructions and responses with a model.")
    parser.add_argument("--model", help='Hub id, directory, or "demo" (bundled, for trying things out)')
    parser.add_argument("--num-rows", type=int, default=1000, help="accepted instructions wanted (default 1000)")
    parser.add_argument("--turns", type=int, default=1, help="turns of each conversation (default 1)")
    parser.add_argument("--system-prompt", help="system prompt under which instructions are written")
    parser.add_argument("--revision", help="branch, tag or commit of the model")
    parser.add_argument("--temperature", type=float, help="of the instructions (default 1.0)")
    parser.add_argument("--top-p", type=float, help="of the instructions (default 1.0)")
    parser.add_argument("--seed", type=int, default=0, help="base of all seeds (default 0)")
    _add_common(parser)
    add_run_flags(parser)


def _add_common(parser: Any) -> None:
    parser.add_argument("--engine", help="transformers, vllm, tgi or openai")
    parser.add_argument("--endpoint", action="append", metavar="URL", help="address of a server; may be given again")
    parser.add_argument("--api-key-env", metavar="NAME", help="environment variable that holds the endpoint's key")
    parser.add_argument("--endpoint-from", metavar="NAME", help="an Inference Endpoint of yours, as me/my-endpoint")
    parser.add_argument("--yes", action="store_true", help="wake an endpoint that sleeps without asking")
    parser.add_argument("--output", help="run directory")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="set a key of the recipe")
    parser.add_argument("--shard", metavar="I/N", help="make only part I of N (from 0), for job arrays")
    parser.add_argument("--accept-failures", action="store_true", help="finish rows with transient failures as errors")
    parser.add_argument("--allow-mixed", action="store_true", help="go on although the server changed its model")
    add_owner_flags(parser)
    parser.add_argument("--rows", type=int, default=3, metavar="N", help="rows to show at the end (default 3)")


def _add_looking(commands: Any) -> None:
    status = _command(commands, "status", _status, "Show what a run has done, what is left and what it cost.")
    status.add_argument("run")
    explain = _command(commands, "explain", _explain, "Show which stages would run again under changed settings.")
    explain.add_argument("run")
    explain.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a changed setting")
    recipes = _command(commands, "recipes", _recipes, "List the bundled recipes, or show one.")
    recipes.add_argument("action", nargs="?", choices=("show",))
    recipes.add_argument("recipe", nargs="?")


def _add_model_commands(commands: Any) -> None:
    template = commands.add_parser("template", help="Look at a model's chat template.")
    inner = template.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = _command(inner, "show", _template_show, "Show the exact prompts that are sent, and the stops.")
    show.add_argument("model")
    show.add_argument("--revision")
    show.add_argument("--system-prompt")
    show.add_argument("--chat-template", help="Jinja text or file instead of the model's own")
    show.add_argument("--kwargs", default="{}", help="template arguments as YAML, as {enable_thinking: false}")
    show.add_argument("--json", action="store_true", help="print as JSON")
    show.add_argument("--trust-remote-code", action="store_true", help="run code from the model's repository")
    probe = _command(commands, "probe", _probe, "Sample a few instructions: is this model good at this?")
    probe.add_argument("model")
    probe.add_argument("--num-samples", type=int, default=64)
    probe.add_argument("--engine")
    probe.add_argument("--endpoint", action="append", metavar="URL")
    probe.add_argument("--api-key-env", metavar="NAME")
    probe.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")


def _add_maintenance(commands: Any) -> None:
    merge = _command(commands, "merge", _merge, "Join the shards of a job array into one run.")
    merge.add_argument("shards", nargs="+", metavar="RUN")
    merge.add_argument("--output", required=True)
    merge.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as engine.endpoint=URL")
    merge.add_argument("--rows", type=int, default=3, metavar="N")
    add_owner_flags(merge)
    retry = _command(commands, "retry", _retry, "Open rows again that finished with an error, and run.")
    retry.add_argument("run")
    retry.add_argument(
        "--errors", action="append", required=True, metavar="CODE", help="as too_long; may be given again"
    )
    retry.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as engine.endpoint=URL")
    retry.add_argument("--rows", type=int, default=0, metavar="N")
    add_owner_flags(retry)


def _run_options(options: argparse.Namespace) -> dict[str, Any]:
    names = ("output", "shard", "accept_failures", "allow_mixed", "force", "take_over")
    return {name: getattr(options, name) for name in names}


def _run(options: argparse.Namespace) -> int:
    from ..recipe.schema import load_recipe

    recipe = load_recipe(options.recipe, overrides_of(options))
    check_endpoint_model(options, recipe.model)
    return carry_out(recipe, options.rows, **_run_options(options))


def _synthesize(options: argparse.Namespace) -> int:
    from ..api.synthesis import named_model
    from ..recipe.schema import load_recipe

    stages: list[Any] = ["instructions", "responses"]
    stages += [{"stage": "turns", "turns": options.turns}] if options.turns != 1 else []
    sampling = {"temperature": options.temperature, "top_p": options.top_p}
    overrides = overrides_of(options)
    model = overrides.get("model") or getattr(options, "endpoint_model", None)
    raw: dict[str, Any] = {
        "name": "synthesize",
        "model": named_model(model, overrides.get("engine.kind")),
        "num_rows": options.num_rows,
        "seed": options.seed,
        "sampling": {key: value for key, value in sampling.items() if value is not None},
        "stages": [*stages, "lengths"],
    }
    given = {"revision": options.revision, "system_prompt": options.system_prompt}
    raw |= {key: value for key, value in given.items() if value is not None}
    recipe = load_recipe(raw, overrides)
    check_endpoint_model(options, recipe.model)
    return carry_out(recipe, options.rows, **_run_options(options))


def _status(options: argparse.Namespace) -> int:
    show_status(Path(options.run))
    return 0


def _explain(options: argparse.Namespace) -> int:
    from ..session.explain import explain_changes

    for change in explain_changes(options.run, overrides_of(options)):
        print(f"{change.name:<14}{change.describe()}")
        for field, before, now in change.reasons:
            print(f"{'':<14}  {field}: {before!r} → {now!r}")
    return 0


def _recipes(options: argparse.Namespace) -> int:
    from ..recipe.schema import recipe_path

    if options.action:
        if not options.recipe:
            raise ArgumentError("Which recipe?", hint="As `magpie-hf recipes show quickstart`.")
        print(recipe_path(options.recipe).read_text("utf-8"), end="")
        return 0
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
            f"--kwargs {options.kwargs!r} is no mapping.", hint="Write it as '{enable_thinking: false}'."
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
    results = probe_model(options.model, num_samples=options.num_samples, overrides=overrides)
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
        print(f"{stage}: {count} rows opened again")
    if not opened:
        print("No row finished with these codes.")
    # Goes on in any case: rows that an interrupted retry opened are open still.
    run_dir = RunDir.read(options.run)
    state, recipe = run_dir.state, load_recipe(run_dir.recipe, overrides_of(options))
    return carry_out(recipe, options.rows, output=options.run, shard=state.shard_name, force=options.force)


if __name__ == "__main__":
    sys.exit(main())
