"""Run a recipe as a Hugging Face Job: our package on a rented machine, publishing as it goes.

The recipe travels as text; the login travels as the job's secret and in nothing else. The package is installed from a URL,
or from a wheel that is uploaded to the target repository: never by its name, as it is on no index, and whoever registered
the name there would be given the login. A job that is killed, or reaches its time limit, resumes from the Hub when it is
started again with the same command.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ArgumentError, DependencyError, HubError, did_you_mean, quoted
from ..version import __version__
from .manifest import ROOT
from .remote import Changes, Remote, check_online, full_name, is_transient


logger = logging.getLogger("magpie_hf")
IMAGE = "ghcr.io/astral-sh/uv:python3.12-bookworm"
"""What `huggingface_hub` runs uv scripts in."""
RECIPE_VARIABLE = "MAGPIE_RECIPE"
VERSION_VARIABLE = "MAGPIE_VERSION"
MOST_RECIPE_BYTES = 60_000
VLLM_ENVIRONMENT = {"VLLM_USE_FLASHINFER_SAMPLER": "0"}
"""vLLM from 0.22 on samples with FlashInfer, which compiles at the start and needs `nvcc`; the image has none."""
_VERSION_CHECK = (
    "import os, sys, magpie_hf; found, wanted = magpie_hf.__version__, os.environ['MAGPIE_VERSION']; "
    "sys.exit(0 if found == wanted else f'magpie_hf {found} is installed, and this job was planned with {wanted}.')"
)
_URL = re.compile(r"(?:git\+)?https://\S+")
_REQUIREMENT = re.compile(r"magpie[_-]hf(?:\[([\w,-]*)\])? *@ *((?:git\+)?https://\S+)")
_WHEEL = re.compile(r"magpie_hf-([^-]+)-[\w.-]+\.whl")
_MINUTES = {"minute": 1.0, "hour": 60.0, "second": 1 / 60}
_GPUS = re.compile(r"x(\d+)$")
_TIMEOUT = re.compile(r"\d+(\.\d+)?[smhd]?")


class Package(NamedTuple):
    """What a job installs: what pip is given, the version it must be, and the wheel to upload, if it is one."""

    requirement: str
    version: str
    wheel: Path | None = None
    sha256: str = ""

    @property
    def path(self) -> str:
        """Where the wheel is in the target repository: the name tells its content."""
        return f"{ROOT}/packages/{self.sha256[:16]}/{self.wheel.name}" if self.wheel else ""


@dataclass(frozen=True)
class JobPlan:
    """What would be started: nothing in it is secret.

    `price_per_hour`: US dollars, None where the Hub does not say. `hours`: an estimate, None where there is none.
    `private`: whether the repository is private if it is made now.
    """

    recipe: str
    repo: str
    flavor: str
    command: tuple[str, ...]
    timeout: str
    namespace: str
    package: Package
    private: bool | None = None
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
            f"package     {self._package()}",
            f"command     {shlex.join(self.command[-1:])}",
            "secret      HF_TOKEN, the login of this machine",
            f"price       {price}",
        ]
        if self.hours is not None and self.price_per_hour is not None:
            out.append(f"estimate    {self.hours:,.1f} hours, ${self.hours * self.price_per_hour:,.2f}")
        return out

    def _package(self) -> str:
        """Return what is installed, and where it will be."""
        wheel = self.package.wheel
        if wheel is None:
            return f"{self.package.requirement}, version {self.package.version}"
        return f"{wheel.name}, uploaded to {self.repo}"


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
    private: bool | None = None,
) -> JobPlan:
    """Return the job that runs a recipe and publishes to a repository; asks the Hub who pays and what it costs.

    `arguments`: further words for `magpie-hf run`. `extras`: of the package, as "vllm". `package`: a URL of it, or a
    wheel on this machine. `gpu_hours`: an estimate of the whole, on an A100. `private`: of a repository made now.

    Raises:
        ArgumentError: no package is given, or the repository's name, or the machine's, cannot be used.
        HubError: no login, or the Hub cannot be reached.
        DependencyError: this version of `huggingface_hub` knows no jobs.
    """
    from huggingface_hub import get_token

    check_online()
    if not _TIMEOUT.fullmatch(timeout):
        raise ArgumentError(f"There is no time {quoted(timeout)}.", hint="As 90m, 24h or 2d.", key="timeout")
    found_package = package_of(package, extras)
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
    script = _script(found_package, target, ["--push-to", target, *arguments])
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
        package=found_package,
        private=private,
        image=image,
        attempts=attempts,
        price_per_hour=prices.get(flavor),
        hours=gpu_hours / gpus if gpu_hours is not None and is_a100 else None,
        env={
            RECIPE_VARIABLE: encoded,
            VERSION_VARIABLE: found_package.version,
            **(VLLM_ENVIRONMENT if "vllm" in extras else {}),
        },
    )


def package_of(given: str | None, extras: Sequence[str] = ()) -> Package:
    """Return what a job installs: a wheel on this machine, or a URL.

    Raises:
        ArgumentError: nothing is given, or a name that pip would look up in an index.
    """
    if not given:
        raise ArgumentError(
            "A job needs to know where to install magpie_hf from: it is on no package index.",
            hint="--package dist/magpie_hf-….whl (made by `python -m build --wheel`; it is uploaded to the target "
            "repository), or a URL as git+https://….",
            key="package",
        )
    name = f"magpie_hf{_bracketed(extras)}"
    wheel = Path(given).expanduser()
    if given.endswith(".whl") and "://" not in given:
        found = _WHEEL.fullmatch(wheel.name)
        if not wheel.is_file() or found is None:
            raise ArgumentError(f"{quoted(given)} is not a wheel of magpie_hf on this machine.", key="package")
        content = wheel.read_bytes()
        return Package(name, found[1], wheel, hashlib.sha256(content).hexdigest())
    _refuse_login(given)
    found = _REQUIREMENT.fullmatch(given)
    if found:
        named = [extra for extra in (found[1] or "").split(",") if extra]
        return Package(f"magpie_hf{_bracketed([*extras, *named])} @ {found[2]}", _version_in(given))
    if not _URL.fullmatch(given):
        raise ArgumentError(
            f"The package {quoted(given)} is neither a URL nor a wheel.",
            hint="A name would be looked up in an index, where anybody can register it; the job's login would be theirs.",
            key="package",
        )
    return Package(f"{name} @ {given}", _version_in(given))


def _refuse_login(given: str) -> None:
    """Raise ArgumentError for a URL with a user or token in it: a job's command is shown, and is no secret."""
    if re.search(r"://[^/?#\s]*@", given):
        raise ArgumentError(
            "The package's URL has a login in it, which the job's command would show.",
            hint="Make a wheel (`python -m build --wheel`) and give its path: it is uploaded to the target repository.",
            key="package",
        )


