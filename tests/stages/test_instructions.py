"""What becomes of one text that the model wrote in the user's place."""

from __future__ import annotations

import pytest

from magpie_hf.engines.base import Capabilities, Generation
from magpie_hf.errors import ArgumentError
from magpie_hf.sampling import GridPoint, SamplingParams
from magpie_hf.stage import Context
from magpie_hf.stages.instructions import REASONS, Instructions, sample_uuid
from magpie_hf.stages.starts import first_tokens
from magpie_hf.stages.turns import Turns
from magpie_hf.templates.template import ChatTemplate


@pytest.fixture(scope="module")
def template(tiny_model_dir):
    return ChatTemplate.load(str(tiny_model_dir))


def asked(stage, template, capabilities=None):
    """Return what the stage asks for its first sample."""
    context = Context(template, 0, "m", capabilities=capabilities)
    return next(stage.bind(context)({"grid_point": 0, "sample_index": 0}))


@pytest.mark.parametrize(
    ("text", "finish", "code"),
    [
        ("What is love?", "stop", "ok"),
        ("What is love?", "stop_text", "ok"),
        ("What is love?", "length", "unfinished"),
        ("What<|eot_id|> is love?", "stop", "special_token"),
        ("<|start_header_id|>assistant<|end_header_id|>\n\nSure", "stop", "special_token"),
        ("# Title\nWhat is love?", "stop", "banned_start"),
        ("  # Title", "stop", "banned_start"),
        ("", "stop", "empty"),
        ("Sure, here it is.", "stop", "assistant_voice"),
    ],
)
def test_a_text_is_accepted_or_rejected_with_its_reason_and_kept_raw(template, text, finish, code):
    stage = Instructions(banned_starts=("#",))
    outcome = stage.judge(Generation(0, text, finish), template.find_special)
    assert (outcome.code, outcome.record["raw"], outcome.record["finish"]) == (code, text, finish)


@pytest.mark.parametrize(
    ("text", "finish", "reason", "kept"),
    [
        ("What is love?", "stop", None, "What is love?"),
        ("What is lo", "length", "unfinished", "What is lo"),
        ("", "stop", "empty", ""),
        (" Sure, here it is.", "stop", "assistant_voice", "Sure, here it is."),
        ("Question: Why?<|eot_id|>", "stop", "special_token", "Question: Why?"),
        ("<|eot_id|><|begin_of_text|>", "stop", "special_token", ""),
    ],
)
def test_a_reason_that_is_not_in_reject_is_kept_with_its_text_and_without_special_tokens(
    template, text, finish, reason, kept
):
    stage = Instructions(clean=False, reject=())
    outcome = stage.judge(Generation(0, text, finish), template.find_special)
    assert (outcome.code, outcome.record.get("reason")) == ("ok", reason)
    assert outcome.record.get("text", outcome.record["raw"]) == kept
    assert template.find_special(outcome.record["raw"]) is None


def test_a_text_is_rejected_for_any_listed_reason_not_only_its_first(template):
    unfinished = Generation(0, "Sure, here it is.", "length")
    assert Instructions(reject=("assistant_voice",)).judge(unfinished, template.find_special).code == "assistant_voice"
    assert Instructions(reject=("empty",)).judge(unfinished, template.find_special).code == "ok"


def test_banned_starts_hold_whatever_reject_says(template):
    stage = Instructions(banned_starts=("#",), reject=())
    assert stage.judge(Generation(0, "# Title", "stop"), template.find_special).code == "banned_start"


def test_reasons_are_named_in_any_order_and_default_to_all():
    assert Instructions(reject=REASONS[::-1]) == Instructions()
    assert Instructions(reject="empty").reject == ("empty",)
    assert "rejection_reason" not in Instructions().features()
    assert "rejection_reason" in Instructions(reject=()).features()


@pytest.mark.parametrize("stage", [Instructions, Turns])
def test_an_unknown_reason_is_an_error_that_names_the_known_ones(stage):
    with pytest.raises(ArgumentError, match="'asistant_voice'") as caught:
        stage(reject=("asistant_voice",))
    assert '"assistant_voice"' in caught.value.hint
    assert "unfinished" in caught.value.hint


