"""Responses in which something of the format is left are rejected and counted, in every stage that makes them."""

from __future__ import annotations

import logging

import pytest
from datasets import Dataset

import magpie_hf
from magpie_hf.cli.main import main
from magpie_hf.engines import ENGINES
from magpie_hf.errors import CapabilityError
from magpie_hf.session.maintenance import reopen_rows
from magpie_hf.session.status import run_status
from magpie_hf.storage.keys import content_fingerprint
from magpie_hf.storage.rundir import RunDir
from tests.scripted_engine import ScriptedEngine
from tests.template_families import make_tokenizer, template
from tests.template_families.table import TOKENIZERS


GOOD = "<|think|>hm<|end|><|begin|>assistant<|content|>Yo."
TOOL = "<|think|>hm<|end|><|begin|>assistant<|tool_calls|>[]"


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """A model with a format of several messages in an answer: `scripted(answers)(dataset, *stages)` runs stages.

    `family`: another template of the table.
    """
    monkeypatch.setitem(ENGINES, "scripted", "tests.scripted_engine:ScriptedEngine")
    ScriptedEngine.reset()

    def spec(answers, family="solar-open"):
        place = tmp_path / family
        make_tokenizer(**TOKENIZERS[family], chat_template=template(family)).save_pretrained(place)
        (place / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
        ScriptedEngine.answer = staticmethod(answers)
        role = {"model": str(place), "engine": {"kind": "scripted"}}

        def run(dataset, *stages):
            given = {"dataset": {"fingerprint": content_fingerprint(dataset)}, "stages": [*stages], "base": role}
            return magpie_hf.run(
                given | role, dataset=dataset, output=tmp_path / "run", force=True, show_progress=False
            )

        return run

    return spec


def rows(*instructions):
    return Dataset.from_dict({"instruction": list(instructions)})


def test_a_response_with_a_special_token_is_null_with_its_code_and_counted_by_token(
    scripted, tmp_path, caplog, capsys
):
    caplog.set_level(logging.INFO, logger="magpie_hf")
    run = scripted(lambda request, n: [GOOD, TOOL, "<|content|>Yo.<|begin|>user"][n])
    ds = run(rows("a b c", "d e f", "g h i"), "responses")
    assert list(ds["response"]) == ["Yo.", None, None]
    assert list(ds["reasoning"]) == ["hm", None, None]
    assert list(ds["response_finish_reason"]) == ["stop", *["error: special_token: <|begin|>"] * 2]
    assert [len(messages) for messages in ds["messages"]] == [2, 1, 1]
    (stage,) = run_status(tmp_path / "run").stages
    assert stage.by_code == {"ok": 1, "special_token": 2}
    assert stage.special_tokens == {"<|begin|>": 2}
    assert any("special_token 2 (<|begin|> 2)" in record.getMessage() for record in caplog.records)
    main(["status", str(tmp_path / "run")])
    assert "special_token 2 (<|begin|> 2)" in capsys.readouterr().out


def test_a_response_that_never_leaves_its_reasoning_is_rejected_and_a_cut_one_kept(scripted, tmp_path):
    run = scripted(lambda request, n: [("<|think|>hm", "stop"), ("<|think|>hm", "length")][n])
    ds = run(rows("a b c", "d e f"), "responses")
    assert list(ds["response"]) == [None, ""]
    assert list(ds["response_finish_reason"]) == ["error: unfinished: no answer after the reasoning", "length"]


def test_a_conversation_ends_before_an_answer_with_a_special_token(scripted, tmp_path):
    first = Dataset.from_dict({"instruction": ["a b c"], "response": ["Yo."]})
    run = scripted(lambda request, n: ["And what is next?", TOOL][n])
    ds = run(first, {"stage": "turns", "turns": 3})
    assert (ds[0]["instruction_2"], ds[0]["response_2"], ds[0]["turns_end"]) == (None, None, "special_token")
    assert ds[0]["num_turns"] == 1


def test_answers_with_special_tokens_are_not_chosen_from(scripted, tmp_path):
    run = scripted(lambda request, n: [GOOD, TOOL, "<|content|>Ay."][n % 3])
    stage = {"stage": "preference_responses", "num_samples": 3}
    ds = run(rows("a b c"), stage)
    assert ds[0]["responses"] == ["Yo.", "Ay."]
    run = scripted(lambda request, n: [GOOD, TOOL, TOOL][n % 3])
    ds = run(rows("g h i"), stage | {"num_samples": 2})
    assert ds[0]["responses"] is None


def test_a_base_models_answer_with_a_special_token_is_null(scripted, tmp_path):
    run = scripted(lambda request, n: ["Well.", "Well.<|flush|>More."][n])
    ds = run(rows("a b c", "d e f"), "base_responses")
    assert list(ds["base_response"]) == ["Well.", None]
    assert list(ds["base_finish_reason"]) == ["stop", "error: special_token: <|flush|>"]


@pytest.mark.parametrize("stage", ["responses", "preference_responses"])
def test_a_server_that_hides_what_closes_the_reasoning_is_refused(scripted, stage):
    ScriptedEngine.special_tokens = False
    with pytest.raises(CapabilityError, match=r"reasoning ends with the special token '<\|close\|>'"):
        scripted(lambda request, n: "hmthinkresponseYo.", family="kimi-k3")(rows("a b c"), stage)
    assert ScriptedEngine.asked == []


def test_a_server_that_hides_special_tokens_serves_models_whose_tags_are_ordinary_tokens(scripted):
    ScriptedEngine.special_tokens = False
    ds = scripted(lambda request, n: GOOD)(rows("a b c"), "responses")
    assert (ds[0]["reasoning"], ds[0]["response"]) == ("hm", "Yo.")
    ds = scripted(lambda request, n: "Yo.", family="llama-3")(rows("d e f"), "responses")
    assert ds[0]["response"] == "Yo."


def test_the_tokens_of_rejected_responses_follow_the_rows_that_are_opened_again(scripted, tmp_path):
    given = rows("a b c", "d e f")
    scripted(lambda request, n: [GOOD, TOOL][n])(given, "responses")
    (stage,) = run_status(tmp_path / "run").stages
    assert (stage.by_code, stage.special_tokens) == ({"ok": 1, "special_token": 1}, {"<|begin|>": 1})
    reopen_rows(tmp_path / "run", "special_token")
    assert scripted(lambda request, n: GOOD)(given, "responses")["response"][:] == ["Yo."] * 2
    (stage,) = run_status(tmp_path / "run").stages
    assert (stage.by_code, stage.special_tokens) == ({"ok": 2}, {})


def test_the_tokens_of_rejected_responses_are_counted_though_a_killed_session_did_not_save_them(scripted, tmp_path):
    run = scripted(lambda request, n: [GOOD, TOOL][n])
    run(rows("a b c", "d e f"), "responses")
    with RunDir(tmp_path / "run").own() as run_dir:
        (state,) = run_dir.state.stages.values()
        state.counts.special_tokens = {}
        run_dir.save()
    for file in (tmp_path / "run" / "stages").glob("*/*.arrow"):
        file.unlink()
    run(rows("a b c", "d e f"), "responses")
    (stage,) = run_status(tmp_path / "run").stages
    assert stage.special_tokens == {"<|begin|>": 1}
