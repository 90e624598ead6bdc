"""The commands that reach the Hub: push, resume; and the flags by which a run is published while it is on."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from .parse import overrides_of


def add_hub_commands(commands: Any, command: Callable[..., Any], add_common: Callable[[Any], None]) -> None:
    """Add push and resume."""
    push = command(
        commands, "push", _push, "Publish a run or a dataset as a config of a Hub repository, with its card."
    )
    push.add_argument("dataset", help="run directory, or a file or directory of rows")
    push.add_argument("repo", help="namespace/name")
    push.add_argument("--revision", dest="push_revision", help="branch to push to")
    add_push_flags(push)
    resume = command(commands, "resume", _resume, "Go on with a run that lies on the Hub, on this machine.")
    resume.add_argument("repo", help="namespace/name")
    resume.add_argument("--run", help="which run, where several lie there")
    resume.add_argument("--revision", dest="push_revision", help="branch or pull request to read and to push to")
    resume.add_argument("--no-push", action="store_true", help="keep what is made on this machine")
    resume.add_argument("--model", help="where the model lies here, if it is a local one")
    add_common(resume)


def add_push_flags(parser: Any) -> None:
    """Add the flags that say how rows are published."""
    parser.add_argument("--config", help='name of the rows\' config on the Hub (default "default")')
    parser.add_argument("--private", action="store_true", default=None, help="make the repository private")
    parser.add_argument("--gated", choices=("auto", "manual"), help="readers must ask for access")
    parser.add_argument("--create-pr", action="store_true", default=None, help="push to a new pull request")
    parser.add_argument("--license", help="Hub licence id, where the model's is not known")
    parser.add_argument("--no-state", action="store_true", default=None, help="do not send finished rows for resuming")
    parser.add_argument(
        "--patience", type=float, metavar="S", help="seconds to try while the Hub cannot be reached (default 600)"
    )


def add_run_flags(parser: Any) -> None:
    """Add the flags by which a run is published while it is on."""
    parser.add_argument("--push-to", metavar="REPO", help="publish to this Hub repository while the run is on")
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
        patience_s=options.patience,
    )
    print(f"Published: {url}")
    return 0


def _resume(options: argparse.Namespace) -> int:
    from ..api.hub import resume_from_hub
    from .show import show_rows

    overrides = {key: value for key, value in overrides_of(options).items() if key != "push.revision"}
    dataset = resume_from_hub(
        options.repo,
        run=options.run,
        output=options.output,
        revision=options.push_revision,
        overrides=overrides,
        push=not options.no_push,
        accept_failures=options.accept_failures,
        allow_mixed=options.allow_mixed,
        force=options.force,
        take_over=options.take_over,
    )
    show_rows(dataset, options.rows)
    print(f"{len(dataset)} rows")
    return 0
