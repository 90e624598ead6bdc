"""Rented machines: what a job and an endpoint get, what they cost, and that they are asked for first."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fastapi.responses import JSONResponse

import magpie_hf
from magpie_hf.cli import main as cli
from magpie_hf.errors import ArgumentError, HubError
from magpie_hf.hub import inference_endpoints, jobs
from magpie_hf.recipe.schema import load_recipe
from tests.end_to_end.harness import environment, here
from tests.servers.hub_server import HubFault, HubServer

from .conftest import TOKEN, hub_environment, use_hub


HARDWARE = [
    {"name": "a100-large", "prettyName": "A100", "cpu": "12 vCPU", "ram": "142 GB", "unitCostMicroUSD": 41667, "unitCostUSD": 0.041667, "unitLabel": "minute"},
    {"name": "cpu-basic", "prettyName": "CPU", "cpu": "2 vCPU", "ram": "16 GB", "unitCostMicroUSD": 167, "unitCostUSD": 0.000167, "unitLabel": "minute"},
]  # fmt: skip


class RentServer(HubServer):
    """The Hub with jobs and Inference Endpoints."""

    def __init__(self, **options):
        super().__init__(**options)
        self.jobs, self.endpoints, self.slept = [], {}, []

    def _route(self, request, what, path, body):
        if what == "GET api/jobs/hardware":
            return JSONResponse(HARDWARE)
        if path.startswith("api/jobs/") and request.method == "POST":
            self.jobs.append(json.loads(body))
            owner = {"id": "1", "name": path.rpartition("/")[2], "type": "user"}
            return JSONResponse(
                {
                    "id": "job1",
                    "createdAt": "2026-01-01T00:00:00Z",
                    "owner": owner,
                    "status": {"stage": "RUNNING", "message": None},
                }
            )
        if path.startswith("v2/provider/"):
            machine = {"instanceType": "nvidia-a100", "instanceSize": "x1", "pricePerHour": 2.5}
            region = {"name": "us-east-1", "computes": [machine]}
            return JSONResponse({"vendors": [{"name": "aws", "regions": [region]}]})
        if path.startswith("v2/endpoint/"):
            return self._endpoint(request.method, path.removeprefix("v2/endpoint/").split("/"), body)
        return super()._route(request, what, path, body)

    def _endpoint(self, method, parts, body):
        if method == "POST" and len(parts) == 1:
            given = json.loads(body)
            self.endpoints[given["name"]] = given
            return JSONResponse(self.described(given["name"], "initializing"))
        name = parts[1]
        if name not in self.endpoints:
            return JSONResponse({"error": "not found"}, 404)
        if parts[-1] == "resume":
            self.endpoints[name]["state"] = "running"
        if parts[-1] == "scale-to-zero":
            self.endpoints[name]["state"] = "scaledToZero"
            self.slept.append(name)
        return JSONResponse(self.described(name, self.endpoints[name].get("state", "running")))

    def described(self, name, state):
        given = self.endpoints[name]
        address = given.get("url", self.url) if state == "running" else None
        status = {
            "state": state,
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": "2026-01-01T00:00:00Z",
            "url": address,
        }
        model = {
            "repository": "demo",
            "framework": "pytorch",
            "revision": None,
            "task": "text-generation",
            **given.get("model", {}),
        }
        return {
            "name": name,
            "status": status,
            "model": model,
            "type": "protected",
            "healthRoute": "/health",
            "compute": {},
        }


@pytest.fixture
def rent(monkeypatch):
    with RentServer() as server:
        use_hub(server, monkeypatch)
        monkeypatch.setattr("huggingface_hub.constants.INFERENCE_ENDPOINTS_ENDPOINT", f"{server.url}/v2")
        monkeypatch.setattr("magpie_hf.hub.remote.FIRST_WAIT_S", 0.01)
        yield server


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nmodel: demo\nnum_rows: 4\nsampling: {max_tokens: 32}\nstages: [instructions]\noutput: {path: /tmp/here}\n"
    )
    return path


URL = "https://example.org/magpie_hf-0.1.0-py3-none-any.whl"


def run_job(recipe, *more, package=URL, code=0):
    given = ["--package", package] if package else []
    return here("jobs", "run", recipe, "--flavor", "a100-large", "--push-to", "me/mine", *given, *more, code=code)


@pytest.mark.parametrize(
    ("package", "words"),
    [
        (None, "not on a package index"),
        ("magpie_hf", "neither a URL nor a wheel"),
        ("magpie_hf==0.1.0", "anyone can register it"),
        ("other @ https://example.org/x.whl", "neither a URL nor a wheel"),
        ("http://example.org/magpie_hf-0.1.0-py3-none-any.whl", "neither a URL nor a wheel"),
        ("nowhere/magpie_hf-0.1.0-py3-none-any.whl", "not a local wheel of magpie_hf"),
    ],
)
def test_a_job_installs_nothing_by_a_name_that_anybody_could_register(rent, recipe, package, words):
    said = run_job(recipe, "--yes", package=package, code=1)
    assert words in said
    assert "ArgumentError" in said
    assert rent.jobs == []


def test_a_job_with_vllm_samples_without_the_compiler_that_its_image_lacks(rent, recipe):
    run_job(recipe, "--yes", "--engine", "vllm", "--model", "a/b", "--license", "mit")
    run_job(recipe, "--yes")
    with_vllm, without = (job["environment"] for job in rent.jobs)
    assert with_vllm["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    assert "VLLM_USE_FLASHINFER_SAMPLER" not in without
    assert f"magpie_hf[vllm] @ {URL}" in script_of(rent.jobs[0])


@pytest.mark.parametrize("given", [f"magpie_hf @ {URL}", f"magpie-hf[vllm]@{URL}", f"magpie_hf[local] @ {URL}"])
def test_a_package_by_name_and_url_keeps_the_extras_that_the_recipe_needs(given):
    extras = {"vllm", "local"} if "local" in given else {"vllm"}
    assert jobs.package_of(given, ["vllm"]).requirement == f"magpie_hf[{','.join(sorted(extras))}] @ {URL}"


@pytest.mark.parametrize("prefix", ["", "magpie_hf @ "])
@pytest.mark.parametrize("url", ["git+https://me:ghp_secret@example.org/me/x", "https://ghp_secret@example.org/x.whl"])
def test_a_login_in_the_address_of_the_package_is_refused_and_not_repeated(rent, recipe, prefix, url):
    said = run_job(recipe, "--yes", package=prefix + url, code=1)
    assert "contains a user or token" in said
    assert "ghp_secret" not in said
    assert rent.jobs == []


def test_a_job_shows_its_price_and_starts_when_told_to(rent, recipe):
    said = run_job(recipe, "--yes", "--timeout", "2h", "--config", "raw")
    assert "$2.50 per hour" in said
    assert "at most 2h, paid by me" in said
    assert f"{rent.url}/jobs/me/job1" in said
    (job,) = rent.jobs
    assert job["flavor"] == "a100-large"
    assert job["secrets"] == {"HF_TOKEN": TOKEN}
    assert TOKEN not in json.dumps({key: value for key, value in job.items() if key != "secrets"})
    assert TOKEN not in said
    sent = yaml.safe_load(base64.b64decode(job["environment"]["MAGPIE_RECIPE"]))
    assert sent["push"] == {"repo": "me/mine", "config": "raw"}
    assert "output" not in sent


def test_a_job_writes_the_columns_and_the_test_split_of_the_recipe(rent, recipe):
    run_job(recipe, "--yes", "--set", "output.test_size=0.02", "--set", "output.columns=[uuid, instruction]")
    sent = yaml.safe_load(base64.b64decode(rent.jobs[0]["environment"]["MAGPIE_RECIPE"]))
    assert sent["output"] == {"columns": ["uuid", "instruction"], "test_size": 0.02}


def test_without_a_yes_nothing_is_started(rent, recipe, monkeypatch):
    assert "stdin is not a terminal" in run_job(recipe, code=1)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer in ("n", "", "perhaps"):
        monkeypatch.setattr("builtins.input", lambda prompt, answer=answer: answer)
        assert "Nothing was started." in run_job(recipe)
    assert rent.jobs == []
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    run_job(recipe)
    assert len(rent.jobs) == 1


def script_of(job):
    return job["command"][-1] if "command" in job else job["arguments"][-1]


STUBS = {  # what the image has: here they run what is installed, and write down what they were asked to install
    "uv": 'shift 3; echo "$1" >> "$INSTALLED"; shift; [ "$1" = python ] || set -- python -m magpie_hf "${@:2}"; exec "$PYTHON" "${@:2}"',
    "uvx": 'shift 3; exec "$PYTHON" -c "from huggingface_hub.cli.hf import main; main()" "$@"',
}


def run_script(job, rent, tmp_path):
    """Run the job's script as it is, and return what it did."""
    stubs = tmp_path / "bin"
    stubs.mkdir(exist_ok=True)
    for name, text in STUBS.items():
        (stubs / name).write_text(f"#!/bin/bash\n{text}\n")
        (stubs / name).chmod(0o755)
    given = {key: value for key, value in job["environment"].items()}
    env = environment(**hub_environment(rent), **given, PYTHON=sys.executable, INSTALLED=str(tmp_path / "installed"))
    env |= {"HF_TOKEN": job["secrets"]["HF_TOKEN"], "PATH": f"{stubs}:{env['PATH']}", "TMPDIR": str(tmp_path)}
    return subprocess.run(["bash", "-c", script_of(job)], env=env, capture_output=True, text=True, timeout=110)


