from __future__ import annotations

import importlib.util
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magpie_hf.engines.base import Prompt, Request, Served
from magpie_hf.engines.remote.tgi import TgiEngine, parameters_of
from magpie_hf.engines.remote.tgi_types import check_parameters, tgi_client, tgi_error
from magpie_hf.engines.stops import end_text, end_tokens
from magpie_hf.errors import ArgumentError, CapabilityError, ModelMismatchError, PromptMismatchError
from magpie_hf.models import ModelRef
from magpie_hf.sampling import SamplingParams

from .scripted import Scripted, generated, tgi


EOT, BOS = "<|eot_id|>", "<|begin_of_text|>"
PROMPT = Prompt("<|user|>", [1])
COMMIT, OTHER_COMMIT = "a" * 40, "b" * 40


def engine(*servers, **settings):
    quick = {
        "backoff_s": (0.001, 0.02),
        "startup_timeout_s": 5.0,
        "ref": ModelRef("org/model", "org/model", None, None),
    }
    return TgiEngine("org/model", endpoints=[s.url for s in servers], **(quick | settings))


def one(engine, prompt=PROMPT, **sampling):
    (generation,) = engine.generate([Request(0, prompt, SamplingParams(**sampling))])
    return generation


# Parameters

RELEASES = [
    *[{"temperature": t, "top_p": p} for t, p in itertools.product((1.0, 1.1, 1.2, 1.25), (1.0, 0.995, 0.99))],
    {"temperature": 0.0},
    {"temperature": 0.6, "top_p": 0.9},
    {"temperature": 0.8},
]


def expected_parameters(sampling):
    sent = {"max_new_tokens": 64, "details": True, "do_sample": sampling["temperature"] != 0}
    if sampling["temperature"] not in (0.0, 1.0):
        sent["temperature"] = sampling["temperature"]
    if sampling.get("top_p", 1.0) != 1.0:
        sent["top_p"] = sampling["top_p"]
    if sampling["temperature"]:
        sent["seed"] = 5
    return sent


@pytest.mark.parametrize("sampling", RELEASES, ids=str)
def test_the_settings_of_the_releases_are_sent_by_leaving_out_what_tgi_refuses(sampling):
    with Scripted(tgi()) as server, engine(server) as e:
        assert one(e, max_tokens=64, seed=5, **sampling).failure is None
        body = server.posts[-1].body
    assert body == {"inputs": "<|user|>", "parameters": expected_parameters(sampling)}
    assert "0.99999" not in json.dumps(body)


@pytest.mark.parametrize("sampling", RELEASES, ids=str)
def test_what_is_sent_passes_the_checks_of_both_client_packages(sampling):
    from huggingface_hub import TextGenerationInputGenerateParameters

    sent = expected_parameters(sampling)
    check_parameters(sent)
    TextGenerationInputGenerateParameters(**sent)
    if importlib.util.find_spec("text_generation"):
        from text_generation.types import Parameters, Request

        Request(inputs="x", parameters=Parameters(**sent))


def test_all_settings_have_their_tgi_names():
    grammar = '{"type": "object", "properties": {"a": {"type": "string"}}}'
    sampling = SamplingParams(top_k=5, repetition_penalty=1.1, stop=("\n",), json_schema=grammar, max_tokens=7)
    assert parameters_of(sampling, ("\n",)) == {
        "max_new_tokens": 7,
        "details": True,
        "do_sample": True,
        "top_k": 5,
        "repetition_penalty": 1.1,
        "stop": ["\n"],
        "grammar": {"type": "json", "value": json.loads(grammar)},
    }


BAD = [{"temperature": 0.0}, {"top_p": 1.0}, {"top_k": 0}, {"repetition_penalty": 0.0}, {"seed": -1}, {"what": 1}]


@pytest.mark.parametrize("parameters", BAD, ids=str)
def test_parameters_that_tgi_refuses_are_named_before_they_are_sent(parameters):
    with pytest.raises(ArgumentError, match=rf"TGI: .*{next(iter(parameters))}"):
        check_parameters({"max_new_tokens": 1} | parameters)


