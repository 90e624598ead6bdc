from __future__ import annotations

import sys

import pytest

from tests.servers.hub_server import HubServer


TOKEN = "hf_testtoken0123456789"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Give a local Hub that this process's libraries are logged in to as `me`."""
    with HubServer() as server:
        use_hub(server, monkeypatch)
        monkeypatch.setattr("magpie_hf.hub.remote.FIRST_WAIT_S", 0.01)
        yield server


@pytest.fixture
def xet_hub(hub, monkeypatch):
    """Give the local Hub with Xet on, as it is for users, and with Xet storage that never answers."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.has_xet = True
    return hub


def use_hub(server, monkeypatch):
    """Point the libraries, which read their environment when they are imported, to the server."""
    import datasets
    import huggingface_hub
    from huggingface_hub import constants

    for name, value in hub_environment(server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("huggingface_hub"):
            if hasattr(module, "HUGGINGFACE_CO_URL_TEMPLATE"):
                monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            if hasattr(module, "HF_HUB_OFFLINE"):
                monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", False, raising=False)
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False, raising=False)
    huggingface_hub.HfFileSystem.clear_instance_cache()


def hub_environment(server, token=TOKEN):
    """Return the environment of a process that is logged in to the server."""
    found = {
        "HF_ENDPOINT": server.url,
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return {**found, "HF_TOKEN": token} if token else found
