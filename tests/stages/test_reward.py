"""Reward models: the bundled one, small ones made here, and one behind a server that speaks vLLM's `/pooling`."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from datasets import Dataset

import magpie_hf
from magpie_hf.errors import EngineError, EngineUnavailableError, MagpieError
from magpie_hf.messages import conversation
from magpie_hf.models import demo_model, resolve_model
from magpie_hf.recipe.schema import load_recipe
from magpie_hf.scoring.reward_endpoint import EndpointScorer
from magpie_hf.scoring.reward_model import RewardModel
from magpie_hf.session.status import run_status
from tests.end_to_end.harness import nothing_twice
from tests.servers.http_server import STOP_POLL_S


PAIRS = [
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is the capital of France?", "of is Paris The capital."),
    ("Hi", "Hello! How can I help you?"),
    ("Say " + "very " * 60 + "much.", "Much."),
]
CHATS = [conversation(pair) for pair in PAIRS]


@pytest.fixture(scope="module", autouse=True)
def _demo(demo_model_dir):
    """The bundled models must be there."""


@pytest.fixture(scope="module")
def model():
    found = RewardModel(demo_model("reward"))
    yield found
    found.close()


def test_a_reward_does_not_depend_on_its_batch_or_place(model):
    together = [scored.reward for scored in model.score(CHATS)]
    alone = [model.score([pair])[0].reward for pair in CHATS]
    backwards = [scored.reward for scored in model.score(CHATS[::-1])][::-1]
    assert together == pytest.approx(alone, abs=1e-4)
    assert together == pytest.approx(backwards, abs=1e-4)
    assert together[0] > together[1]


def test_no_bit_of_a_demo_reward_depends_on_the_rows_beside_it(model):
    """So that a run that was killed between two batches ends with the very same rows."""
    from itertools import islice

    from tools.demo.grammar import conversations

    first = [c.exchanges[0] for c in islice(conversations(11, long_share=0), 90)]
    pairs = [conversation((exchange.instruction, exchange.answer)) for exchange in first]
    whole = [scored.reward for scored in model.score(pairs)]
    assert [scored.reward for scored in model.score(pairs[::-1])][::-1] == whole
    assert [model.score([pair])[0].reward for pair in pairs[:20]] == whole[:20]
    assert [scored.reward for scored in model.score(pairs[37:60])] == whole[37:60]


def test_small_batches_give_the_same(model):
    few = RewardModel(demo_model("reward"), batch_tokens=1, deterministic=False)
    assert [s.reward for s in few.score(CHATS)] == pytest.approx([s.reward for s in model.score(CHATS)], abs=1e-4)


def test_a_conversation_has_one_bos_and_truncation_is_reported(model):
    ids, cut = model._encode(CHATS[0])
    assert [token for token in ids if token == model._tokenizer.bos_token_id] == ids[:1]
    assert not cut
    short = RewardModel(demo_model("reward"), max_length=20)
    found = short.score(CHATS)
    assert [scored.truncated for scored in found] == [len(model._encode(pair)[0]) > 20 for pair in CHATS]
    assert all(scored.tokens <= 20 for scored in found)


@pytest.fixture(scope="module")
def broken_model(tmp_path_factory):
    """A reward model whose weights are no numbers, as an overflowed one's."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = demo_model("reward").source
    place = tmp_path_factory.mktemp("broken") / "nan-reward"
    found = AutoModelForSequenceClassification.from_pretrained(source)
    torch.nn.init.constant_(found.score.weight, float("nan"))
    found.save_pretrained(place)
    AutoTokenizer.from_pretrained(source).save_pretrained(place)
    return place


def test_a_score_that_is_no_number_is_null_and_counted(broken_model, tmp_path):
    data = Dataset.from_dict({"instruction": ["a", "b", None], "response": ["x", None, "z"]})
    ds = magpie_hf.annotate(data, [{"stage": "reward", "model": str(broken_model)}], output=tmp_path / "run")
    assert ds["instruct_reward"][:] == [None, None, None]
    assert run_status(tmp_path / "run").stages[0].by_code == {"validation": 1, "empty": 2}