@pytest.mark.parametrize("grammar", ["not json", "[1]", '{"type": "string"}'])
def test_a_grammar_that_is_no_schema_of_an_object_is_refused(grammar):
    with pytest.raises(ArgumentError, match=r"cannot be sent|json_schema|JSON schema"):
        parameters_of(SamplingParams(json_schema=grammar), ())


def test_a_server_without_grammars_is_found_out_at_the_start():
    refuses = {"error": "Grammar is not supported", "error_type": "validation"}

    def script(arrived, number):
        if arrived.body and "grammar" in arrived.body["parameters"]:
            return 422, refuses
        return tgi()(arrived, number)

    with Scripted(script) as server, engine(server) as e:
        assert not e.capabilities().json_schema
        with pytest.raises(CapabilityError, match="JSON schema"):
            one(e, json_schema='{"type": "object", "properties": {}}')


def test_a_ban_on_first_tokens_is_refused():
    with Scripted(tgi()) as server, engine(server) as e:
        assert not e.capabilities().first_token_ban
        with pytest.raises(CapabilityError, match="banned_first_token_ids"):
            one(e, banned_first_token_ids=(3,))


@pytest.mark.parametrize(
    ("error_type", "name"),
    [
        ("validation", "ValidationError"),
        ("generation", "GenerationError"),
        ("overloaded", "OverloadedError"),
        ("incomplete_generation", "IncompleteGenerationError"),
    ],
)
def test_tgi_errors_are_the_client_librarys(error_type, name):
    error = tgi_error({"error": "why", "error_type": error_type})
    assert type(error).__name__ == name
    assert type(error).__module__.split(".")[0] == tgi_client().package
    assert "why" in str(error)


@pytest.mark.parametrize("payload", [None, "x", {}, {"error": "x"}, {"error_type": "other"}, {"error_type": 3}])
def test_other_bodies_are_no_tgi_errors(payload):
    assert tgi_error(payload) is None


def test_the_text_generation_package_is_used_where_it_is_installed():
    expected = "text_generation" if importlib.util.find_spec("text_generation") else "huggingface_hub"
    assert tgi_client().package == expected


# Which server responds


def test_info_is_read():
    says = {"model_sha": COMMIT, "model_dtype": "torch.bfloat16", "max_total_tokens": 4096, "max_stop_sequences": 6}
    with Scripted(tgi(**says, max_concurrent_requests=100)) as server, engine(server) as e:
        assert e.served == Served("org/model", COMMIT, "torch.bfloat16", "tgi 3.3.6")
        assert e.capabilities().max_context == 4096
        assert e.transport.endpoints[0].limit.limit == 100
        assert one(e).served == e.served


def test_a_wrong_model_is_an_error_with_both_names_unless_allowed():
    with Scripted(tgi(model_id="org/other")) as server:
        with pytest.raises(ModelMismatchError, match=r"'org/other', not 'org/model'") as caught:
            engine(server).open()
        assert caught.value.data["endpoint"] == server.url
        with engine(server, allow_model_mismatch=True) as e:
            assert e.served.model == "org/other"


def test_one_wrong_replica_is_an_error():
    with (
        Scripted(tgi()) as a,
        Scripted(tgi(model_id="org/other")) as b,
        pytest.raises(ModelMismatchError, match="org/other"),
    ):
        engine(a, b).open()


@pytest.mark.parametrize(("revision", "is_error"), [("v1", True), (None, False)], ids=["asked for", "not asked for"])
def test_another_revision_is_an_error_where_one_was_asked_for(revision, is_error):
    ref = ModelRef("org/model", "org/model", COMMIT, COMMIT)
    with Scripted(tgi(model_sha=OTHER_COMMIT)) as server:
        e = engine(server, ref=ref, revision=revision)
        if is_error:
            with pytest.raises(ModelMismatchError, match=OTHER_COMMIT):
                e.open()
        else:
            with e:
                assert e.served.revision == OTHER_COMMIT


