"""Inference Endpoints, as the installed `huggingface_hub` really asks for them: its own routes, its own answers."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import pytest

from magpie_hf.errors import ArgumentError, HubError
from magpie_hf.hub import inference_endpoints as endpoints
from magpie_hf.hub import jobs
from tests.end_to_end.harness import here
from tests.servers.http_server import STOP_POLL_S

from .conftest import TOKEN, use_hub


class Asked(NamedTuple):
    """A request that came in."""

    method: str
    path: str
    authorization: str
    body: str


class EndpointsServer:
    """The Hub's `whoami` and the interface of Inference Endpoints; `refuse`: the status that endpoints answer with.

    `entries`: name to state, url, image and repository. What is resumed is running at once, at `wakes_at`.
    """

    def __init__(self):
        self.entries = {}
        self.asked = []
        self.refuse = None
        self.hardware = None
        self.state_after_resume = "running"
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.wakes_at = self.url
        self._thread = threading.Thread(target=self._server.serve_forever, args=(STOP_POLL_S,), daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, name, state="running", *, image=None, **more):
        url = self.url if state == "running" else None
        self.entries[name] = {"state": state, "url": url, "image": image or {"tgi": {}}, "repository": "a/b", **more}

    def posts(self):
        """Return the paths that were posted to: what changes something, or costs."""
        return [one.path for one in self.asked if one.method == "POST"]

    def _handler(server):
        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                server.asked.append(Asked(self.command, self.path, self.headers.get("Authorization") or "", body))
                status, found = server.route(self.command, self.path, body)
                data = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = answer

            def log_message(self, *_):
                pass

        return Handler

    def route(self, method, path, body):
        if path.startswith("/api/whoami"):
            return 200, {"name": "me", "type": "user", "orgs": []}
        if path == "/health":
            return 200, {}
        if path.startswith("/v2/provider/") and self.hardware and path == "/v2/provider/me":
            return 200, self.hardware
        if not path.startswith("/v2/endpoint/me"):
            return 404, {"error": "not found"}
        if self.refuse:
            return self.refuse, {"error": "refused"}
        if method == "POST" and path == "/v2/endpoint/me":
            given = json.loads(body)
            self.add(given["name"], "initializing")
            return 200, self.described(given["name"])
        name, _, action = path.removeprefix("/v2/endpoint/me/").partition("/")
        if name not in self.entries:
            return 404, {"error": "not found"}
        if action == "resume":
            self.entries[name] |= {"state": self.state_after_resume, "url": self.wakes_at}
        elif action in ("scale-to-zero", "pause"):
            self.entries[name] |= {"state": "paused" if action == "pause" else "scaledToZero", "url": None}
        return 200, self.described(name)

    def described(self, name):
        entry = self.entries[name]
        moment = "2026-01-01T00:00:00Z"
        return {
            "name": name,
            "status": {"state": entry["state"], "url": entry["url"], "createdAt": moment, "updatedAt": moment},
            "model": {
                "repository": entry["repository"],
                "image": entry["image"],
                "framework": "pytorch",
                "revision": None,
                "task": "text-generation",
            },
            "type": "authenticated",
            "healthRoute": "/health",
            "compute": {},
        }


@pytest.fixture
def server(monkeypatch):
    with EndpointsServer() as server:
        use_hub(server, monkeypatch)
        monkeypatch.setattr("huggingface_hub.constants.INFERENCE_ENDPOINTS_ENDPOINT", f"{server.url}/v2")
        monkeypatch.setattr(endpoints, "_woken", [])
        monkeypatch.setattr(endpoints, "_were_paused", set())
        monkeypatch.setattr(endpoints, "POLL_S", 0.01)
        yield server


def plan_of(name="mine", engine="vllm", **more):
    settings = {"vendor": "aws", "region": "us-east-1", "instance_type": "nvidia-a100", "instance_size": "x1"}
    return endpoints.plan_endpoint(name, "a/b", engine, **settings, namespace="me", **more)


def test_an_endpoint_that_runs_is_used_as_it_is(server):
    server.add("mine")
    found = endpoints.endpoint_of("me/mine")
    assert found == (server.url, "tgi", "HF_TOKEN", "a/b")
    assert server.posts() == []
    assert endpoints.scale_to_zero() == []


@pytest.mark.parametrize("state", ["paused", "scaledToZero"])
def test_an_endpoint_that_sleeps_is_woken_and_waited_for(server, state):
    server.add("mine", state)
    assert endpoints.wakes("me/mine")
    assert endpoints.endpoint_of("me/mine").url == server.url
    assert server.posts() == ["/v2/endpoint/me/mine/resume"]
    assert "/health" in [one.path for one in server.asked]
    assert not endpoints.wakes("me/mine")


def test_an_endpoint_that_sleeps_is_left_alone_where_nobody_said_yes(server):
    server.add("mine", "scaledToZero")
    with pytest.raises(HubError, match="scaled to zero"):
        endpoints.endpoint_of("me/mine", wake=False)
    assert server.posts() == []


def test_what_was_woken_is_put_to_sleep_once(server):
    server.add("mine", "scaledToZero")
    endpoints.endpoint_of("me/mine")
    assert endpoints.scale_to_zero() == ["me/mine"]
    assert endpoints.scale_to_zero() == []
    assert server.posts() == ["/v2/endpoint/me/mine/resume", "/v2/endpoint/me/mine/scale-to-zero"]


def test_a_name_without_a_namespace_is_the_users(server):
    server.add("mine")
    assert endpoints.endpoint_of("mine").model == "a/b"
    here("endpoints", "sleep", "mine")
    assert server.entries["mine"]["state"] == "scaledToZero"


@pytest.mark.parametrize(
    ("image", "engine"),
    [
        ({"tgi": {"port": 80}}, "tgi"),
        ({"tgiNeuron": {}}, "tgi"),
        ({"custom": {"url": "ghcr.io/huggingface/text-generation-inference:3.3.6"}}, "tgi"),
        ({"vLLM": {"url": "vllm/vllm-openai:v0.23.0"}}, "openai"),
        ({"custom": {"url": "vllm/vllm-openai:latest"}}, "openai"),
        ({"llamacpp": {"ctxSize": 4096}}, "openai"),
    ],
    ids=["tgi", "tgi-neuron", "tgi-custom", "vllm", "vllm-custom", "llamacpp"],
)
def test_the_engine_is_read_off_the_image(server, image, engine):
    server.add("mine", image=image)
    assert endpoints.endpoint_of("me/mine").engine == engine


def test_the_key_is_the_name_of_a_variable_never_the_token(server):
    server.add("mine")
    found = endpoints.endpoint_of("me/mine")
    assert found.api_key_env == "HF_TOKEN"
    assert TOKEN not in repr(found)


@pytest.mark.parametrize(
    "act",
    [
        lambda: endpoints.endpoint_of("me/mine"),
        lambda: endpoints.wakes("me/mine"),
        lambda: endpoints.put_to_sleep("me/mine"),
        lambda: endpoints.create_endpoint(plan_of()),
    ],
    ids=["find", "look", "sleep", "create"],
)
@pytest.mark.parametrize(("status", "words"), [(401, "rejected the token"), (403, "no permission")])
def test_a_refusal_is_one_readable_error_without_the_token(server, act, status, words):
    server.add("mine")
    server.refuse = status
    with pytest.raises(HubError, match=words) as caught:
        act()
    assert "'me" in str(caught.value) or "'mine'" in str(caught.value)
    assert TOKEN not in f"{caught.value}{caught.value!r}{caught.value.data}"
    assert caught.value.__suppress_context__, "a traceback would show what the client was doing, token and all"


@pytest.mark.parametrize(
    "act",
    [lambda: endpoints.endpoint_of("me/mine"), lambda: endpoints.put_to_sleep("me/mine"), plan_of],
    ids=["find", "sleep", "plan"],
)
def test_without_a_login_nothing_is_asked(server, monkeypatch, act):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="not logged in") as caught:
        act()
    assert "hf auth login" in caught.value.hint
    assert server.asked == []


def test_an_endpoint_that_fails_to_wake_is_said_to(server):
    server.add("mine", "scaledToZero")
    server.state_after_resume, server.wakes_at = "failed", None
    with pytest.raises(HubError, match="failed to deploy"):
        endpoints.endpoint_of("me/mine")


@pytest.mark.parametrize(("engine", "image"), [("vllm", "vLLM"), ("tgi", "tgi")])
def test_what_is_asked_for_at_creation(server, engine, image):
    endpoints.create_endpoint(plan_of(engine=engine, revision="abc", sleep_after_min=7))
    (post,) = [one for one in server.asked if one.method == "POST"]
    asked = json.loads(post.body)
    assert list(asked["model"]["image"]) == [image]
    assert (asked["model"]["repository"], asked["model"]["revision"]) == ("a/b", "abc")
    assert asked["compute"]["instanceType"] == "nvidia-a100"
    assert asked["compute"]["scaling"] == {"minReplica": 0, "maxReplica": 1, "scaleToZeroTimeout": 7}
    assert asked["provider"] == {"vendor": "aws", "region": "us-east-1"}
    assert asked["type"] != "public"
    assert TOKEN not in post.body
    assert post.authorization == f"Bearer {TOKEN}"


def test_an_engine_without_an_image_is_named(server):
    with pytest.raises(ArgumentError, match="Unknown engine 'sglang'"):
        plan_of(engine="sglang")


def test_a_price_that_cannot_be_had_points_to_the_list(server):
    plan = plan_of()
    assert plan.price_per_hour is None
    assert any(endpoints.PRICES in line for line in plan.lines())
    assert TOKEN not in f"{plan!r}{plan.lines()}"


def test_a_no_makes_no_endpoint(server, monkeypatch):
    arguments = ["endpoints", "create", "me/mine", "--model", "a/b", "--instance-type", "x", "--instance-size", "x1"]
    said = here(*arguments, code=1)
    assert "--yes" in said
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: "n")
    said += here(*arguments)
    assert "Nothing was started." in said
    assert TOKEN not in said
    assert server.posts() == []


def test_offline_nothing_is_asked(server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="Offline"):
        endpoints.endpoint_of("me/mine")
    assert server.asked == []


def test_the_login_is_not_sent_to_a_foreign_address_while_waiting(server):
    with EndpointsServer() as other:
        server.add("mine", "scaledToZero")
        server.wakes_at = other.url.replace("127.0.0.1", "localhost")
        with pytest.raises(ArgumentError, match="token is not sent"):
            endpoints.endpoint_of("me/mine")
        assert other.asked == []


def test_an_endpoint_that_somebody_else_starts_is_waited_for_and_left_awake(server):
    server.add("mine", "initializing")
    look = server.described

    def described(name):
        seen = look(name)
        server.add(name)
        return seen

    server.described = described
    assert endpoints.endpoint_of("me/mine").url == server.url
    assert endpoints.scale_to_zero() == []
    assert server.posts() == []


def test_what_was_paused_is_paused_again(server):
    server.add("mine", "paused")
    endpoints.endpoint_of("me/mine")
    assert endpoints.scale_to_zero() == ["me/mine"]
    assert server.entries["mine"]["state"] == "paused"


def test_the_price_comes_from_the_list_of_the_client(server):
    """Both read one route: what the client's own list shows is what is shown here."""
    quota = {"maxAccelerators": 1, "usedAccelerators": 0}
    machine = {"id": "x", "accelerator": "gpu", "instanceType": "nvidia-a100", "instanceSize": "x1", "architecture": "A100", "numAccelerators": 1, "memoryGb": 142, "pricePerHour": 2.5, "status": "available", "quota": quota}  # fmt: skip
    elsewhere = {"name": "eu-west-1", "computes": [{**machine, "pricePerHour": 9.0}]}
    regions = [elsewhere, {"name": "us-east-1", "computes": [{**machine, "instanceSize": "x4"}, machine]}]
    server.hardware = {"vendors": [{"name": "aws", "regions": regions}]}
    assert plan_of().price_per_hour == 2.5
    import huggingface_hub

    ask = getattr(huggingface_hub.HfApi(), "list_inference_endpoints_hardware", None)
    if ask is not None:
        assert 2.5 in [one.price_per_hour for one in ask(namespace="me")]


def test_a_name_that_is_not_there_is_an_endpoints_name(server):
    with pytest.raises(HubError, match="endpoint 'me/nothing' does not exist") as caught:
        endpoints.endpoint_of("me/nothing")
    assert "dataset" not in str(caught.value)


def test_a_job_whose_price_cannot_be_had_can_still_be_planned(server):
    plan = jobs.plan_job(
        "model: demo\n", name="mine", repo="me/mine", flavor="a100-large", package="https://a.example/p"
    )
    assert any("not given by the Hub" in line for line in plan.lines())


def test_a_time_that_is_none_is_named(server):
    with pytest.raises(ArgumentError, match="24x"):
        jobs.plan_job("model: demo\n", name="mine", repo="me/mine", flavor="a100-large", timeout="24x")