@pytest.mark.parametrize(
    ("make", "words"),
    [("two labels", "returns 2 numbers"), ("no template", "no chat template"), ("missing", "no-such-directory")],
)
def test_a_model_that_is_no_reward_model_is_refused(tmp_path, make, words):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = demo_model("reward").source
    if make != "missing":
        labels = 2 if make == "two labels" else 1
        AutoModelForSequenceClassification.from_pretrained(
            source, num_labels=labels, ignore_mismatched_sizes=True
        ).save_pretrained(tmp_path / "m")
        tokenizer = AutoTokenizer.from_pretrained(source)
        if make == "no template":
            tokenizer.chat_template = None
        tokenizer.save_pretrained(tmp_path / "m")
    with pytest.raises(MagpieError, match=words):
        RewardModel(resolve_model(str(tmp_path / "m") if make != "missing" else "./no-such-directory"))


def test_rewards_are_kept_by_row_and_extended(tmp_path):
    data = Dataset.from_list([{"instruction": a, "response": b} for a, b in PAIRS])
    first = magpie_hf.annotate(data.select(range(3)), [{"stage": "reward", "model": "demo"}], output=tmp_path / "run")
    ds = magpie_hf.annotate(data, [{"stage": "reward", "model": "demo"}], output=tmp_path / "run")
    assert ds["instruct_reward"][:3] == first["instruct_reward"][:]
    assert ds["reward_model"][:1] == ["demo"]
    nothing_twice(tmp_path / "run")


def test_the_difference_is_that_of_both_rewards_by_one_model(tmp_path):
    data = Dataset.from_list([{"instruction": a, "response": b} for a, b in PAIRS])
    ds = magpie_hf.annotate(data, ["reward_difference"], engine="demo", output=tmp_path / "run")
    for row in ds:
        assert row["reward_difference"] == pytest.approx(row["instruct_reward"] - row["base_reward"])
        assert row["base_response"]
        assert "# Query" not in row["base_response"]
    again = magpie_hf.annotate(
        ds.remove_columns(["reward_difference", "base_reward"]),
        ["reward_difference"],
        engine="demo",
        output=tmp_path / "b",
    )
    assert [stage.name for stage in run_status(tmp_path / "b").stages] == ["reward_difference"]
    assert again["reward_difference"][:] == pytest.approx(ds["reward_difference"][:])


def test_a_difference_between_two_reward_models_is_refused(tmp_path):
    data = Dataset.from_dict(
        {
            "instruction": ["a"],
            "response": ["b"],
            "instruct_reward": [1.0],
            "reward_model": ["other"],
            "reward_truncated": [False],
            "base_response": ["c"],
            "base_model": ["x"],
            "base_finish_reason": ["stop"],
        }
    )
    with pytest.raises(MagpieError, match="from other"):
        magpie_hf.annotate(
            data, [{"stage": "reward_difference", "model": "demo"}], engine="demo", output=tmp_path / "run"
        )


CONVERSATION = conversation(("Hi", "Hello!"), ("What is 2 + 3?", "2 + 3 = 5."))