@pytest.mark.parametrize(
    "answer",
    [(404, {"detail": "Not Found"}), (200, {"data": []}), (200, [1]), (500, b"x")],
    ids=["404", "other", "list", "500"],
)
def test_a_server_that_is_no_tgi_is_an_error_that_says_so(answer):
    with (
        Scripted(lambda a, n: answer) as server,
        pytest.raises(CapabilityError, match=r"not a Text Generation Inference server") as caught,
    ):
        engine(server).open()
    assert "openai" in caught.value.hint


# Prompts


def counting(ids_of, *, header=True, prefill=True):
    """Return a TGI script whose tokenizer is `ids_of`."""

    def answer(arrived, number):
        ids = ids_of(arrived.body["inputs"])
        listed = [{"id": i, "text": "", "logprob": None} for i in ids] if prefill else []
        return 200, generated("x", prefill=listed), {"x-prompt-tokens": str(len(ids))} if header else {}

    return tgi(answer)


def with_bos(text):
    return [0, *with_literal_bos(text)]


def with_literal_bos(text):
    return [0] * text.count(BOS) + [7] * len(text.replace(BOS, ""))


LITERAL = Prompt(f"{BOS}user", [0, 7, 7, 7, 7], bos=BOS)


@pytest.mark.parametrize("header", [True, False], ids=["counted by header", "counted by prefill"])
@pytest.mark.parametrize(
    ("tokenizer", "sent"), [(with_bos, "user"), (with_literal_bos, f"{BOS}user")], ids=["adds a BOS", "adds none"]
)
def test_there_is_exactly_one_bos(tokenizer, sent, header):
    with Scripted(counting(tokenizer, header=header)) as server, engine(server) as e:
        e.check_prompt(LITERAL)
        one(e, LITERAL)
        assert server.posts[-1].body["inputs"] == sent
        assert len(tokenizer(sent)) == 5


@pytest.mark.parametrize(
    ("prompt", "server_tokens"),
    [(Prompt(f"{BOS}user", [0, 7, 7], bos=BOS), 6), (Prompt("user", [7, 7, 7, 7]), 5)],
    ids=["too many", "one too many but no BOS to leave out"],
)
def test_other_differences_are_an_error_with_both_numbers(prompt, server_tokens):
    with Scripted(counting(with_bos)) as server, engine(server) as e, pytest.raises(PromptMismatchError) as caught:
        e.check_prompt(prompt)
    assert caught.value.data == {"server_tokens": server_tokens, "our_tokens": len(prompt.token_ids)}


def test_replicas_that_tokenize_differently_are_an_error():
    with (
        Scripted(counting(with_bos)) as a,
        Scripted(counting(with_literal_bos)) as b,
        engine(a, b) as e,
        pytest.raises(PromptMismatchError, match="disagree"),
    ):
        e.check_prompt(LITERAL)


def test_a_server_that_does_not_count_is_an_error():
    with (
        Scripted(counting(with_bos, header=False, prefill=False)) as server,
        engine(server) as e,
        pytest.raises(CapabilityError, match="does not report the number of prompt tokens"),
    ):
        e.check_prompt(LITERAL)


# Ends of texts

