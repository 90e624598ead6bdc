from __future__ import annotations

import json
import random
import threading

import huggingface_hub
import pytest
from datasets import Dataset, DatasetDict, get_dataset_config_names, load_dataset
from huggingface_hub import DatasetCard

import magpie_hf
from magpie_hf.columns import Column
from magpie_hf.errors import ArgumentError, DatasetError, HubError
from magpie_hf.hub import push
from magpie_hf.hub.push import write_shards
from tests.servers.hub_server import HubFault

from .conftest import TOKEN
from .readers import whole_at_every_commit


def rows(n=5, **more):
    base = {
        "instruction": [f"What is {i} and {i}?" for i in range(n)],
        "response": [f"{2 * i}." for i in range(n)],
        "messages": [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]] * n,
        "language": ["EN"] * n,
    }
    return Dataset.from_dict(base | more)


OLD_CLIENT = pytest.mark.skipif(
    huggingface_hub.__version__.startswith("0."),
    reason="it validates cards at huggingface.co, whatever HF_ENDPOINT says",
)


@OLD_CLIENT
def test_rows_and_features_come_back_as_they_went(hub):
    ds = rows()
    url = magpie_hf.push_to_hub(ds, "me/mine", config_name="raw", license="mit")
    assert url == f"{hub.url}/datasets/me/mine"
    back = load_dataset("me/mine", "raw", split="train")
    assert back.to_list() == ds.to_list()
    assert back.features == ds.features
    assert load_dataset("me/mine", split="train").to_list() == ds.to_list()  # the only config is the default
    assert load_dataset("me/mine", "raw", split="train", streaming=True).take(1)
    assert whole_at_every_commit(hub, "me/mine") == {"raw": {"train": 5}}
    card = DatasetCard.load("me/mine")
    assert card.data.license == "mit"
    card.validate(repo_type="dataset")


@OLD_CLIENT
def test_splits_of_which_one_stores_the_order_of_labels_are_published_and_load(hub):
    level = Column("level", "label", ("low", "high"), writer="tone", report=True)
    plain = rows(2, level=["high", "low"])
    parts = {"train": plain.cast_column("level", level.feature()), "test": plain}
    magpie_hf.push_to_hub(DatasetDict(parts), "me/mine", license="mit")
    back = load_dataset("me/mine")
    assert {name: split["level"][:] for name, split in back.items()} == {name: ["high", "low"] for name in parts}
    assert magpie_hf.select(back["train"], "level >= 'high'")["level"][:] == ["high"]


def test_configs_live_beside_each_other_and_beside_those_of_datasets_itself(hub):
    rows(3).push_to_hub("me/mine", config_name="theirs")
    for name, n in (("raw", 5), ("filtered", 2)):
        magpie_hf.push_to_hub(rows(n), "me/mine", config_name=name, license="mit")
    rows(4).push_to_hub("me/mine", config_name="later")
    assert set(get_dataset_config_names("me/mine")) == {"theirs", "raw", "filtered", "later"}
    for name, n in (("theirs", 3), ("raw", 5), ("filtered", 2), ("later", 4)):
        assert len(load_dataset("me/mine", name, split="train")) == n
    card = hub.read("me/mine", "README.md").decode()
    assert "| raw | 5 |" in card
    assert "| filtered | 2 |" in card
    assert "theirs" in card


def test_splits_go_up_together_or_one_by_one(hub):
    both = DatasetDict({"train": rows(4), "test": rows(2)})
    magpie_hf.push_to_hub(both, "me/mine", license="mit")
    back = load_dataset("me/mine")
    assert {name: len(split) for name, split in back.items()} == {"train": 4, "test": 2}
    magpie_hf.push_to_hub(rows(3), "me/mine", split="validation", license="mit")
    back = load_dataset("me/mine")
    assert {name: len(split) for name, split in back.items()} == {"train": 4, "test": 2, "validation": 3}
    whole_at_every_commit(hub, "me/mine")


