"""Hugging Face Inference Endpoints: found by name, woken if they sleep, made with vLLM or TGI, put to sleep again.

The login goes to the Hub's own interface, and to an endpoint that the user named; nowhere else.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ..errors import ArgumentError, DependencyError, HubError, quoted
from .remote import Remote, check_online, status_of


logger = logging.getLogger("magpie_hf")
HOST_SUFFIX = ".endpoints.huggingface.cloud"
"""Where Inference Endpoints live: a login is sent to no other host."""
PRICES = "https://huggingface.co/docs/inference-endpoints/pricing"
IMAGES = {
    "vllm": {"vLLM": {"url": "vllm/vllm-openai:v0.23.0", "port": 8000}},
    "tgi": {"tgi": {"url": "ghcr.io/huggingface/text-generation-inference:3.3.6", "port": 80}},
}
"""Images by engine, as `create_inference_endpoint` takes them; a newer one may be given."""
WAKE_TIMEOUT_S = 1800
POLL_S = 5.0
_ASLEEP = ("paused", "scaledToZero")
_FAILED = ("failed", "updateFailed")
_woken: list[tuple[str, str | None]] = []
_were_paused: set[tuple[str, str | None]] = set()


class EndpointAddress(NamedTuple):
    """Where an endpoint answers, which engine speaks to it, which environment variable holds its key, and its model."""

    url: str
    engine: str
    api_key_env: str
    model: str


@dataclass(frozen=True)
class EndpointPlan:
    """An endpoint to be made. `price_per_hour`: US dollars a replica, None where the Hub does not say."""

    name: str
    model: str
    engine: str
    vendor: str
    region: str
    instance_type: str
    instance_size: str
    accelerator: str = "gpu"
    namespace: str | None = None
    revision: str | None = None
    sleep_after_min: int = 15
    price_per_hour: float | None = None

    def lines(self) -> list[str]:
        """Return the plan as a person wants to see it before it costs anything."""
        price = f"see {PRICES}" if self.price_per_hour is None else f"${self.price_per_hour:.2f} an hour"
        return [
            f"endpoint    {self.name}" + (f" in {self.namespace}" if self.namespace else ""),
            f"model       {self.model}, served by {self.engine}",
            f"machine     {self.vendor} {self.region}, {self.instance_type} {self.instance_size}",
            f"sleeps      after {self.sleep_after_min} minutes without requests",
            f"price       {price}",
        ]


def endpoint_of(name: str, *, wake: bool = True) -> EndpointAddress:
    """Return where a named endpoint answers, woken and waited for if it sleeps.

    Raises:
        HubError: there is none of that name, it failed, or it does not wake.
        ArgumentError: its address is not one that a login may be sent to.
    """
    endpoint, remote, namespace = _get(name)
    is_asleep = str(endpoint.status) in _ASLEEP
    is_ready = str(endpoint.status) == "running" and endpoint.url is not None
    if is_asleep and not wake:
        raise HubError(f"The endpoint {quoted(name)} sleeps.", hint="Wake it first.")
    try:
        if is_asleep:
            # Only what is woken here is put to sleep here: one that somebody else is starting is waited for.
            logger.info("The endpoint %s is waking; this takes minutes.", name)
            _woken.append((endpoint.name, namespace))
            if str(endpoint.status) == "paused":
                _were_paused.add((endpoint.name, namespace))
            remote.once(endpoint.resume)
        if not is_ready:
            _wait_for_address(endpoint, name)
            checked_address(str(endpoint.url))
            endpoint.wait(timeout=WAKE_TIMEOUT_S)  # asks the endpoint itself, with the login
    except ArgumentError:
        raise
    except Exception as error:  # noqa: BLE001 (two libraries' errors)
        raise _trouble(error, remote, name) from None
    address = checked_address(str(endpoint.url))
    return EndpointAddress(address, _engine_of(endpoint.raw), "HF_TOKEN", str(endpoint.repository))


def _wait_for_address(endpoint: Any, name: str) -> None:
    """Wait until the Hub says where an endpoint runs, asking the Hub alone.

    Raises:
        HubError: it failed, or takes too long.
    """
    deadline = time.monotonic() + WAKE_TIMEOUT_S
    while str(endpoint.status) != "running" or endpoint.url is None:
        if str(endpoint.status) in _FAILED:
            raise HubError(f"The endpoint {quoted(name)} failed to deploy.", hint="Its page has its log.")
        if time.monotonic() > deadline:
            raise HubError(f"The endpoint {quoted(name)} did not wake in {WAKE_TIMEOUT_S} s.", hint="Try again later.")
        time.sleep(POLL_S)
        endpoint.fetch()


def wakes(name: str) -> bool:
    """Whether the endpoint sleeps, so that using it begins to cost."""
    endpoint, _, _ = _get(name)
    return str(endpoint.status) in _ASLEEP


def checked_address(url: str) -> str:
    """Return an endpoint's address if a login may be sent there.

    Raises:
        ArgumentError: the host is none of Inference Endpoints'.
    """
    from huggingface_hub import constants

    parts = urlsplit(url)
    host = parts.hostname or ""
    hub_host = urlsplit(constants.INFERENCE_ENDPOINTS_ENDPOINT).hostname or ""
    is_local = host == hub_host and host in ("127.0.0.1", "localhost")
    if not is_local and (parts.scheme != "https" or not host.endswith(HOST_SUFFIX)):
        raise ArgumentError(
            f"The endpoint's address {quoted(url)} is not one of Inference Endpoints, so no login is sent there.",
            hint="Use --endpoint URL with --api-key-env NAME.",
        )
    return url.rstrip("/")


def plan_endpoint(name: str, model: str, engine: str = "vllm", **settings: Any) -> EndpointPlan:
    """Return an endpoint to be made, with its price where the Hub says one.

    Raises:
        ArgumentError: no such engine.
        HubError: no login.
    """
    if engine not in IMAGES:
        raise ArgumentError(f"There is no image for {quoted(engine)}.", hint=f"Engines: {', '.join(IMAGES)}.")
    _remote(name)
    plan = EndpointPlan(name, model, engine, **settings)
    price = _price(plan)
    return EndpointPlan(**{**plan.__dict__, "price_per_hour": price})


def create_endpoint(plan: EndpointPlan) -> Any:
    """Make the endpoint; it sleeps by itself when no request comes.

    Raises:
        HubError: the Hub refuses.
        DependencyError: this version of `huggingface_hub` cannot say what the engine needs.
    """
    remote = _remote(plan.name)
    # TGI and vLLM are told the model differently: TGI reads the mounted repository, vLLM an argument.
    options: dict[str, Any] = {}
    if plan.engine == "vllm":
        options["container_args"] = ["--model", "/repository", "--served-model-name", plan.model]
    env = {"MODEL_ID": "/repository"} if plan.engine == "tgi" else {}
    try:
        return remote.once(
            lambda: remote.api.create_inference_endpoint(
                plan.name,
                repository=plan.model,
                revision=plan.revision,
                framework="pytorch",
                task="text-generation",
                accelerator=plan.accelerator,
                vendor=plan.vendor,
                region=plan.region,
                instance_type=plan.instance_type,
                instance_size=plan.instance_size,
                min_replica=0,
                max_replica=1,
                scale_to_zero_timeout=plan.sleep_after_min,
                custom_image=IMAGES[plan.engine],
                env=env,
                namespace=plan.namespace,
                **options,
            )
        )
    except TypeError as error:
        raise DependencyError(
            f"This huggingface_hub cannot make such an endpoint: {error}.",
            hint="pip install -U huggingface_hub, or --engine tgi.",
        ) from None
    except Exception as error:  # noqa: BLE001 (two libraries' errors)
        raise _trouble(error, remote, plan.name) from None


def put_to_sleep(name: str) -> None:
    """Scale an endpoint to zero: it costs nothing until it is asked again. One that this process found paused is paused.

    Raises:
        HubError: the Hub refuses.
    """
    namespace, short = _split(name)
    remote = _remote(name)
    was_paused = (short, namespace) in _were_paused
    _were_paused.discard((short, namespace))
    api = remote.api
    stop = api.pause_inference_endpoint if was_paused else api.scale_to_zero_inference_endpoint
    try:
        remote.once(lambda: stop(short, namespace=namespace))
    except Exception as error:  # noqa: BLE001 (two libraries' errors)
        raise _trouble(error, remote, name) from None


def let_sleep() -> list[str]:
    """Scale to zero what this process woke; return the names. What fails is told, and sleeps by its own timeout."""
    done = []
    while _woken:
        short, namespace = _woken.pop()
        name = f"{namespace}/{short}" if namespace else short
        try:
            put_to_sleep(name)
            done.append(name)
        except HubError as error:
            logger.warning("The endpoint %s could not be put to sleep: %s", name, error.message)
    return done


def _split(name: str) -> tuple[str | None, str]:
    if not re.fullmatch(r"(?:[\w.-]+/)?[\w.-]+", name):
        raise ArgumentError(f"{quoted(name)} is no endpoint's name.", hint="As me/my-endpoint.")
    namespace, _, short = name.rpartition("/")
    return namespace or None, short


def _remote(name: str) -> Remote:
    from huggingface_hub import get_token

    check_online()
    if not get_token():
        raise HubError("There is no login for the Hub.", hint="`hf auth login`, or set HF_TOKEN.")
    return Remote(name)


def _get(name: str) -> tuple[Any, Remote, str | None]:
    namespace, short = _split(name)
    remote = _remote(name)
    try:
        found = remote.once(lambda: remote.api.get_inference_endpoint(short, namespace=namespace))
        return found, remote, namespace
    except Exception as error:  # noqa: BLE001 (two libraries' errors)
        raise _trouble(error, remote, name) from None


def _trouble(error: Exception, remote: Remote, name: str) -> Exception:
    if isinstance(error, HubError):
        return error
    if status_of(error) == 404:
        return HubError(f"There is no endpoint {quoted(name)}, or the login may not see it.")
    found = remote.readable(error)
    message = getattr(found, "message", str(found))
    return HubError(f"The endpoint {quoted(name)}: {message}", hint=getattr(found, "hint", None))


def _engine_of(raw: Mapping[str, Any]) -> str:
    """Return which of our engines speaks to the endpoint's image."""
    image = (raw.get("model") or {}).get("image") or {}
    text = " ".join([*map(str, image), str(image)]).lower()
    return "tgi" if "tgi" in text or "text-generation-inference" in text else "openai"


def _price(plan: EndpointPlan) -> float | None:
    """Return the price of a machine as the endpoints' interface lists it, None where it does not.

    The route is the one of `list_inference_endpoints_hardware`, which older clients do not have.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

    wanted = (plan.vendor, plan.region, plan.instance_type, plan.instance_size)
    try:
        payer = plan.namespace or _remote(plan.name).api.whoami()["name"]
        url = f"{constants.INFERENCE_ENDPOINTS_ENDPOINT}/provider/{payer}"
        answer = get_session().get(url, headers=build_hf_headers(), timeout=10)
        vendors = answer.json()["vendors"] if answer.status_code == 200 else []
        for vendor in vendors:
            for region in vendor["regions"]:
                for machine in region["computes"]:
                    found = (vendor["name"], region["name"], machine["instanceType"], machine["instanceSize"])
                    if found == wanted:
                        return float(machine["pricePerHour"])
    except Exception:  # noqa: BLE001 (without a price the person is told so, and decides)
        return None
    return None
