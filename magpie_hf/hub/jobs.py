"""Run a recipe as a Hugging Face Job: our package on a rented machine, publishing as it goes.

The recipe travels as text; the login travels as the job's secret and in nothing else. A job that is killed, or reaches its
time limit, is started again with the same command: it goes on from what lies on the Hub.
"""

from __future__ import annotations

import base64
import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import __version__
from ..errors import ArgumentError, DependencyError, HubError, did_you_mean, quoted
from .remote import Remote, check_online, full_name, is_transient


logger = logging.getLogger("magpie_hf")
IMAGE = "ghcr.io/astral-sh/uv:python3.12-bookworm"
"""What `huggingface_hub` runs uv scripts in."""
RECIPE_VARIABLE = "MAGPIE_RECIPE"
MOST_RECIPE_BYTES = 60_000
_MINUTES = {"minute": 1.0, "hour": 60.0, "second": 1 / 60}
_GPUS = re.compile(r"x(\d+)$")
_TIMEOUT = re.compile(r"\d+(\.\d+)?[smhd]?")


@dataclass(frozen=True)
class JobPlan:
    """What would be started: nothing in it is secret.

    `price_per_hour`: US dollars, None where the Hub does not say. `hours`: an estimate, None where there is none.
    """

    recipe: str
    repo: str
    flavor: str
    command: tuple[str, ...]
    timeout: str
    namespace: str
    image: str = IMAGE
    attempts: int = 1
    price_per_hour: float | None = None
    hours: float | None = None
    env: Mapping[str, str] = field(default_factory=dict, repr=False)

    def lines(self) -> list[str]:
        """Return the plan as a person wants to see it before it costs anything."""
        price = "the Hub does not say" if self.price_per_hour is None else f"${self.price_per_hour:.2f} an hour"
        out = [
            f"recipe      {self.recipe}",
            f"publishes   {self.repo}, as it goes",
            f"machine     {self.flavor}, at most {self.timeout}, paid by {self.namespace}",
            f"image       {self.image}",
            f"command     {shlex.join(self.command[-1:])}",
            "secret      HF_TOKEN, the login of this machine",
            f"price       {price}",
        ]
        if self.hours is not None and self.price_per_hour is not None:
            out.append(f"estimate    {self.hours:,.1f} hours, ${self.hours * self.price_per_hour:,.2f}")
        return out


def plan_job(
    recipe_text: str,
    *,
    name: str,
    repo: str,
    flavor: str,
    arguments: Sequence[str] = (),
    extras: Sequence[str] = (),
    package: str | None = None,
    image: str = IMAGE,
    timeout: str = "24h",
    attempts: int = 1,
    namespace: str | None = None,
    gpu_hours: float | None = None,
) -> JobPlan:
    """Return the job that runs a recipe and publishes to a repository; asks the Hub who pays and what it costs.

    `arguments`: further words for `magpie-hf run`. `extras`: of the package, as "vllm". `package`: what pip installs
    instead. `gpu_hours`: an estimate of the whole, on an A100.

    Raises:
        ArgumentError: the repository's name, or the machine's, cannot be used.
        HubError: no login, or the Hub cannot be reached.
        DependencyError: this version of `huggingface_hub` knows no jobs.
    """
    from huggingface_hub import get_token

    check_online()
    if not _TIMEOUT.fullmatch(timeout):
        raise ArgumentError(f"There is no time {quoted(timeout)}.", hint="As 90m, 24h or 2d.", key="timeout")
    encoded = base64.b64encode(recipe_text.encode()).decode()
    if len(encoded) > MOST_RECIPE_BYTES:
        raise ArgumentError("The recipe is too large to travel with a job.", hint="Put long texts into fewer words.")
    remote = Remote(repo)
    _require(remote.api, "run_job")
    if not get_token():
        raise HubError("There is no login for the Hub.", hint="`hf auth login`, or set HF_TOKEN.")
    user = str(remote.patiently(remote.api.whoami)["name"])
    target = full_name(repo, user)
    prices = _hardware(remote)
    if prices and flavor not in prices:
        raise ArgumentError(f"There is no machine {flavor!r}.", hint=did_you_mean(flavor, prices), key="flavor")
    wanted = package or f"magpie_hf{_bracketed(extras)}=={__version__}"
    run = ["uv", "run", "--no-project", "--with", wanted, "magpie-hf", "run", "/tmp/recipe.yaml"]  # noqa: S108 (in the job)
    run += ["--push-to", target, *arguments]
    script = f'printf %s "${RECIPE_VARIABLE}" | base64 -d > /tmp/recipe.yaml && exec {shlex.join(run)}'
    found = _GPUS.search(flavor)
    gpus = int(found[1]) if found else 1
    is_a100 = flavor.startswith("a100")
    return JobPlan(
        recipe=name,
        repo=target,
        flavor=flavor,
        command=("bash", "-c", script),
        timeout=timeout,
        namespace=namespace or user,
        image=image,
        attempts=attempts,
        price_per_hour=prices.get(flavor),
        hours=gpu_hours / gpus if gpu_hours is not None and is_a100 else None,
        env={RECIPE_VARIABLE: encoded},
    )


def submit(plan: JobPlan) -> Any:
    """Start the job and return what the Hub says of it (`id`, `url`).

    Raises:
        HubError: the Hub refuses: no credit, no right, no such machine.
    """
    from huggingface_hub import get_token

    remote = Remote(plan.repo)
    options: dict[str, Any] = {"attempts": plan.attempts} if plan.attempts > 1 else {}
    try:
        return remote.once(
            lambda: remote.api.run_job(
                image=plan.image,
                command=list(plan.command),
                env=dict(plan.env),
                secrets={"HF_TOKEN": get_token()},
                flavor=plan.flavor,
                timeout=plan.timeout,
                namespace=plan.namespace,
                **options,
            )
        )
    except TypeError as error:
        raise DependencyError(
            f"This huggingface_hub cannot start such a job: {error}.", hint="pip install -U 'huggingface_hub>=2'"
        ) from None
    except Exception as error:  # noqa: BLE001 (two libraries' errors)
        # Not tried again: a job whose answer was lost may be running, and costs.
        if is_transient(error):
            raise HubError(
                f"The Hub's answer did not arrive ({type(error).__name__}): the job may be running, and cost.",
                hint="Look at `hf jobs ps` before you start it again.",
            ) from None
        raise remote.readable(error) from None


def _require(api: Any, method: str) -> None:
    if not hasattr(api, method):
        raise DependencyError("This huggingface_hub knows no jobs.", hint="pip install -U 'huggingface_hub>=1.0'")


def _hardware(remote: Remote) -> dict[str, float]:
    """Return machine to US dollars an hour; empty where this version of the client cannot ask, or the Hub not say."""
    ask = getattr(remote.api, "list_jobs_hardware", None)
    if ask is None:
        return {}
    try:
        return {one.name: one.unit_cost_usd * 60 / _MINUTES.get(str(one.unit_label), 1.0) for one in remote.once(ask)}
    except Exception as error:  # noqa: BLE001 (without a price the person is told so, and decides)
        logger.info("The Hub does not list its machines (%s).", type(error).__name__)
        return {}


def _bracketed(extras: Sequence[str]) -> str:
    return f"[{','.join(sorted(set(extras)))}]" if extras else ""
