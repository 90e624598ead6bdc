"""Flags that several or all commands have."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias


if TYPE_CHECKING:
    from ..api.synthesis import RunOptions

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Function: TypeAlias = Callable[[argparse.Namespace], int]


def add_command(commands: Commands, name: str, function: Function, text: str) -> argparse.ArgumentParser:
    """Add a command with the flags that all commands have; `function` runs it."""
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("--quiet", action="store_true", help="show warnings and errors only")
    parser.set_defaults(command=function)
    return parser


def add_group(commands: Commands, name: str, text: str) -> Commands:
    """Add a command that has subcommands, e.g., `magpie-hf jobs`."""
    return commands.add_parser(name, help=text).add_subparsers(dest="action", required=True, metavar="ACTION")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every command that generates rows."""
    add_engine_flags(parser)
    parser.add_argument("--endpoint-from", metavar="NAME", help="your Inference Endpoint, e.g., me/my-endpoint")
    parser.add_argument("--yes", action="store_true", help="start an endpoint that is scaled to zero without asking")
    parser.add_argument("--output", help="run directory (default: in the Hugging Face cache, printed at the end)")
    add_set_flag(parser)
    add_failure_flags(parser)
    add_owner_flags(parser)
    parser.add_argument("--rows", type=int, default=3, metavar="N", help="rows to show at the end (default 3)")


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the engine, its endpoint and its API key."""
    parser.add_argument(
        "--engine",
        help="transformers, vllm, tgi, openai, or chat (judge, guard and responder only); default: the kind of server at "
        "--endpoint (tgi or openai), else transformers",
    )
    parser.add_argument("--endpoint", action="append", metavar="URL", help="URL of a server; can be repeated")
    parser.add_argument("--api-key-env", metavar="NAME", help="environment variable that holds the endpoint's API key")


def add_set_flag(parser: argparse.ArgumentParser, text: str = "set a key of the recipe") -> None:
    """Add --set."""
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=text)


def add_failure_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for failed rows and for a server whose model changes."""
    parser.add_argument(
        "--accept-failures", action="store_true", help="finish rows that only had transient failures, as errors"
    )
    parser.add_argument(
        "--allow-mixed", action="store_true", help="continue even if the server changes its model during the run"
    )


def add_owner_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for a run directory that another recipe or another process uses."""
    parser.add_argument(
        "--force",
        action="store_true",
        help="run even if the run directory contains the run of another recipe; its dataset is replaced",
    )
    parser.add_argument(
        "--take-over",
        action="store_true",
        help="take over the run directory immediately, even if another process owns it",
    )


def run_options(options: argparse.Namespace) -> RunOptions:
    """Return the arguments of `run` that the flags of a command set."""
    found: RunOptions = {
        "output": options.output,
        "shard": getattr(options, "shard", None),
        "accept_failures": options.accept_failures,
        "allow_mixed": options.allow_mixed,
        "force": options.force,
        "take_over": options.take_over,
    }
    return found