def test_what_is_the_same_there_is_not_sent_again_and_makes_no_commit(hub):
    magpie_hf.push_to_hub(rows(), "me/mine", license="mit")
    before = len(hub.history("me/mine"))
    magpie_hf.push_to_hub(rows(), "me/mine", license="mit")
    assert len(hub.history("me/mine")) == before
    assert set(hub.uploads.values()) == {1}


def test_shards_of_an_earlier_push_vanish_in_the_commit_that_shows_the_new(hub, monkeypatch):
    real = write_shards
    monkeypatch.setattr("magpie_hf.api.hub.write_shards", lambda *a: real(*a, shard_bytes=200))
    magpie_hf.push_to_hub(rows(40), "me/mine", license="mit")
    many = [path for path in hub.history("me/mine")[-1].files if path.endswith(".parquet")]
    assert len(many) > 3
    monkeypatch.setattr("magpie_hf.api.hub.write_shards", real)
    magpie_hf.push_to_hub(rows(7), "me/mine", license="mit")
    assert [p for p in hub.history("me/mine")[-1].files if p.endswith(".parquet")] == [
        "data/train-00000-of-00001.parquet"
    ]
    assert whole_at_every_commit(hub, "me/mine") == {"default": {"train": 7}}


def test_large_data_get_larger_shards_and_not_more_than_a_commit_holds(tmp_path):
    assert len(write_shards(rows(500), tmp_path, shard_bytes=10)) == push.MOST_SHARDS


@OLD_CLIENT
def test_what_a_person_wrote_into_the_card_on_the_hub_stays(hub):
    magpie_hf.push_to_hub(rows(), "me/mine", license="mit")
    card = DatasetCard.load("me/mine")
    card.content = card.content.replace("license: mit", "license: mit\npretty_name: Mine") + "\n## Thanks\n\nTo all.\n"
    card.push_to_hub("me/mine", repo_type="dataset")
    magpie_hf.push_to_hub(rows(9), "me/mine", license="mit")
    text = hub.read("me/mine", "README.md").decode()
    assert "## Thanks" in text
    assert "pretty_name: Mine" in text
    assert "9 rows" in text


def test_a_branch_a_pull_request_privacy_and_gates(hub):
    magpie_hf.push_to_hub(rows(), "mine", license="mit", private=True, gated="manual")  # in one's own namespace
    assert hub.repos["me/mine"].private
    assert hub.repos["me/mine"].gated == "manual"
    magpie_hf.push_to_hub(rows(2), "me/mine", license="mit", revision="v2")
    assert len(load_dataset("me/mine", split="train", revision="v2")) == 2
    magpie_hf.push_to_hub(rows(3), "me/mine", license="mit", create_pr=True)
    assert whole_at_every_commit(hub, "me/mine", "refs/pr/1") == {"default": {"train": 3}}
    assert whole_at_every_commit(hub, "me/mine") == {"default": {"train": 5}}


ROUTES = ["GET /api/whoami", "POST /api/repos/create", "GET /api/datasets/me/mine$", "GET /api/datasets/.*/tree",
          "POST /api/datasets/.*/preupload", "POST /datasets/.*/info/lfs", "PUT /_lfs", "POST /api/datasets/.*/commit"]  # fmt: skip


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.timeout(30)
def test_a_hub_that_never_answers_is_given_up_after_the_retry_timeout(hub, route, monkeypatch):
    monkeypatch.setattr("magpie_hf.hub.retries.MIN_REQUEST_TIMEOUT_S", 0.1)
    fault = HubFault("hang", route, times=99)
    hub.hub_faults = [fault]
    with pytest.raises(HubError, match="could not be reached for 1 s") as caught:
        magpie_hf.push_to_hub(rows(), "me/mine", license="mit", retry_timeout_s=1)
    assert "no reply" in caught.value.message
    assert fault.hit > 1, "a request that hangs is tried again"


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.timeout(30)
def test_a_request_that_hangs_once_is_made_again(hub, route, monkeypatch):
    monkeypatch.setattr("magpie_hf.hub.retries.REQUEST_TIMEOUT_S", 0.2)
    monkeypatch.setattr("magpie_hf.hub.retries.MIN_REQUEST_TIMEOUT_S", 0.2)
    hub.hub_faults = [HubFault("hang", route)]
    magpie_hf.push_to_hub(rows(), "me/mine", license="mit")
    assert whole_at_every_commit(hub, "me/mine") == {"default": {"train": 5}}