def test_the_cleaned_text_stands_beside_the_raw_one_only_where_they_differ(template):
    judge = Instructions().judge
    labelled = judge(Generation(0, "Question: Why?", "stop"), template.find_special).record
    assert (labelled["raw"], labelled["text"]) == ("Question: Why?", "Why?")
    assert "text" not in judge(Generation(0, "Why is that?", "stop"), template.find_special).record
    unclean = Instructions(clean=False).judge(Generation(0, " Question: Why?", "stop"), template.find_special).record
    assert unclean["text"] == "Question: Why?"


def test_a_failed_request_is_an_outcome_and_no_exception(template):
    from magpie_hf.engines.base import Failure

    steps = Instructions().bind(Context(template, 0, "m"))({"grid_point": 0, "sample_index": 0})
    next(steps)
    with pytest.raises(StopIteration) as ended:
        steps.send(Generation(0, failure=Failure("a_code_of_tomorrow", False, "why")))
    assert ended.value.value == ({"error": "a_code_of_tomorrow", "message": "why"}, "failed", 0)


def test_a_newline_ends_an_instruction_only_where_asked(template):
    assert "\n" not in asked(Instructions(), template).sampling.stop
    assert "\n" in asked(Instructions(early_stop_newline=True), template).sampling.stop


def test_first_tokens_are_banned_where_the_engine_can_and_texts_rejected_elsewhere(template):
    stage = Instructions(banned_starts=("#",))
    banned = asked(stage, template, Capabilities(first_token_ban=True)).sampling.banned_first_token_ids
    assert banned == first_tokens(template.tokenizer, ("#",))
    assert all(template.decode([token]).lstrip().startswith("#") for token in banned)
    assert len(banned) > 0
    assert asked(stage, template, Capabilities()).sampling.banned_first_token_ids == ()


def test_contiguous_samples_of_a_grid_point_share_the_prompt_and_count_up_in_seeds(template):
    stage = Instructions(grid=(GridPoint(SamplingParams()), GridPoint(SamplingParams(top_p=0.5))))
    steps = stage.bind(Context(template, 0, "m"))
    one, two = (next(steps({"grid_point": 0, "sample_index": index})) for index in (0, 1))
    assert one.prompt is two.prompt
    assert two.sampling == one.sampling.with_seed(one.sampling.seed + 1)
    other = next(steps({"grid_point": 1, "sample_index": 0}))
    assert other.sampling.seed != one.sampling.seed


def test_the_templates_stops_end_every_turn(template):
    sampling = asked(Instructions(), template).sampling
    assert set(template.instruction_stops.token_ids) <= set(sampling.stop_token_ids)


def test_a_sample_has_its_name_by_all_that_makes_its_text(template):
    point = GridPoint(SamplingParams())
    context = Context(template, 0, "m", "r")
    names = {
        sample_uuid(context, point, 0),
        sample_uuid(context, point, 1),
        sample_uuid(context, GridPoint(SamplingParams(top_p=0.5)), 0),
        sample_uuid(Context(template, 1, "m", "r"), point, 0),
        sample_uuid(Context(template, 0, "n", "r"), point, 0),
        sample_uuid(Context(template, 0, "m", "s"), point, 0),
    }
    assert len(names) == 6
    assert sample_uuid(context, GridPoint(SamplingParams(), share=7), 0) in names


def conversation(template, answers, **settings):
    """Play a conversation with these generations; return its outcome and what was asked."""
    steps = Turns(**settings).bind(Context(template, 0, "m"))(
        {"instruction": "Hi?", "response": "Hello.", "_index": 5}
    )
    prompts, sent = [], None
    for answer in [*answers, None]:
        try:
            prompts.append((next(steps) if sent is None else steps.send(sent)).prompt.text)
        except StopIteration as ended:
            return ended.value, prompts
        sent = answer
    raise AssertionError("the conversation wants more")


def said(text, finish="stop"):
    return Generation(0, text, finish)