def test_what_the_job_runs_really_publishes(rent, recipe, tmp_path):
    """With a wheel of this machine, which the job downloads and checks."""
    wheel = tmp_path / f"magpie_hf-{magpie_hf.__version__}-py3-none-any.whl"
    wheel.write_bytes(b"a wheel")
    said = run_job(recipe, "--yes", "--private", package=wheel)
    assert f"{wheel.name}, uploaded to me/mine" in said
    assert rent.repos["me/mine"].private
    (path,) = [path for path in rent.history("me/mine")[-1].files if path.endswith(".whl")]
    assert rent.read("me/mine", path) == b"a wheel"
    done = run_script(rent.jobs[0], rent, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "data/train-00000-of-00001.parquet" in rent.history("me/mine")[-1].files
    for line in (tmp_path / "installed").read_text().splitlines():
        place = line.partition(" @ file://")[2]
        assert Path(place).read_bytes() == b"a wheel"


@pytest.mark.parametrize("damage", ["version", "content"])
def test_a_job_with_another_package_than_was_planned_ends_before_the_run(rent, recipe, tmp_path, damage):
    wheel = tmp_path / f"magpie_hf-{'9.9' if damage == 'version' else magpie_hf.__version__}-py3-none-any.whl"
    wheel.write_bytes(b"a wheel")
    run_job(recipe, "--yes", package=wheel)
    if damage == "content":
        file = next(file for path, file in rent.history("me/mine")[-1].files.items() if path.endswith(".whl"))
        (rent.objects if file.sha256 else rent.blobs)[file.sha256 or file.oid] = b"another"
    done = run_script(rent.jobs[0], rent, tmp_path)
    assert done.returncode != 0
    assert ("planned with 9.9" if damage == "version" else "FAILED") in done.stdout + done.stderr
    assert "data/train-00000-of-00001.parquet" not in rent.history("me/mine")[-1].files


def test_an_estimate_is_shown_where_the_size_is_known(rent):
    recipe = load_recipe("magpie-air")
    plan = jobs.plan_job(
        recipe.dump(),
        name="magpie-air",
        repo="me/air",
        flavor="a100-large",
        gpu_hours=196.0,
        extras=["vllm"],
        package=URL,
    )
    assert any("196.0 hours, $490" in line for line in plan.lines())
    assert f"magpie_hf[vllm] @ {URL}" in plan.command[-1]
    assert TOKEN not in repr(plan)


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda rent, patch: patch.delenv("HF_TOKEN"), "not logged in"),
        (lambda rent, patch: rent.hub_faults.append(HubFault("status", "POST /api/jobs", 9, status=402)), "refused"),
        (
            lambda rent, patch: rent.hub_faults.append(HubFault("status", "POST /api/jobs", 9, status=403)),
            "no permission",
        ),
        (lambda rent, patch: patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True), "Offline"),
    ],
)
def test_a_refused_job_is_one_readable_error(rent, recipe, monkeypatch, prepare, words):
    prepare(rent, monkeypatch)
    said = run_job(recipe, "--yes", code=1)
    assert words in said
    assert "HubError" in said
    assert "hf_" not in said
    assert rent.jobs == []


