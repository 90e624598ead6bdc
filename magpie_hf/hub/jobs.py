"""Run a recipe as a Hugging Face Job, which publishes its rows during the run.

The recipe is sent as text, the token only as the secret of the job. The package is installed from a URL, or from a wheel
that is uploaded to the target repository, never by its name: the package is not on a package index, so another person
could register the name there and get the token. A job that was killed or reached its time limit resumes from the Hub
when it is started again with the same command.
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
"""The image in which `huggingface_hub` runs uv scripts."""
RECIPE_VARIABLE = "MAGPIE_RECIPE"
VERSION_VARIABLE = "MAGPIE_VERSION"
MOST_RECIPE_BYTES = 60_000
VLLM_ENVIRONMENT = {"VLLM_USE_FLASHINFER_SAMPLER": "0"}
"""vLLM 0.22 and later samples with FlashInfer, which is compiled at startup with `nvcc`; the image does not have `nvcc`."""
_VERSION_CHECK = (
    "import os, sys, magpie_hf; found, wanted = magpie_hf.__version__, os.environ['MAGPIE_VERSION']; "
    "sys.exit(0 if found == wanted else f'magpie_hf {found} is installed, but this job was planned with {wanted}.')"
)
_URL = re.compile(r"(?:git\+)?https://\S+")
_REQUIREMENT = re.compile(r"magpie[_-]hf(?:\[([\w,-]*)\])? *@ *((?:git\+)?https://\S+)")
_WHEEL = re.compile(r"magpie_hf-([^-]+)-[\w.-]+\.whl")
_MINUTES = {"minute": 1.0, "hour": 60.0, "second": 1 / 60}
_GPUS = re.compile(r"x(\d+)$")
_TIMEOUT = re.compile(r"\d+(\.\d+)?[smhd]?")


class Package(NamedTuple):
    """The package that a job installs: its pip requirement, the expected version, and the wheel to upload, if any."""

    requirement: str
    version: str
    wheel: Path | None = None
    sha256: str = ""

    @property
    def path(self) -> str:
        """The path of the wheel in the target repository, which contains its hash."""
        return f"{ROOT}/packages/{self.sha256[:16]}/{self.wheel.name}" if self.wheel else ""


@dataclass(frozen=True)
class JobPlan:
    """A job to start; contains no secret.

    `price_per_hour`: US dollars, None if the Hub gives no price. `hours`: an estimate, None if there is none.
    `private`: whether a new repository is private.
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
        """Return the plan as lines of text, shown before the user confirms the cost."""
        price = "not given by the Hub" if self.price_per_hour is None else f"${self.price_per_hour:.2f} per hour"
        out = [
            f"recipe      {self.recipe}",
            f"publishes   {self.repo}, during the run",
            f"machine     {self.flavor}, at most {self.timeout}, paid by {self.namespace}",
            f"image       {self.image}",
            f"package     {self._package()}",
            f"command     {shlex.join(self.command[-1:])}",
            "secret      HF_TOKEN, the token of this machine",
            f"price       {price}",
        ]
        if self.hours is not None and self.price_per_hour is not None:
            out.append(f"estimate    {self.hours:,.1f} hours, ${self.hours * self.price_per_hour:,.2f}")
        return out

    def _package(self) -> str:
        """Return a description of the package."""
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
    """Return the plan of a job that runs a recipe and publishes to a repository, with its price from the Hub.

    `arguments`: further arguments of `magpie-hf run`. `extras`: of the package, e.g., "vllm". `package`: its URL, or a
    local wheel. `gpu_hours`: an estimate for the run, on an A100. `private`: whether a new repository is private.

    Raises:
        ArgumentError: no package is given, or the name of the repository or the machine is invalid.
        HubError: no login, or the Hub cannot be reached.
        DependencyError: this version of `huggingface_hub` does not support jobs.
    """
    from huggingface_hub import get_token

    check_online()
    if not _TIMEOUT.fullmatch(timeout):
        raise ArgumentError(f"Invalid timeout {quoted(timeout)}.", hint="Use, e.g., 90m, 24h or 2d.", key="timeout")
    found_package = package_of(package, extras)
    encoded = base64.b64encode(recipe_text.encode()).decode()
    if len(encoded) > MOST_RECIPE_BYTES:
        raise ArgumentError("The recipe is too large for a job.", hint="Shorten its texts.")
    remote = Remote(repo)
    _require(remote.api, "run_job")
    if not get_token():
        raise HubError("You are not logged in to the Hub.", hint="Run `hf auth login`, or set HF_TOKEN.")
    user = str(remote.with_retries(remote.api.whoami)["name"])
    target = full_name(repo, user)
    prices = _hardware(remote)
    if prices and flavor not in prices:
        raise ArgumentError(f"Unknown machine {flavor!r}.", hint=did_you_mean(flavor, prices), key="flavor")
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
    """Return the package that a job installs, from a local wheel or a URL.

    Raises:
        ArgumentError: no package is given, or a name that pip would look up on a package index.
    """
    if not given:
        raise ArgumentError(
            "--package is missing. magpie_hf is not on a package index, so a job needs a wheel or a URL.",
            hint="Give --package dist/magpie_hf-….whl (built with `python -m build --wheel`; it is uploaded to the target "
            "repository), or a URL such as git+https://….",
            key="package",
        )
    name = f"magpie_hf{_bracketed(extras)}"
    wheel = Path(given).expanduser()
    if given.endswith(".whl") and "://" not in given:
        found = _WHEEL.fullmatch(wheel.name)
        if not wheel.is_file() or found is None:
            raise ArgumentError(f"{quoted(given)} is not a local wheel of magpie_hf.", key="package")
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
            hint="pip would look up a name on a package index, where anyone can register it and get the token of the job.",
            key="package",
        )
    return Package(f"{name} @ {given}", _version_in(given))