def test_the_users_turn_is_written_under_the_system_prompt_and_the_answer_without(template):
    outcome, prompts = conversation(
        template, [said("And why is that?"), said("Because.")], system_prompt="Many rounds."
    )
    assert outcome == (
        {"turns": [["And why is that?", "Because."]], "seeds": outcome.record["seeds"], "end": "complete"},
        "ok",
        0,
    )
    assert "Many rounds." in prompts[0]
    assert "Many rounds." not in prompts[1]
    assert prompts[0].endswith("user<|end_header_id|>\n\n")
    assert prompts[1].endswith("And why is that?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")


def test_an_answer_that_was_cut_ends_the_conversation(template):
    outcome, _ = conversation(template, [said("And why is that?"), said("Because", "length")], turns=3)
    assert (outcome.code, outcome.record["end"]) == ("fewer_turns", "length")
    assert outcome.record["turns"] == [["And why is that?", "Because"]]


def test_an_unusable_turn_is_tried_so_often_and_then_ends_the_conversation_with_its_reason(template):
    outcome, prompts = conversation(template, [said("")] * 3, attempts=3)
    assert len(prompts) == 3
    assert (outcome.code, outcome.record) == ("fewer_turns", {"turns": [], "seeds": [], "end": "empty"})
    outcome, prompts = conversation(template, [said("")], sampling=SamplingParams(temperature=0.0))
    assert len(prompts) == 1, "a greedy turn would only come out the same"
    assert outcome.code == "fewer_turns"


def test_a_turn_with_a_reason_that_is_not_in_reject_continues_the_conversation(template):
    outcome, prompts = conversation(template, [said(""), said("Can I help?")], reject=())
    assert (outcome.code, outcome.record["turns"], len(prompts)) == ("ok", [["", "Can I help?"]], 2)


@pytest.mark.parametrize(
    ("dropped", "text", "code", "raw"),
    [
        (">", "> How do I sort?", "ok", " How do I sort?"),
        (">", ">How do I sort?", "ok", "How do I sort?"),
        (">", " >How do I sort?", "ok", "How do I sort?"),
        (">\n", ">\nHow do I sort?", "ok", "How do I sort?"),
        (">\n", ">How do I sort?", "ok", "How do I sort?"),
        (" ", " How do I sort?", "ok", "How do I sort?"),
        (" ", "How do I sort?", "ok", "How do I sort?"),
        (" ", "  How do I sort?", "ok", " How do I sort?"),
        ("", "> How do I sort?", "ok", "> How do I sort?"),
        (">", "How do I sort?", "header", "How do I sort?"),
        (">", "", "header", ""),
    ],
)
def test_the_end_of_the_header_that_the_model_writes_is_not_part_of_the_instruction(dropped, text, code, raw):
    outcome = Instructions(clean=False).judge(Generation(1, text, "stop"), lambda *_: None, dropped)
    assert (outcome.code, outcome.record["raw"]) == (code, raw)


def test_instructions_and_turns_come_without_the_end_of_a_header_that_merges(monkeypatch, tmp_path):
    import magpie_hf
    from magpie_hf.engines import ENGINES
    from tests.scripted_engine import ScriptedEngine
    from tests.template_families import make_tokenizer
    from tests.template_families.table import SPM
    from tests.test_templates import HEADER_THAT_MERGES

    make_tokenizer(**SPM, merged=">", chat_template=HEADER_THAT_MERGES).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    monkeypatch.setitem(ENGINES, "scripted", "tests.scripted_engine:ScriptedEngine")
    ScriptedEngine.reset()

    def reply(request, number):
        is_user = request.prompt.text.endswith("<|prompt|")
        return f">How do I sort list {number}?" if is_user else "Call sorted on it."

    ScriptedEngine.answer = staticmethod(reply)
    ds = magpie_hf.run(
        {
            "model": str(tmp_path / "model"),
            "engine": {"kind": "scripted", "window": 1},
            "num_rows": 3,
            "stages": ["instructions", "responses", {"stage": "turns", "system_prompt": None}],
            "output": {"path": str(tmp_path / "run")},
        }
    )
    for column in ("instruction", "raw_instruction", "instruction_2"):
        assert all(text.startswith("How do I sort list") for text in ds[column][:])
