"""The commands for rented machines: `jobs run`, `endpoints create`, `endpoints sleep`.

Commands that cost money show the price and ask for confirmation.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..errors import ArgumentError
from ..storage.loading import DEMO
from .flags import Commands, add_command, add_group, add_set_flag
from .hub import add_push_flags
from .parse import overrides_of
from .show import confirmed


if TYPE_CHECKING:
    from ..recipe.schema import Recipe, RoleSpec


def add_job_commands(commands: Commands) -> None:
    """Add the commands `jobs` and `endpoints`."""
    inner = add_group(commands, "jobs", "Run recipes as Hugging Face Jobs, on rented machines.")
    run = add_command(inner, "run", _run_job, "Run a recipe as a Hugging Face Job that publishes during the run.")
    run.add_argument("recipe", help="YAML file, or name of a bundled recipe")
    run.add_argument("--flavor", required=True, help="hardware, e.g., a100-large")
    run.add_argument("--push-to", required=True, metavar="REPO", help="Hub repository to publish to")
    run.add_argument("--timeout", default="24h", help="time limit (default 24h)")
    run.add_argument(
        "--attempts",
        type=int,
        default=1,
        help="maximum number of times that the Hub starts the job if it fails (default 1)",
    )
    run.add_argument("--namespace", help="account that is billed: yours or an organization's")
    run.add_argument("--image", help="Docker image that has uv")
    run.add_argument("--package", help="source of magpie_hf in the job: a wheel on this machine, or a URL")
    run.add_argument("--model", help="use this model instead of the recipe's")
    run.add_argument("--num-rows", type=int, help="number of accepted instructions")
    run.add_argument("--engine", help="engine that generates in the job")
    add_set_flag(run)
    add_push_flags(run)
    run.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    inner = add_group(commands, "endpoints", "Create Inference Endpoints, and scale them to zero.")
    create = add_command(
        inner,
        "create",
        _create_endpoint,
        "Create an Inference Endpoint with vLLM or TGI that is scaled to zero when idle.",
    )
    create.add_argument("endpoint", help="name, or namespace/name")
    create.add_argument("--model", required=True, help="Hub id")
    create.add_argument("--revision", help="branch, tag or commit of the model")
    create.add_argument("--engine", choices=("vllm", "tgi"), default="vllm", help="server to run (default vllm)")
    create.add_argument("--vendor", default="aws", help="cloud provider (default aws)")
    create.add_argument("--region", default="us-east-1", help="region of the provider (default us-east-1)")
    create.add_argument("--instance-type", required=True, help="e.g., nvidia-a100")
    create.add_argument("--instance-size", required=True, help="e.g., x1")
    create.add_argument(
        "--sleep-after",
        type=int,
        default=15,
        metavar="MIN",
        help="minutes without requests before it is scaled to zero (default 15)",
    )
    create.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    sleep = add_command(inner, "sleep", _sleep_endpoint, "Scale an Inference Endpoint to zero.")
    sleep.add_argument("endpoint", help="name, or namespace/name")


def _run_job(options: argparse.Namespace) -> int:
    from ..hub.jobs import IMAGE, plan_job, submit
    from ..hub.manifest import public_output
    from ..recipe.costs import estimate
    from ..recipe.schema import load_recipe

    overrides = {key: value for key, value in overrides_of(options).items() if key != "push.repo"}
    recipe = load_recipe(options.recipe, {**overrides, "push.repo": options.push_to})
    for role in recipe.roles.values():
        _check_travels(role)
    for part in recipe.dataset.get("parts") or [recipe.dataset]:
        _check_on_hub(part.get("path"))
    push = recipe.push
    if push and push.create_pr and (options.package or "").endswith(".whl") and "://" not in options.package:
        raise ArgumentError("A wheel cannot be uploaded with a pull request.", hint="Give --package a URL.")
    cost = estimate(recipe)
    kept = {key: value for key, value in recipe.raw.items() if key not in ("output", "sources")}
    plan = plan_job(
        load_recipe({**kept, **public_output(recipe.raw)}).dump(),
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
    print(f"If it stops early, run the same command again, or resume on this machine: magpie-hf resume {plan.repo}")
    return 0


def _check_travels(role: RoleSpec) -> None:
    """Raise ArgumentError if a job could not reach a model or server: it would cost money and then fail."""
    if role.model and Path(role.model).expanduser().is_dir() and role.model != "demo":
        raise ArgumentError(
            f"The model {role.model!r} is saved on this machine, where a job cannot read it.",
            hint="Push the model to the Hub, and give its Hub id.",
        )
    for url in role.engine.endpoints:
        if urlsplit(url).hostname in ("localhost", "127.0.0.1", "0.0.0.0", "::1"):  # noqa: S104 (names compared)
            raise ArgumentError(f"A job cannot reach {url}.", hint="Run the model in the job: --engine vllm.")
    if role.engine.options.get("api_key_env") not in (None, "HF_TOKEN"):
        raise ArgumentError("API keys are not sent to a job; only the Hub login is.", hint="Remove api_key_env.")


def _check_on_hub(path: str | None) -> None:
    """Raise ArgumentError if a job could not read a dataset; a name without an owner is a directory, e.g., of a run."""
    if path and path != DEMO and ("/" not in path or Path(path).expanduser().exists()):
        raise ArgumentError(
            f"The dataset {path!r} is a directory or file on this machine, where a job cannot read it.",
            hint="Push it to the Hub (`magpie-hf push`), and give its Hub id, e.g., --set dataset=OWNER/NAME.",
        )


def _extras(recipe: Recipe) -> list[str]:
    """Return the extras of the package that a recipe needs."""
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
    print(f"Created. Use it with: magpie-hf run RECIPE --endpoint-from {options.endpoint}")
    return 0


def _sleep_endpoint(options: argparse.Namespace) -> int:
    from ..hub.inference_endpoints import put_to_sleep

    put_to_sleep(options.endpoint)
    print(f"{options.endpoint} is scaled to zero.")
    return 0
