"""The commands that rent machines: jobs run, endpoints create, endpoints sleep. Each shows its price and asks first."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import ArgumentError
from .hub import add_push_flags
from .parse import overrides_of
from .show import confirmed


def add_job_commands(commands: Any, command: Callable[..., Any]) -> None:
    """Add jobs and endpoints."""
    jobs = commands.add_parser("jobs", help="Run recipes on machines rented from the Hub.")
    inner = jobs.add_subparsers(dest="action", required=True, metavar="ACTION")
    run = command(inner, "run", _run_job, "Run a recipe as a Hugging Face Job that publishes as it goes.")
    run.add_argument("recipe")
    run.add_argument("--flavor", required=True, help="the machine, as a100-large")
    run.add_argument("--push-to", required=True, metavar="REPO", help="Hub repository to publish to")
    run.add_argument("--timeout", default="24h", help="longest time (default 24h)")
    run.add_argument("--attempts", type=int, default=1, help="how often the Hub starts it again after a failure")
    run.add_argument("--namespace", help="who pays: you, or an organization")
    run.add_argument("--image", help="Docker image with uv in it")
    run.add_argument("--package", help="where the job installs magpie_hf from: a wheel on this machine, or a URL")
    run.add_argument("--model", help="use this model instead of the recipe's")
    run.add_argument("--num-rows", type=int, help="accepted instructions wanted")
    run.add_argument("--engine", help="of the generator, in the job")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="set a key of the recipe")
    add_push_flags(run)
    run.add_argument("--yes", action="store_true", help="do not ask")
    endpoints = commands.add_parser("endpoints", help="Make Inference Endpoints, and put them to sleep.")
    inner = endpoints.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = command(
        inner, "create", _create_endpoint, "Make an Inference Endpoint with vLLM or TGI that sleeps when idle."
    )
    create.add_argument("endpoint", help="its name, or namespace/name")
    create.add_argument("--model", required=True, help="Hub id")
    create.add_argument("--revision", help="branch, tag or commit of the model")
    create.add_argument("--engine", choices=("vllm", "tgi"), default="vllm")
    create.add_argument("--vendor", default="aws")
    create.add_argument("--region", default="us-east-1")
    create.add_argument("--instance-type", required=True, help="as nvidia-a100")
    create.add_argument("--instance-size", required=True, help="as x1")
    create.add_argument(
        "--sleep-after", type=int, default=15, metavar="MIN", help="minutes without requests (default 15)"
    )
    create.add_argument("--yes", action="store_true", help="do not ask")
    sleep = command(inner, "sleep", _sleep_endpoint, "Scale an Inference Endpoint to zero.")
    sleep.add_argument("endpoint", help="its name, or namespace/name")


def _run_job(options: argparse.Namespace) -> int:
    from ..hub.jobs import IMAGE, plan_job, submit
    from ..recipe.costs import estimate
    from ..recipe.schema import load_recipe

    overrides = {key: value for key, value in overrides_of(options).items() if key != "push.repo"}
    recipe = load_recipe(options.recipe, {**overrides, "push.repo": options.push_to})
    for role in recipe.roles.values():
        _check_travels(role)
    push = recipe.push
    if push and push.create_pr and (options.package or "").endswith(".whl") and "://" not in options.package:
        raise ArgumentError("A wheel cannot travel with a pull request.", hint="Give --package a URL.")
    cost = estimate(recipe)
    plan = plan_job(
        load_recipe({key: value for key, value in recipe.raw.items() if key != "output"}).dump(),
        name=recipe.name,
        repo=options.push_to,
        flavor=options.flavor,
        extras=_extras(recipe),
        package=options.package,
        image=options.image or IMAGE,
        timeout=options.timeout,
        attempts=options.attempts,
        namespace=options.namespace,
        gpu_hours=cost.gpu_hours if cost else None,
        private=push.private if push else None,
    )
    if not confirmed(plan.lines(), options.yes):
        print("Nothing was started.")
        return 0
    job = submit(plan)
    print(f"Started: {job.url}")
    print(f"When it stops early, start it again with the same command, or go on here: magpie-hf resume {plan.repo}")
    return 0


def _check_travels(role: Any) -> None:
    """Raise ArgumentError for what a job could not reach: it would be paid for, and fail."""
    if role.model and Path(role.model).expanduser().is_dir() and role.model != "demo":
        raise ArgumentError(
            f"The model {role.model!r} lies on this machine, where a job cannot see it.",
            hint="Push it to the Hub, and give its Hub id.",
        )
    for url in role.engine.endpoints:
        if urlsplit(url).hostname in ("localhost", "127.0.0.1", "0.0.0.0", "::1"):  # noqa: S104 (names compared)
            raise ArgumentError(f"A job cannot reach {url}.", hint="Run the model in the job: --engine vllm.")
    if role.engine.options.get("api_key_env"):
        raise ArgumentError("No key but the Hub's login travels with a job.", hint="Leave api_key_env out.")


def _extras(recipe: Any) -> list[str]:
    """Return the extras of the package that a recipe needs where it runs."""
    stages = {stage.name for stage in recipe.stages}
    found = {"vllm"} if any(role.engine.kind == "vllm" for role in recipe.roles.values()) else set()
    found |= {"language"} if "language" in stages else set()
    found |= {"grammar"} if stages & {"quality", "difficulty", "category", "judge", "rubric"} else set()
    return sorted(found)


def _create_endpoint(options: argparse.Namespace) -> int:
    from ..hub.inference_endpoints import create_endpoint, plan_endpoint

    namespace, _, name = options.endpoint.rpartition("/")
    plan = plan_endpoint(
        name,
        options.model,
        options.engine,
        vendor=options.vendor,
        region=options.region,
        instance_type=options.instance_type,
        instance_size=options.instance_size,
        namespace=namespace or None,
        revision=options.revision,
        sleep_after_min=options.sleep_after,
    )
    if not confirmed(plan.lines(), options.yes):
        print("Nothing was started.")
        return 0
    create_endpoint(plan)
    print(f"Made. Use it with: magpie-hf run RECIPE --endpoint-from {options.endpoint}")
    return 0


def _sleep_endpoint(options: argparse.Namespace) -> int:
    from ..hub.inference_endpoints import put_to_sleep

    put_to_sleep(options.endpoint)
    print(f"{options.endpoint} sleeps.")
    return 0