@pytest.mark.timeout(30)
def test_a_large_file_that_nobody_reads_is_given_up_too(hub, tmp_path):
    hub.hub_faults = [HubFault("hang", "PUT /_lfs", times=99)]
    large = {"instruction": [random.Random(i).randbytes(1 << 20).hex() for i in range(16)]}
    with pytest.raises(HubError, match="could not be reached for 2 s"):
        magpie_hf.push_to_hub(Dataset.from_dict(large), "me/mine", license="mit", retry_timeout_s=2)


@pytest.mark.timeout(30)
def test_files_go_up_over_http_where_time_is_limited_and_not_through_xet(xet_hub):
    from huggingface_hub import constants

    magpie_hf.push_to_hub(rows(), "me/mine", license="mit", retry_timeout_s=5)
    assert whole_at_every_commit(xet_hub, "me/mine") == {"default": {"train": 5}}
    assert not [path for _, path, _ in xet_hub.requests if "xet" in path or "_cas" in path]
    assert constants.HF_HUB_DISABLE_XET is False, "the user's own transfers use Xet as before"


@pytest.mark.parametrize(
    "fault",
    [
        HubFault("status", "POST /api/datasets/.*/commit", times=2, status=503),
        HubFault("status", "POST /api/datasets/.*/commit", status=429, retry_after=0.05),
        HubFault("late", "POST /api/datasets/.*/commit", status=504),
        HubFault("reset", "POST /api/datasets/.*/(commit|preupload)", times=3),
        HubFault("cut", "PUT /_lfs", times=1),
        HubFault("status", "PUT /_lfs", status=500),
        HubFault("status", "GET /api/datasets/.*/tree", status=502),
        HubFault("status", "GET /api/whoami", status=429, retry_after=0.05),
    ],
    ids=lambda fault: f"{fault.kind} {fault.status} {fault.match[-12:]}",
)
def test_trouble_that_passes_costs_time_only(hub, fault, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda s: threading.Event().wait(min(s, 0.05)))
    hub.hub_faults = [fault]
    magpie_hf.push_to_hub(rows(), "me/mine", license="mit")
    assert fault.hit >= 1
    assert whole_at_every_commit(hub, "me/mine") == {"default": {"train": 5}}
    assert set(hub.uploads.values()) == {1}
    assert sum(c.title.startswith("Publish") for c in hub.history("me/mine")) == 1