USER, END = (7, "How", False), (9, EOT, True)
TEXTS = {9: EOT, 8: "<|end|>"}
ENDINGS = {
    "end of sequence": (generated("How", "eos_token", [USER, END]), ("How", "stop", (7,))),
    "end of sequence that is not ours": (
        generated("How", "eos_token", [USER, (5, "</s>", True)]),
        ("How", "stop", (7,)),
    ),
    "a turn's end, as a stop sequence": (generated("How", "stop_sequence", [USER, END]), ("How", "stop", (7,))),
    "the same, written out in letters": (
        generated(f"How{EOT}", "stop_sequence", [USER, (1, "<|eot", False), (2, "_id|>", False)]),
        ("How", "stop", (7,)),
    ),
    "the user's stop": (generated("How\n", "stop_sequence", [USER, (3, "\n", False)]), ("How", "stop_text", (7,))),
    "the user's stop inside a token": (
        generated("How a\nb", "length", [USER, (3, " a\nb", False)]),
        ("How a", "stop_text", (7,)),
    ),
    "length": (generated("How", "length", [USER]), ("How", "length", (7,))),
    "a turn's end as the last token": (generated("How", "length", [USER, END]), ("How", "stop", (7,))),
    "a turn's end that the server ran past": (
        generated("How are", "length", [USER, END, (4, " are", False)]),
        ("How", "stop", (7,)),
    ),
    "special tokens stay visible": (
        generated("Howdy", "eos_token", [USER, (6, "<|tool|>", True), (4, "dy", False), END]),
        ("How<|tool|>dy", "stop", (7, 6, 4)),
    ),
    "without a list of tokens": (generated(f"How{EOT}", "stop_sequence"), ("How", "stop", None)),
    "nothing": (generated("", "eos_token", [END]), ("", "stop", ())),
}


@pytest.mark.parametrize(("answer", "expected"), ENDINGS.values(), ids=ENDINGS)
def test_a_text_ends_before_its_stop_and_says_why(answer, expected):
    with Scripted(tgi(lambda a, n: answer)) as server, engine(server, token_texts=TEXTS) as e:
        g = one(e, stop_token_ids=(9, 8), stop=("\n",))
    kept = None if g.token_ids is None else tuple(g.token_ids)
    assert (g.text, g.finish_reason, kept) == expected
    assert g.completion_tokens == 3


def test_turn_ends_are_sent_before_the_users_stops_and_no_more_than_the_server_takes():
    with Scripted(tgi(max_stop_sequences=3)) as server, engine(server, token_texts=TEXTS) as e:
        one(e, stop_token_ids=(9, 8, 77), stop=("\n", "Answer:", EOT))
        assert server.posts[-1].body["parameters"]["stop"] == [EOT, "<|end|>", "\n"]


def test_names_of_tokens_that_ordinary_texts_hold_are_not_sent_as_stops_and_cut_only_at_the_end():
    tokens = [(11, "Use <", False), (12, "s>old</s", False), (13, "> now.", False), (2, "</s>", True)]
    answer = generated("Use <s>old</s> now.", "eos_token", tokens)
    with Scripted(tgi(lambda a, n: answer)) as server, engine(server, token_texts={1: "<s>", 2: "</s>"}) as e:
        g = one(e, stop_token_ids=(1, 2), stop=("\n",))
        assert server.posts[-1].body["parameters"]["stop"] == ["\n"]
    assert (g.text, g.finish_reason) == ("Use <s>old</s> now.", "stop")
    ends = {"turn_ends": ("</s>", "<s>", EOT), "stops": ()}
    assert end_text("Use <s>old</s> now.", "stop", **ends) == ("Use <s>old</s> now.", "stop", None)
    assert end_text("Use <s>old</s> now.</s>", "stop", **ends).text == "Use <s>old</s> now."
    assert end_text(f"<s>old</s>{EOT}</s>", "stop", **ends).text == "<s>old</s>"


STOPS = st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=3)


@given(st.lists(st.text("ab\n", max_size=4), max_size=8), STOPS, STOPS)
def test_no_stop_is_left_in_a_text_and_nothing_before_it_is_lost(pieces, turn_ends, stops):
    text = "".join(pieces)
    ending = end_tokens(range(len(pieces)), pieces, "length", stop_token_ids=(), turn_ends=turn_ends, stops=stops)
    assert ending.text == end_text(text, "length", turn_ends=turn_ends, stops=stops).text
    assert text.startswith(ending.text)
    found = [s for s in (*turn_ends, *stops) if s in text]
    assert all(s not in ending.text for s in found)
    assert (ending.finish_reason == "length") == (not found)
    assert not found or any(text.startswith(s, len(ending.text)) for s in found)
    assert len("".join(pieces[: ending.num_tokens])) <= len(ending.text)


# The test server: TGI's protocol on a real, small model


