"""Hugging Face Inference Endpoints: find them by name, start them, create them with vLLM or TGI, scale them to zero.

The token is sent only to the API of the Hub and to an endpoint that the user named.
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
"""Hosts of Inference Endpoints; the token is sent to no other host."""
PRICES = "https://huggingface.co/docs/inference-endpoints/pricing"
IMAGES = {
    "vllm": {"vLLM": {"url": "vllm/vllm-openai:v0.23.0", "port": 8000}},
    "tgi": {"tgi": {"url": "ghcr.io/huggingface/text-generation-inference:3.3.6", "port": 80}},
}
"""Container images by engine, in the form of `create_inference_endpoint`."""
WAKE_TIMEOUT_S = 1800
POLL_S = 5.0
_ASLEEP = ("paused", "scaledToZero")
_FAILED = ("failed", "updateFailed")
_woken: list[tuple[str, str | None]] = []
_were_paused: set[tuple[str, str | None]] = set()


class EndpointAddress(NamedTuple):
    """URL of an endpoint, the engine for it, the environment variable with its key, and its model."""

    url: str
    engine: str
    api_key_env: str
    model: str


@dataclass(frozen=True)
class EndpointPlan:
    """An endpoint to create. `price_per_hour`: US dollars per replica, None if the Hub gives no price."""

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
        """Return the plan as lines of text, shown before the user confirms the cost."""
        price = f"see {PRICES}" if self.price_per_hour is None else f"${self.price_per_hour:.2f} per hour"
        return [
            f"endpoint    {self.name}" + (f" in {self.namespace}" if self.namespace else ""),
            f"model       {self.model}, served by {self.engine}",
            f"machine     {self.vendor} {self.region}, {self.instance_type} {self.instance_size}",
            f"sleeps      after {self.sleep_after_min} minutes without requests",
            f"price       {price}",
        ]


def endpoint_of(name: str, *, wake: bool = True) -> EndpointAddress:
    """Return the address of an endpoint; if it is scaled to zero or paused, start it and wait until it is running.

    Raises:
        HubError: the endpoint does not exist, failed, or did not start.
        ArgumentError: its URL is not a URL of Inference Endpoints, so the token must not be sent there.
    """
    endpoint, remote, namespace = _get(name)
    is_asleep = str(endpoint.status) in _ASLEEP
    is_ready = str(endpoint.status) == "running" and endpoint.url is not None
    if is_asleep and not wake:
        raise HubError(f"The endpoint {quoted(name)} is scaled to zero or paused.", hint="Start it first.")
    try:
        if is_asleep:
            # Only endpoints that this process started are scaled to zero again, not endpoints that others started.
            logger.info("The endpoint %s is starting. This takes some minutes.", name)
            _woken.append((endpoint.name, namespace))
            if str(endpoint.status) == "paused":
                _were_paused.add((endpoint.name, namespace))
            remote.once(endpoint.resume)
        if not is_ready:
            _wait_for_address(endpoint, name)
            checked_address(str(endpoint.url))
            endpoint.wait(timeout=WAKE_TIMEOUT_S)  # sends the token to the endpoint itself
    except ArgumentError:
        raise
    except Exception as error:  # noqa: BLE001 (errors of two libraries)
        raise _trouble(error, remote, name) from None
    address = checked_address(str(endpoint.url))
    return EndpointAddress(address, _engine_of(endpoint.raw), "HF_TOKEN", str(endpoint.repository))


def _wait_for_address(endpoint: Any, name: str) -> None:
    """Wait until the Hub returns the URL of an endpoint. Requests are sent to the Hub only.

    Raises:
        HubError: the endpoint failed, or takes too long.
    """
    deadline = time.monotonic() + WAKE_TIMEOUT_S
    while str(endpoint.status) != "running" or endpoint.url is None:
        if str(endpoint.status) in _FAILED:
            raise HubError(f"The endpoint {quoted(name)} failed to deploy.", hint="See the log on its page.")
        if time.monotonic() > deadline:
            raise HubError(
                f"The endpoint {quoted(name)} did not start within {WAKE_TIMEOUT_S} s.", hint="Try again later."
            )
        time.sleep(POLL_S)
        endpoint.fetch()


def wakes(name: str) -> bool:
    """Whether the endpoint is scaled to zero or paused, so that using it starts it and costs money."""
    endpoint, _, _ = _get(name)
    return str(endpoint.status) in _ASLEEP


def checked_address(url: str) -> str:
    """Return the URL of an endpoint if the token may be sent there.

    Raises:
        ArgumentError: the host does not belong to Inference Endpoints.
    """
    from huggingface_hub import constants

    parts = urlsplit(url)
    host = parts.hostname or ""
    hub_host = urlsplit(constants.INFERENCE_ENDPOINTS_ENDPOINT).hostname or ""
    is_local = host == hub_host and host in ("127.0.0.1", "localhost")
    if not is_local and (parts.scheme != "https" or not host.endswith(HOST_SUFFIX)):
        raise ArgumentError(
            f"The URL {quoted(url)} does not belong to Inference Endpoints, so the token is not sent there.",
            hint="Use --endpoint URL with --api-key-env NAME.",
        )
    return url.rstrip("/")


def plan_endpoint(name: str, model: str, engine: str = "vllm", **settings: Any) -> EndpointPlan:
    """Return the plan of an endpoint, with its price if the Hub gives one.

    Raises:
        ArgumentError: the engine is unknown.
        HubError: no login.
    """
    if engine not in IMAGES:
        raise ArgumentError(f"Unknown engine {quoted(engine)}.", hint=f"Engines: {', '.join(IMAGES)}.")
    _remote(name)
    plan = EndpointPlan(name, model, engine, **settings)
    price = _price(plan)
    return EndpointPlan(**{**plan.__dict__, "price_per_hour": price})


def create_endpoint(plan: EndpointPlan) -> Any:
    """Create an endpoint that scales to zero automatically when it gets no requests.

    Raises:
        HubError: the Hub rejects the request.
        DependencyError: this version of `huggingface_hub` does not support an option that the engine needs.
    """
    remote = _remote(plan.name)
    # TGI takes the model from an environment variable, vLLM from an argument.
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
            f"This version of huggingface_hub cannot create such an endpoint: {error}.",
            hint="Run `pip install -U huggingface_hub`, or use --engine tgi.",
        ) from None
    except Exception as error:  # noqa: BLE001 (errors of two libraries)
        raise _trouble(error, remote, plan.name) from None


def put_to_sleep(name: str) -> None:
    """Scale an endpoint to zero, so that it costs nothing until its next request; pause it if it was paused before.

    Raises:
        HubError: the Hub rejects the request.
    """
    namespace, short = _split(name)
    remote = _remote(name)
    was_paused = (short, namespace) in _were_paused
    _were_paused.discard((short, namespace))
    api = remote.api
    stop = api.pause_inference_endpoint if was_paused else api.scale_to_zero_inference_endpoint
    try:
        remote.once(lambda: stop(short, namespace=namespace))
    except Exception as error:  # noqa: BLE001 (errors of two libraries)
        raise _trouble(error, remote, name) from None


def scale_to_zero() -> list[str]:
    """Scale the endpoints to zero that this process started, and return their names. Failures are logged."""
    done = []
    while _woken:
        short, namespace = _woken.pop()
        name = f"{namespace}/{short}" if namespace else short
        try:
            put_to_sleep(name)
            done.append(name)
        except HubError as error:
            logger.warning("The endpoint %s could not be scaled to zero: %s", name, error.message)
    return done


def _split(name: str) -> tuple[str | None, str]:
    if not re.fullmatch(r"(?:[\w.-]+/)?[\w.-]+", name):
        raise ArgumentError(f"Invalid endpoint name {quoted(name)}.", hint="Use a name such as me/my-endpoint.")
    namespace, _, short = name.rpartition("/")
    return namespace or None, short


def _remote(name: str) -> Remote:
    from huggingface_hub import get_token

    check_online()
    if not get_token():
        raise HubError("You are not logged in to the Hub.", hint="Run `hf auth login`, or set HF_TOKEN.")
    return Remote(name)


def _get(name: str) -> tuple[Any, Remote, str | None]:
    namespace, short = _split(name)
    remote = _remote(name)
    try:
        found = remote.once(lambda: remote.api.get_inference_endpoint(short, namespace=namespace))
        return found, remote, namespace
    except Exception as error:  # noqa: BLE001 (errors of two libraries)
        raise _trouble(error, remote, name) from None


def _trouble(error: Exception, remote: Remote, name: str) -> Exception:
    if isinstance(error, HubError):
        return error
    if status_of(error) == 404:
        return HubError(f"The endpoint {quoted(name)} does not exist, or the token has no access to it.")
    found = remote.readable(error)
    message = getattr(found, "message", str(found))
    return HubError(f"The endpoint {quoted(name)}: {message}", hint=getattr(found, "hint", None))


def _engine_of(raw: Mapping[str, Any]) -> str:
    """Return the engine for the image of an endpoint."""
    image = (raw.get("model") or {}).get("image") or {}
    text = " ".join([*map(str, image), str(image)]).lower()
    return "tgi" if "tgi" in text or "text-generation-inference" in text else "openai"


def _price(plan: EndpointPlan) -> float | None:
    """Return the price of a machine from the Inference Endpoints API, None if it lists none.

    The route is that of `list_inference_endpoints_hardware`, which older clients do not have.
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
    except Exception:  # noqa: BLE001 (without a price, the user decides)
        return None
    return None