def test_a_whole_conversation_is_scored_if_asked(model, tmp_path):
    """In any common format; a row without a text, or with messages that the template rejects, has no reward."""
    rows = [CONVERSATION, CONVERSATION[:2], [{"role": "user", "content": None}], []]
    data = Dataset.from_dict({"instruction": ["Hi"] * 4, "response": ["Hello!"] * 4, "messages": rows})
    ds = magpie_hf.annotate(data, [{"stage": "reward", "over": "messages"}], engine="demo", output=tmp_path / "run")
    expected = [scored.reward for scored in model.score([CONVERSATION, CONVERSATION[:2]])]
    assert ds["instruct_reward"][:] == [*expected, None, None]
    assert expected[0] != expected[1]
    sharegpt = [[{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]]
    data = Dataset.from_dict({"instruction": ["Hi"], "messages": sharegpt})
    ds = magpie_hf.annotate(data, [{"stage": "reward", "over": "messages"}], engine="demo", output=tmp_path / "other")
    assert ds["instruct_reward"][:] == expected[1:]


def test_a_conversation_that_the_template_rejects_has_an_error_and_the_others_a_reward(model):
    picky = RewardModel(demo_model("reward"))
    picky._tokenizer.chat_template = "{{ raise_exception('no system') if messages[0].role == 'system' }}" + str(
        picky._tokenizer.chat_template
    )
    found = picky.score([[{"role": "system", "content": "Be brief."}, *CHATS[0]], CHATS[0]])
    assert found[0].reward is None
    assert "no system" in found[0].error
    assert found[1] == model.score(CHATS[:1])[0]


def test_a_difference_cannot_be_computed_from_rewards_of_conversations():
    with pytest.raises(MagpieError, match="compares two responses, but `reward` has `over: messages`"):
        load_recipe(
            {"model": "demo", "stages": ["instructions", "responses", {"stage": "reward", "over": "messages"},
                                         "base_responses", "reward_difference"]}
        )  # fmt: skip


@pytest.mark.parametrize("stage", ["reward", "safety"])
def test_what_is_neither_a_pair_nor_messages_is_refused(stage):
    with pytest.raises(MagpieError, match=r"over = 'message' is not one of pair, messages"):
        load_recipe({"model": "demo", "stages": ["instructions", "responses", {"stage": stage, "over": "message"}]})


class Server:
    """A server with `/pooling`: replies are written by `reply(number, body)` as (status, headers, payload)."""

    def __init__(self, reply):
        self.seen, self.headers = [], []
        outer = self
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.seen)
                    outer.seen.append(body)
                    outer.headers.append(dict(self.headers))
                status, headers, payload = reply(number, body)
                data = json.dumps(payload).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(STOP_POLL_S,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def pooled(value, tokens=9):
    return {"data": [{"data": value}], "usage": {"prompt_tokens": tokens}}


def test_a_server_scores_and_gets_the_whole_conversation(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_never_sent")
    with Server(lambda n, body: (200, {}, pooled([[len(body["messages"][1]["content"]) / 10]]))) as server:
        data = Dataset.from_list([{"instruction": a, "response": b} for a, b in PAIRS])
        stage = {"stage": "reward", "model": "demo", "endpoint": server.url + "/v1", "concurrency": 2}
        ds = magpie_hf.annotate(data, [stage], output=tmp_path / "run")
        assert ds["instruct_reward"][:] == [len(b) / 10 for _, b in PAIRS]
        assert [message["role"] for message in server.seen[0]["messages"]] == ["user", "assistant"]
        assert all("Authorization" not in headers for headers in server.headers)


def test_a_key_goes_to_its_server_only_from_its_own_variable(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-1")
    with Server(lambda n, body: (200, {}, pooled([1.0]))) as server:
        EndpointScorer(server.url, demo_model("reward"), api_key_env="MY_KEY").score(CHATS[:1])
        assert server.headers[0]["Authorization"] == "Bearer secret-1"


def test_a_busy_server_is_asked_again_and_a_redirect_is_not_followed():
    with Server(lambda n, body: (429, {"Retry-After": "0"}, {}) if n < 2 else (200, {}, pooled(0.5))) as server:
        assert EndpointScorer(server.url, demo_model("reward")).score(CHATS[:1])[0].reward == 0.5
        assert len(server.seen) == 3
    with (
        Server(lambda n, body: (307, {"Location": "http://127.0.0.1:1/x"}, {})) as server,
        pytest.raises(EngineError, match="307"),
    ):
        EndpointScorer(server.url, demo_model("reward")).score(CHATS[:1])


@pytest.mark.parametrize(
    ("status", "payload", "reward"),
    [
        (400, {"message": "too long"}, None),
        (200, pooled([1.0, 2.0]), None),
        (200, {"x": 1}, None),
        (200, pooled([[[-0.25]]]), -0.25),
    ],
)
def test_a_row_that_has_no_score_is_null_with_its_reason(status, payload, reward):
    with Server(lambda n, body: (status, {}, payload)) as server:
        found = EndpointScorer(server.url, demo_model("reward")).score(CHATS[:1])[0]
        assert found.reward == reward
        assert (found.error is None) == (reward is not None)


def test_a_server_that_is_gone_stops_the_run_with_what_to_do():
    with pytest.raises(EngineUnavailableError, match="same command again"):
        EndpointScorer("http://127.0.0.1:9", demo_model("reward")).score(CHATS[:1])
    with Server(lambda n, body: (401, {}, {})) as server, pytest.raises(EngineError, match="401"):
        EndpointScorer(server.url, demo_model("reward")).score(CHATS[:1])


def test_a_reward_server_that_fails_ends_the_run_at_the_first_row_without_attempts_left():
    with Server(lambda n, body: (500, {}, {})) as server:
        scorer = EndpointScorer(server.url, demo_model("reward"), concurrency=1)
        with pytest.raises(EngineUnavailableError, match="status 500"):
            scorer.score(CHATS[:1] * 50)
        assert len(server.seen) < 50 * 6