@pytest.fixture(scope="module")
def generator(tiny_model_dir):
    from tests.servers.generation import Generator

    generator = Generator(tiny_model_dir)
    yield generator
    generator.close()


@pytest.fixture
def start(tiny_model_dir, generator):
    from tests.servers.tgi_server import TgiServer

    return lambda **settings: TgiServer(tiny_model_dir, generator=generator, **({"model_id": "tiny"} | settings))


def tiny(directory, server, **settings):
    quick = {"backoff_s": (0.001, 0.02), "concurrency": 16}
    return TgiEngine(str(directory), endpoints=[server.url], **(quick | settings))


def tiny_prompt(generator):
    text = f"{BOS}<|start_header_id|>user<|end_header_id|>\n\n"
    return Prompt(text, generator.encode(text, add_special_tokens=False), bos=BOS)


def run(engine, prompt, n=24, **sampling):
    params = SamplingParams(**({"max_tokens": 12} | sampling))
    return {g.key: g for g in engine.generate(Request(i, prompt, params.with_seed(i)) for i in range(n))}


@pytest.mark.parametrize("enable_prefill", [True, False])
def test_the_real_prompt_is_counted_and_its_bos_left_out(start, generator, tiny_model_dir, enable_prefill):
    prompt = tiny_prompt(generator)
    with start(enable_prefill=enable_prefill) as server, tiny(tiny_model_dir, server) as e:
        e.check_prompt(prompt)
        g = run(e, prompt, 1)[0]
        assert g.prompt_tokens == len(prompt.token_ids)
        assert (g.seed, g.completion_tokens, g.finish_reason) == (0, 12, "length")


@pytest.mark.parametrize("sampling", RELEASES, ids=str)
def test_the_server_takes_the_settings_of_the_releases(start, generator, tiny_model_dir, sampling):
    with start() as server, tiny(tiny_model_dir, server) as e:
        texts = {g.text for g in run(e, tiny_prompt(generator), 4, **sampling).values() if g.failure is None}
    assert len(texts) == (1 if sampling["temperature"] == 0 else 4)


def test_texts_do_not_depend_on_how_many_stops_the_server_takes(start, generator, tiny_model_dir):
    prompt = tiny_prompt(generator)
    stops = (" a", "e", "i", "o", " the", "1")
    found = []
    for most in (0, 1, 4, 6):
        with start(max_stop_sequences=most) as server, tiny(tiny_model_dir, server) as e:
            found.append({k: (g.text, g.finish_reason) for k, g in run(e, prompt, stop=stops).items()})
    assert found[0] == found[1] == found[2] == found[3]
    assert {reason for _, reason in found[0].values()} == {"stop_text", "length"}


@pytest.mark.parametrize("kind", ["overloaded", "status", "reset", "cut", "truncate", "garbage", "delay"])
def test_faults_of_the_server_change_no_text(start, generator, tiny_model_dir, kind):
    from tests.servers.faults import Fault

    prompt = tiny_prompt(generator)
    with start() as server, tiny(tiny_model_dir, server) as e:
        healthy = {k: g.text for k, g in run(e, prompt).items()}
        server.configure(faults=[Fault(kind, every=3, seconds=0.01)])
        assert {k: g.text for k, g in run(e, prompt).items()} == healthy
    assert (e.stats.retries > 0) == (kind != "delay")


def test_too_long_a_prompt_is_a_named_failure(start, generator, tiny_model_dir):
    with start() as server, tiny(tiny_model_dir, server) as e:
        g = run(e, Prompt("a b " * 400, [1]), 1)[0]
    assert (g.failure.code, g.failure.transient) == ("too_long", False)
    assert "a b a b" not in g.failure.message


def test_a_server_gets_no_more_at_once_than_it_says_it_takes(start, generator, tiny_model_dir):
    with start(max_concurrent_requests=4) as server, tiny(tiny_model_dir, server, concurrency=64) as e:
        assert all(g.failure is None for g in run(e, tiny_prompt(generator), 100, max_tokens=4).values())
        assert server.stats["max_open"] <= 4
        assert "429" not in server.stats["outcomes"]