def _version_in(url: str) -> str:
    """Return the version that a wheel's URL names; of other URLs, that of this machine."""
    found = _WHEEL.search(url)
    return found[1] if found else __version__


def _script(package: Package, target: str, arguments: Sequence[str]) -> str:
    """Return what the job's shell runs: the recipe and the package in place, its version checked, then the run."""
    lines = ["set -e", 'cd "$(mktemp -d)"', f'printf %s "${RECIPE_VARIABLE}" | base64 -d > recipe.yaml']
    requirement = shlex.quote(package.requirement)
    if package.wheel:
        download = [
            "uvx",
            "--from",
            "huggingface_hub",
            "hf",
            "download",
            target,
            package.path,
            "--repo-type",
            "dataset",
        ]
        checksum = shlex.quote(f"{package.sha256}  {package.path}")
        lines += [shlex.join([*download, "--local-dir", "."]), f"echo {checksum} | sha256sum -c -"]
        requirement = f'{shlex.quote(package.requirement + " @ file://")}"$PWD"/{shlex.quote(package.path)}'
    uv = f"uv run --no-project --with {requirement}"
    lines += [f"{uv} python -c {shlex.quote(_VERSION_CHECK)}"]
    return "\n".join([*lines, f"exec {uv} {shlex.join(['magpie-hf', 'run', 'recipe.yaml', *arguments])}"])


def submit(plan: JobPlan) -> Any:
    """Upload the package if it is a wheel, start the job, and return what the Hub says of it (`id`, `url`).

    Raises:
        HubError: the Hub refuses: no credit, no right, no such machine.
    """
    from huggingface_hub import get_token

    remote = Remote(plan.repo)
    if plan.package.wheel:
        wheel = plan.package.wheel
        remote.open(private=plan.private)
        remote.commit(lambda head: Changes({plan.package.path: wheel}), "The package of a job")
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