def test_a_job_is_asked_for_once_even_if_the_answer_is_lost(rent, recipe):
    """A second try might start, and cost, a second job."""
    rent.hub_faults = [HubFault("late", "POST /api/jobs", 9, status=504)]
    assert "HubError" in run_job(recipe, "--yes", code=1)
    assert len(rent.jobs) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--set", "engine.kind=tgi", "--set", "engine.endpoint=http://localhost:8080"], "cannot reach"),
        (
            [
                "--set",
                "engine.kind=tgi",
                "--set",
                "engine.endpoint=https://a.example",
                "--set",
                "engine.api_key_env=KEY",
            ],
            "only the Hub login",
        ),
    ],
)
def test_a_job_that_could_only_fail_is_not_started(rent, recipe, change, words):
    assert words in run_job(recipe, "--yes", *change, code=1)
    assert rent.jobs == []


def test_the_hub_login_is_a_key_that_a_job_has(rent, recipe):
    judge = (
        "{model: org/judge, engine: {kind: chat, endpoint: 'https://router.huggingface.co/v1', api_key_env: HF_TOKEN}}"
    )
    run_job(recipe, "--yes", "--set", f"judge={judge}")
    assert len(rent.jobs) == 1


def test_rows_on_this_machine_do_not_travel_with_a_job(rent, recipe, tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    for given in ("a-run", tmp_path / "rows.jsonl", "[org/rows, a-run]"):
        said = run_job(recipe, "--yes", "--set", f"dataset={given}", "--set", "stages=[lengths]", code=1)
        assert "where a job cannot read it" in said
        assert "--set dataset=OWNER/NAME" in said
    assert rent.jobs == []


def test_a_model_on_this_machine_does_not_travel_with_a_job(rent, recipe, tiny_model_dir):
    assert "saved on this machine" in run_job(recipe, "--yes", "--model", tiny_model_dir, code=1)
    assert rent.jobs == []


def test_a_machine_that_is_not_there_is_named(rent, recipe):
    said = here("jobs", "run", recipe, "--flavor", "a100-larg", "--push-to", "me/x", "--package", URL, "--yes", code=1)
    assert 'Did you mean "a100-large"?' in said


def test_an_endpoint_is_made_to_sleep_by_itself_and_its_price_is_asked(rent):
    arguments = [
        "endpoints",
        "create",
        "me/my-endpoint",
        "--model",
        "a/b",
        "--instance-type",
        "nvidia-a100",
        "--instance-size",
        "x1",
    ]
    assert "stdin is not a terminal" in here(*arguments, code=1)
    assert rent.endpoints == {}
    for engine, image in (("vllm", "vLLM"), ("tgi", "tgi")):
        said = here(*arguments, "--engine", engine, "--yes")
        assert "$2.50 per hour" in said
        made = rent.endpoints["my-endpoint"]
        assert image in made["model"]["image"]
        assert made["compute"]["scaling"]["scaleToZeroTimeout"] == 15
        assert made["type"] != "public"
    here("endpoints", "sleep", "me/my-endpoint")
    assert rent.slept == ["my-endpoint"]


def test_a_run_wakes_the_endpoint_uses_it_with_the_login_and_lets_it_sleep(rent, tgi_server, tmp_path):
    rent.endpoints["mine"] = {"state": "scaledToZero", "url": tgi_server.url, "model": {"image": {"tgi": {}}}}
    common = [
        "synthesize",
        "--model",
        "demo",
        "--endpoint-from",
        "me/mine",
        "--num-rows",
        3,
        "--output",
        tmp_path / "run",
        "--set",
        "sampling.max_tokens=32",
    ]
    assert "scaled to zero" in here(*common, code=1)
    assert rent.slept == []
    said = here(*common, "--yes")
    assert "3 rows" in said
    assert rent.slept == ["mine"]
    assert tgi_server.record.stats()["authorization"] > 0
    state = (tmp_path / "run" / "run.json").read_text()
    assert TOKEN not in state
    assert '"api_key_env": "HF_TOKEN"' in state


def test_an_endpoint_that_was_awake_stays_awake(rent, tgi_server, tmp_path):
    rent.endpoints["mine"] = {"state": "running", "url": tgi_server.url, "model": {"image": {"tgi": {}}}}
    here(
        "synthesize",
        "--model",
        "demo",
        "--endpoint-from",
        "mine",
        "--num-rows",
        2,
        "--output",
        tmp_path / "run",
        "--set",
        "sampling.max_tokens=32",
    )
    assert rent.slept == []


def test_an_endpoint_with_another_model_is_refused(rent, tgi_server, tmp_path):
    rent.endpoints["mine"] = {
        "state": "running",
        "url": tgi_server.url,
        "model": {"image": {"tgi": {}}, "repository": "a/b"},
    }
    said = here(
        *("synthesize", "--model", "demo", "--endpoint-from", "mine", "--num-rows", 2, "--output", tmp_path / "run"),
        code=1,
    )
    assert "serves a/b" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/x",
        "http://x.endpoints.huggingface.cloud",
        "https://endpoints.huggingface.cloud.evil.example",
        "https://x.endpoints.huggingface.cloud@evil.example",
    ],
)
def test_no_login_goes_to_an_address_that_is_no_endpoint(rent, url):
    rent.endpoints["mine"] = {"state": "running", "url": url}
    with pytest.raises(ArgumentError, match="token is not sent"):
        inference_endpoints.endpoint_of("me/mine")


def test_addresses_of_endpoints_are_taken():
    assert inference_endpoints.checked_address("https://abc.us-east-1.aws.endpoints.huggingface.cloud/")


def test_an_endpoint_that_is_not_there_is_named(rent):
    with pytest.raises(HubError, match="me/nothing"):
        inference_endpoints.endpoint_of("me/nothing")
    with pytest.raises(ArgumentError, match="Invalid endpoint name"):
        inference_endpoints.endpoint_of("https://x/y")


def test_what_cannot_be_put_to_sleep_is_told_and_hides_no_other_error(rent, tmp_path, capsys, monkeypatch):
    rent.hub_faults = [HubFault("status", "scale-to-zero", 99, status=403)]
    monkeypatch.setattr(inference_endpoints, "_woken", [("mine", "me")])
    assert inference_endpoints.scale_to_zero() == []
    assert cli.main(["status", str(Path(tmp_path) / "nothing")]) == 1