def test_somebody_elses_commit_in_between_is_kept(hub):
    magpie_hf.push_to_hub(rows(), "me/mine", license="mit")
    real, done = hub._take_commit, []

    def raced(repo, revision, at, body, create_pr):
        if not done:
            done.append(1)
            files = {**at.files, "notes.txt": hub._blob(b"mine")}
            hub._commit(repo, "main", files, "somebody else", 1, 4)
            at = repo.find("main")
        return real(repo, revision, at, body, create_pr)

    hub._take_commit = raced
    magpie_hf.push_to_hub(rows(3), "me/mine", config_name="b", license="mit")
    assert hub.read("me/mine", "notes.txt") == b"mine"
    assert whole_at_every_commit(hub, "me/mine") == {"default": {"train": 5}, "b": {"train": 3}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"repo_id": "me/a b"}, "Invalid repository name"),
        ({"repo_id": "a/b/c"}, "Invalid repository name"),
        ({"config_name": "data"}, "Invalid config name"),
        ({"config_name": ".hidden"}, "Invalid config name"),
        ({"split": "no split"}, "Invalid split name"),
        ({"gated": "perhaps"}, "auto"),
        ({"license": None}, "--license"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_made(hub, change, words):
    with pytest.raises(ArgumentError, match=words):
        magpie_hf.push_to_hub(rows(), **{"repo_id": "me/mine", "license": "mit", **change})
    assert hub.repos == {}


def test_splits_with_other_columns_are_refused(hub):
    with pytest.raises(DatasetError, match="other columns"):
        magpie_hf.push_to_hub(
            DatasetDict({"train": rows(), "test": Dataset.from_dict({"a": [1]})}), "me/x", license="mit"
        )


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda hub, patch: patch.delenv("HF_TOKEN"), "not logged in"),
        (lambda hub, patch: patch.setenv("HF_TOKEN", "hf_wrongtoken0000000000"), "rejected the token"),
        (lambda hub, patch: hub.tokens.update({TOKEN: ("me", "read")}), "only has read permission"),
        (lambda hub, patch: hub.tokens.update({TOKEN: ("you", "write")}), "no write permission in 'me'"),
        (lambda hub, patch: hub.hub_faults.append(HubFault("status", "/commit", 99, status=403)), "no permission"),
        (lambda hub, patch: hub.hub_faults.append(HubFault("reset", "/commit", 99)), "could not be reached"),
        (lambda hub, patch: hub.hub_faults.append(HubFault("checksum", "PUT", 99)), "Hub"),
        (lambda hub, patch: patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True), "Offline mode"),
    ],
    ids=["no token", "wrong token", "read token", "other's namespace", "403", "network down", "checksum", "offline"],
)
def test_a_refusal_is_one_readable_error_without_the_token(hub, prepare, words, monkeypatch):
    monkeypatch.setattr("magpie_hf.hub.remote.RETRY_TIMEOUT_S", 0.3)
    monkeypatch.setattr("time.sleep", lambda s: threading.Event().wait(min(s, 0.05)))
    prepare(hub, monkeypatch)
    with pytest.raises(HubError, match=words) as caught:
        magpie_hf.push_to_hub(rows(), "me/mine", license="mit")
    said = str(caught.value)
    assert "hf_" not in said
    assert "same magpie_hf.push_to_hub call" in said
    if "me/mine" in hub.repos:
        assert whole_at_every_commit(hub, "me/mine") == {}


def test_a_mapping_of_columns_is_one_split_and_a_dict_without_splits_is_refused(hub):
    columns = {"instruction": ["Why?"], "response": ["So."]}
    magpie_hf.push_to_hub(columns, "me/mine", license="mit")
    assert load_dataset("me/mine", split="train").to_list() == [{"instruction": "Why?", "response": "So."}]
    with pytest.raises(ArgumentError, match="has no splits"):
        magpie_hf.push_to_hub(DatasetDict(), "me/mine", license="mit")
    with pytest.raises(DatasetError, match="has no rows"):
        magpie_hf.push_to_hub({}, "me/mine", license="mit")


def test_no_rows_are_not_published(hub):
    with pytest.raises(DatasetError, match="no rows"):
        magpie_hf.push_to_hub(rows(3).select([]), "me/mine", license="mit")


def test_the_token_is_in_nothing_that_is_sent_or_kept(hub, tmp_path):
    magpie_hf.push_to_hub(rows(), "me/mine", license="mit")
    assert any(sent for _, _, sent in hub.requests)
    for body in hub.posted:
        assert TOKEN.encode() not in body
    commit = hub.history("me/mine")[-1]
    for path in commit.files:
        assert TOKEN.encode() not in hub.read("me/mine", path, commit), path


def test_hostile_rows_do_no_harm_on_the_way(hub):
    text = "---\nlicense: x\n---\n</script><img src=x onerror=alert(1)> ``` | \u202e \ud800".encode(
        "utf-8", "replace"
    ).decode()
    ds = rows(2, instruction=[text, text], language=[text[:40]] * 2, model=["../../etc", "x"])
    magpie_hf.push_to_hub(ds, "me/mine", license="mit")
    assert load_dataset("me/mine", split="train").to_list() == ds.to_list()
    assert hub.metadata("me/mine")["license"] == "mit"
    json.loads(hub.read("me/mine", ".magpie/configs/default.json"))