def _refuse_login(given: str) -> None:
    """Raise ArgumentError if a URL contains a user or token, because the command of a job is not secret."""
    if re.search(r"://[^/?#\s]*@", given):
        raise ArgumentError(
            "The URL of the package contains a user or token, which the command of the job would show.",
            hint="Build a wheel (`python -m build --wheel`) and give its path: it is uploaded to the target repository.",
            key="package",
        )


def _version_in(url: str) -> str:
    """Return the version in the URL of a wheel; for other URLs, the local version."""
    found = _WHEEL.search(url)
    return found[1] if found else __version__


def _script(package: Package, target: str, arguments: Sequence[str]) -> str:
    """Return the shell script of the job: it installs the package, checks its version, and runs the recipe."""
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
    """Upload the package if it is a wheel, start the job, and return its `JobInfo` (`id`, `url`).

    Raises:
        HubError: the Hub rejects the job, e.g., no credit, no permission, unknown machine.
    """
    from huggingface_hub import get_token

    remote = Remote(plan.repo)
    if plan.package.wheel:
        wheel = plan.package.wheel
        remote.open(private=plan.private)
        remote.commit(lambda head: Changes({plan.package.path: wheel}), "Upload the package of a job")
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
            f"This version of huggingface_hub cannot start such a job: {error}.",
            hint="Run `pip install -U 'huggingface_hub>=2'`.",
        ) from None
    except Exception as error:  # noqa: BLE001 (errors of two libraries)
        # Not retried: if only the reply was lost, the job may be running and cost money.
        if is_transient(error):
            raise HubError(
                f"The reply of the Hub was lost ({type(error).__name__}): the job may be running and cost money.",
                hint="Check `hf jobs ps` before you start it again.",
            ) from None
        raise remote.readable(error) from None


def _require(api: Any, method: str) -> None:
    if not hasattr(api, method):
        raise DependencyError(
            "This version of huggingface_hub does not support jobs.",
            hint="Run `pip install -U 'huggingface_hub>=1.0'`.",
        )


def _hardware(remote: Remote) -> dict[str, float]:
    """Return US dollars per hour by machine; empty if this version of the client or the Hub does not list them."""
    ask = getattr(remote.api, "list_jobs_hardware", None)
    if ask is None:
        return {}
    try:
        return {one.name: one.unit_cost_usd * 60 / _MINUTES.get(str(one.unit_label), 1.0) for one in remote.once(ask)}
    except Exception as error:  # noqa: BLE001 (without a price, the user decides)
        logger.info("The Hub does not list its machines (%s).", type(error).__name__)
        return {}


def _bracketed(extras: Sequence[str]) -> str:
    return f"[{','.join(sorted(set(extras)))}]" if extras else ""
