"""The commands `push` and `resume`, and the flags that publish a run while it is running."""

from __future__ import annotations

import argparse

from .flags import Commands, add_command, add_run_flags, run_options
from .parse import overrides_of
from .show import carry_out


def add_hub_commands(commands: Commands) -> None:
    """Add push and resume."""
    push = add_command(
        commands, "push", _push, "Publish a run or a dataset as a config of a Hub repository, with its card."
    )
    push.add_argument("dataset", help="run directory, or a file or directory of rows")
    push.add_argument("repo", help="namespace/name")
    push.add_argument("--revision", dest="push_revision", help="branch to push to")
    add_push_flags(push)
    resume = add_command(commands, "resume", _resume, "Resume a run on this machine from its state on the Hub.")
    resume.add_argument("repo", help="namespace/name")
    resume.add_argument("--run", help="name of the run; required if the repository has several runs")
    resume.add_argument("--revision", dest="push_revision", help="branch or pull request to read and to push to")
    resume.add_argument("--no-push", action="store_true", help="do not publish the rows generated on this machine")
    resume.add_argument("--model", help="path of the model on this machine, if the run used a local model")
    add_run_flags(resume)


def add_push_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for how rows are published."""
    parser.add_argument("--config", help='name of the config on the Hub (default "default")')
    parser.add_argument("--private", action="store_true", default=None, help="make the repository private")
    parser.add_argument("--gated", choices=("auto", "manual"), help="users must request access")
    parser.add_argument("--create-pr", action="store_true", default=None, help="push to a new pull request")
    parser.add_argument("--license", help="Hub license id; required if the license of the model is not known")
    parser.add_argument(
        "--no-state", action="store_true", default=None, help="do not publish the finished rows that `resume` needs"
    )
    parser.add_argument(
        "--retry-timeout",
        type=float,
        metavar="S",
        help="seconds to retry while the Hub cannot be reached (default 600)",
    )


def add_publishing_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that publish a run while it is running."""
    parser.add_argument("--push-to", metavar="REPO", help="publish to this Hub repository while the run is running")
    parser.add_argument("--push-revision", help="branch to push to")
    add_push_flags(parser)


def _push(options: argparse.Namespace) -> int:
    from ..api.hub import push_to_hub

    url = push_to_hub(
        options.dataset,
        options.repo,
        config_name=options.config or "default",
        private=options.private,
        gated=options.gated,
        revision=options.push_revision,
        create_pr=bool(options.create_pr),
        license=options.license,
        state=not options.no_state,
        retry_timeout_s=options.retry_timeout,
    )
    print(f"Published: {url}")
    return 0


def _resume(options: argparse.Namespace) -> int:
    from ..api.hub import fetch_run

    overrides = {key: value for key, value in overrides_of(options).items() if key != "push.revision"}
    fetched = fetch_run(
        options.repo,
        run=options.run,
        output=options.output,
        revision=options.push_revision,
        overrides=overrides,
        push=not options.no_push,
        take_over=options.take_over,
    )
    settings = run_options(options)
    settings["output"], settings["shard"] = fetched.run_dir, fetched.shard
    return carry_out(fetched.recipe, options.rows, **settings)
